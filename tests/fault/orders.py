"""Customers of the plane of the fault tests, and the audit of what became of their orders.

Each customer starts a job over HTTP under an idempotency key of its own, asks again under the same key while the
gateway does not answer, waits for the result (or follows the events) and begins anew, until it is told to stop. Some
orders are refused by their handler, some are recalled by their customer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fault.plane_lab import Lab, eventually, words
from groundplane import Client, Envelope, FailedPrecondition, GroundplaneError
from groundplane.core.dead_letters import DeadLetter
from groundplane.jobs import Job, JobEvent, JobQuery, Jobs
from groundplane.jobs.checks import FINAL_KINDS
from groundplane.jobs.port import Events
from groundplane.mesh.spec import ERROR_END, HAPPY_END
from groundplane.plane import Plane
from groundplane.queues import Queues
from groundplane.testing.checkers import EventLog, History

PARTS = 5
_GIVE_UP_S = 60.0


class Orders:
    """What was ordered: names by job id, results as the customers saw them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.accepted: dict[str, str] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.followed: dict[str, dict[int, dict[str, Any]]] = {}
        self.refusals: list[GroundplaneError] = []
        self.recalled: set[str] = set()
        self._number = 0
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def coming(self, customers: int = 4) -> AsyncIterator[None]:
        """Customers order while the context is open; leaving it waits until each has its last result."""
        tasks = [asyncio.create_task(self._customer(follows=n == 0)) for n in range(customers)]
        try:
            yield
            self._stop.set()
            _, waiting = await asyncio.wait(tasks, timeout=_GIVE_UP_S)
            assert not waiting, f"orders are not served: {await self._unserved()}\n{self.lab.logs()}"
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def open_jobs(self) -> set[str]:
        """Accepted, and without a result yet."""
        return self.accepted.keys() - self.results.keys()

    async def order(self, client: Client, tool: str, arguments: dict[str, Any], name: str) -> str:
        """Start one job, asking again under the same key until it is accepted. Its id."""
        while True:
            try:
                job = await client.start(tool, arguments, idempotency_key=name)
            except GroundplaneError as error:
                self.refusals.append(error)
                if not error.retryable:
                    raise
                await asyncio.sleep(0.05)
                continue
            self.accepted[str(job["job_id"])] = name
            return str(job["job_id"])

    async def _unserved(self) -> str:
        """What is known of the orders without a result, and of the queues."""
        async with Plane.open(self.lab.settings, ports=("queues", "jobs")) as plane:
            depths = [await plane.queues.depth(one.name) for one in await plane.queues.queues()]
            jobs = [await plane.jobs.get(one) for one in self.open_jobs()]
            events = [(await plane.jobs.events(0, one.job_id)).items[-6:] for one in jobs]
        return "\n".join(map(str, [*jobs, *events, *depths]))

    async def _customer(self, *, follows: bool) -> None:
        async with Client(self.lab.url) as client:
            while not self._stop.is_set():
                self._number += 1
                tool, name, arguments = _chosen(self._number)
                job_id = await self.order(client, tool, arguments, name)
                if name.startswith("recalled"):
                    await self._recall(client, job_id)
                if follows:
                    await self._follow(client, job_id)
                self.results[job_id] = await self._result(client, job_id)

    async def _recall(self, client: Client, job_id: str) -> None:
        """Cancel it once. Without an answer, and where it had ended, it may have either end."""
        try:
            assert (await client.cancel(job_id, "recalled"))["state"] == "cancelled"
        except FailedPrecondition:
            return
        except GroundplaneError as error:
            if not error.retryable:
                raise
            return
        self.recalled.add(job_id)

    async def _follow(self, client: Client, job_id: str) -> None:
        """Every event up to the final one, whatever happens to the connection meanwhile."""
        seen: dict[int, dict[str, Any]] = {}
        self.followed[job_id] = seen
        while True:
            try:
                async for event in client.follow(job_id, after=max(seen, default=0)):
                    if event.kind == "update":
                        assert event.id not in seen
                        seen[event.id] = event.data
                return
            except GroundplaneError as error:
                if not error.retryable:
                    raise

    async def _result(self, client: Client, job_id: str) -> dict[str, Any]:
        while True:
            try:
                return await client.result(job_id)
            except GroundplaneError as error:
                if not error.retryable:
                    raise


class Audit:
    """The books of a plane that has come to rest, read from its stores and from the files of its effects."""

    def __init__(self, orders: Orders, jobs: list[Job], events: list[JobEvent], dead: list[DeadLetter]) -> None:
        self.orders = orders
        self.jobs = jobs
        self.events = events
        self.dead = dead
        self.lab = orders.lab

    @classmethod
    async def of(cls, orders: Orders) -> Audit:
        """Wait until outbox and queues are empty, then read everything."""
        async with Plane.open(orders.lab.settings, ports=("queues", "jobs")) as plane:
            jobs, queues = plane.jobs, plane.queues
            await eventually(lambda: _at_rest(jobs, queues), "queues and outbox are empty")
            dead = await _all_dead(queues)
            listed = await _all_jobs(jobs)
            return cls(orders, [await jobs.get(one.job_id) for one in listed], await _all_events(jobs), dead)

    def check(self, *, database_crashed: bool = False) -> None:
        """Nothing lost, no keyed effect twice, terminal states for ever."""
        self.check_jobs()
        self.check_events(database_crashed=database_crashed)
        self.check_effects()
        self.check_dead_letters()
        assert not self.lab.unexpected, self.lab.unexpected

    def check_jobs(self) -> None:
        """Every accepted job, and no other, is there, and has ended exactly as it must have."""
        accepted = self.orders.accepted
        history = History()
        history.sent(*accepted)
        history.done(*(one.job_id for one in self.jobs))
        history.check_nothing_lost()
        history.check_nothing_invented()
        history.check_no_effect_twice()
        assert len(set(accepted.values())) == len(accepted)  # one job for each key
        for job in self.jobs:
            self._check_end(job, accepted[job.job_id])
            told = self.orders.results[job.job_id]
            assert (told["state"], told["result"]) == (job.state, job.result)

    def _check_end(self, job: Job, name: str) -> None:
        if name.startswith("refused"):
            assert job.error is not None
            assert (job.state, job.error.type, job.error.reason) == ("failed", "ValueError", "processing_error")
            assert job.error.message == f"order {name} is refused"
        elif name.startswith("recalled") and job.state == "cancelled":
            assert (job.result, job.error) == (None, None)
        else:
            assert job.job_id not in self.orders.recalled, f"{job.job_id} was cancelled, and is {job.state}"
            assert (job.state, job.progress, job.error) == ("succeeded", 100.0, None), job
            assert job.result == expected(name)

    def check_events(self, *, database_crashed: bool) -> None:
        """The log of the store, and that those who followed it saw each event once, and no other; but a server that
        crashed may have forgotten progress that was seen.
        """
        log = EventLog(self.events)
        log.check_ids_rise()
        log.check_one_end(self.orders.accepted)
        log.check_terminal_states_never_change()
        log.check_progress_never_decreases()
        for job_id, seen in self.orders.followed.items():
            own = [event for event in self.events if event.job_id == job_id]
            end = next(event.id for event in own if event.kind in FINAL_KINDS)
            logged = [event.id for event in own if event.id <= end]
            forgotten = seen.keys() - set(logged)
            assert [one for one in seen if one not in forgotten] == logged, (job_id, seen, own)
            assert not forgotten or database_crashed, (job_id, seen, own)
            assert all(seen[one]["kind"] == "progress" for one in forgotten), (job_id, seen, own)

    def check_effects(self) -> None:
        """Each part was debited exactly once, and charged again only while that was in doubt."""
        succeeded = [key for job in self.jobs if job.state == "succeeded" for key in self._keys(job)]
        debits = History()
        debits.sent(*succeeded)
        debits.maybe_sent(*(key for job in self.jobs if job.state == "cancelled" for key in self._keys(job)))
        debits.done(*(line[0] for line in words(self.lab.effects / "debits")))
        debits.check_nothing_lost()
        debits.check_nothing_invented()
        debits.check_no_effect_twice()
        recorded: set[str] = set()
        for key, what, *_ in words(self.lab.effects / "charges"):
            assert what == "recorded" or key not in recorded, f"{key} was charged after its end was recorded"
            recorded.update([key] if what == "recorded" else [])
        assert recorded >= set(succeeded)
        if not self.lab.stack.embedded:
            return  # a repeat that comes while its first copy is worked on is another message, at its first attempt
        runs = History()
        for key, attempt, _ in words(self.lab.effects / "runs"):
            runs.attempt(key, int(attempt))
        runs.check_attempts_never_fall()

    def check_no_call_is_doubled(self) -> None:
        """Every call of a handler for one key is another attempt: no message is there twice. (Where a message is handed
        back without costing an attempt, as when the disk is full, this does not hold.)"""
        calls = History()
        calls.done(*(f"{key} attempt {attempt}" for key, attempt, _ in words(self.lab.effects / "runs")))
        calls.check_no_effect_twice()

    def check_dead_letters(self) -> None:
        """One for each order that its handler refused, and no other; on servers another one where a sidecar was killed
        while it wrote the first.
        """
        refused = Counter(job.job_id for job in self.jobs if job.state == "failed")
        found = Counter(Envelope.from_bytes(letter.payload).job_id for letter in self.dead)
        assert found.keys() == refused.keys()
        assert found == refused or not self.lab.stack.embedded

    def _keys(self, job: Job) -> list[str]:
        return keys_of(self.orders.accepted[job.job_id])

    def numbers(self) -> dict[str, int]:
        """How much happened."""
        attempts = [int(attempt) for _, attempt, _ in words(self.lab.effects / "runs")]
        charges = Counter(key for key, what, *_ in words(self.lab.effects / "charges") if what == "charged")
        return {
            **Counter(f"jobs_{job.state}" for job in self.jobs),
            "events": len(self.events),
            "calls": len(attempts),
            "again": sum(attempt > 1 for attempt in attempts),
            "attempt_max": max(attempts, default=0),
            "in_doubt": sum(count > 1 for count in charges.values()),
        }


def _chosen(number: int) -> tuple[str, str, dict[str, Any]]:
    """Tool, name and arguments of an order."""
    if number % 9 == 0:
        return "plain", f"refused-{number}", {"key": f"refused-{number}", "die": "raise"}
    if number % 7 == 0:
        return "spread", f"recalled-{number}", {"order": f"recalled-{number}"}
    if number % 3 == 0:
        return "plain", f"plain-{number}", {"key": f"plain-{number}"}
    return "spread", f"spread-{number}", {"order": f"spread-{number}"}


def keys_of(name: str) -> list[str]:
    """The keys of the effects of one order."""
    return [name] if name.startswith(("plain", "refused")) else [f"{name}/{index}" for index in range(PARTS)]


def expected(name: str) -> dict[str, Any]:
    """The only right result of an order."""
    keys = keys_of(name)
    if name.startswith("plain"):
        return {"key": name, "index": 0, "receipt": f"receipt of {name}", "finished": True}
    return {"keys": keys, "receipts": [f"receipt of {key}" for key in keys], "missing": [], "finished": True}


async def _at_rest(jobs: Jobs, queues: Queues) -> bool:
    """Nothing is ready, in flight, or in the outbox; the only messages that wait for a time are the timers of joins."""
    if (await jobs.sweep()).outbox:
        return False
    depths = {one.name: await queues.depth(one.name) for one in await queues.queues()}
    assert {HAPPY_END, ERROR_END} <= depths.keys()
    return not any(one.ready or one.in_flight or (one.delayed and name != "join") for name, one in depths.items())


async def _all_dead(queues: Queues) -> list[DeadLetter]:
    found: list[DeadLetter] = []
    cursor = None
    while True:
        page = await queues.list_dead(cursor=cursor)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


async def _all_jobs(jobs: Jobs) -> list[Job]:
    found: list[Job] = []
    cursor = None
    while True:
        page = await jobs.list_jobs(JobQuery(limit=1000, cursor=cursor))
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


async def _all_events(jobs: Jobs) -> list[JobEvent]:
    found: list[JobEvent] = []
    page = Events(items=[], last_id=0)
    while True:
        page = await jobs.events(page.last_id, limit=1000)
        if not page.items:
            return found
        found += page.items
