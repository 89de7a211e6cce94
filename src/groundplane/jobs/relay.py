"""The relay: takes due messages from the outbox, sends them, and only then deletes them.

Any number of relays may run. A message is leased while it is sent; a relay that dies loses its lease, and the message
is sent again with the same `dedup_key`, marked as `taken_before`. What cannot be sent stays in the outbox and is tried
again. Messages of jobs that this process creates come here leased, without a way round through the outbox. The first
sending ends with the lease: later ones are marked, so that consumers that must drop repeats themselves know them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from groundplane.core import failpoints
from groundplane.core.errors import GroundplaneError, Unavailable
from groundplane.core.retry import RetryPolicy
from groundplane.jobs.port import JobStore, OutboxMessage
from groundplane.telemetry.logs import get_logger

Send = Callable[[list[OutboxMessage]], Awaitable[None]]
Taken = list[tuple[int, OutboxMessage]]

BATCH = 200
LEASE_S = 5.0
LEASE_OFFERED_S = 2.0
"""Of a message that is offered as it is written: so much later another relay sends what a dead process left."""
_LOOK_EVERY_S = 1.0
_BACKOFF = RetryPolicy(attempts=1_000_000, base_s=0.05, cap_s=1.0)
_log = get_logger("jobs")


class Relay:
    """Moves messages from one outbox until it is cancelled."""

    def __init__(self, driver: JobStore, send: Send, *, lease_s: float = LEASE_S) -> None:
        self._driver = driver
        self._send = send
        self._lease_s = lease_s
        self._offered: list[tuple[float, int, OutboxMessage]] = []
        self._changed = asyncio.Event()
        self.running = False
        self.heard_at = 0.0
        self.relayed = 0
        self.failures = 0

    def offer(self, taken: Taken, until: float) -> None:
        """Send these, which the caller has leased until that time of the loop, as soon as possible. What cannot be sent
        by then is found in the outbox.
        """
        self._offered += [(until, one, message) for one, message in taken]
        self._changed.set()

    def deaf_s(self) -> float:
        """For how many seconds it has neither looked into the outbox nor been told that it cannot: 0 where it does not
        run. A look comes every second, and a sending ends with its lease.
        """
        return asyncio.get_running_loop().time() - self.heard_at if self.running else 0.0

    async def run(self) -> None:
        """Relay until cancelled."""
        tasks = [asyncio.create_task(self._look()), asyncio.create_task(self._forward())]
        self.heard_at = asyncio.get_running_loop().time()
        self.running = True
        try:
            for ended in (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]:
                ended.result()
        finally:
            self.running = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self) -> None:
        """What is offered. Where that fails, the lease ends, and a look finds it."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            offered, self._offered = self._offered, []
            for start in range(0, len(offered), BATCH):
                now = asyncio.get_running_loop().time()
                leased = [entry for entry in offered[start : start + BATCH] if entry[0] > now]
                if not leased:
                    continue
                taken = [(one, message) for _, one, message in leased]
                try:
                    await self._move(taken, min(until for until, _, _ in leased), once=True)
                except GroundplaneError as error:
                    if error.code == "closed":
                        raise
                    self._note(error, taken[0][1].queue)

    async def _look(self) -> None:
        """What is in the outbox: at once when its bell rings, and every second what a dead relay left."""
        failures = 0
        while True:
            try:
                async with self._driver.watch("outbox") as watch:
                    while True:
                        if await self.step() < BATCH:
                            await watch.wait(min(self._lease_s, _LOOK_EVERY_S))
                        failures = 0
            except GroundplaneError as error:
                if error.code == "closed":
                    raise
                failures += 1
                self._note(error, "store")
                await asyncio.sleep(_BACKOFF.delay_s(failures))

    async def step(self) -> int:
        """Move one batch; how many were taken."""
        until = asyncio.get_running_loop().time() + self._lease_s
        taken = await self._driver.outbox.take(BATCH, self._lease_s)
        self.heard_at = asyncio.get_running_loop().time()
        if taken:
            await self._move(taken, until)
        return len(taken)

    async def _move(self, taken: Taken, until: float | None, *, once: bool = False) -> None:
        """Send and tick off; again and again, unless `once`. `until`: what is not sent by then others send, too."""
        failures = 0
        while True:
            try:
                async with asyncio.timeout_at(None if failures else until):
                    await self._send([message for _, message in taken])
                break
            except TimeoutError:
                self._note(_slow(), taken[0][1].queue)
            except GroundplaneError as error:
                if error.code == "closed":
                    raise
                self._note(error, taken[0][1].queue)
                if not error.retryable or error.reason == "queue_full":  # of one queue: others have room
                    await self._one_by_one(taken)
                    return
            if once:
                return
            failures += 1
            await asyncio.sleep(_BACKOFF.delay_s(failures))
            taken = [(one, msgspec.structs.replace(message, taken_before=True)) for one, message in taken]
        failpoints.hit("relayed")
        await self._driver.outbox.done([one for one, _ in taken])
        self.relayed += len(taken)

    async def _one_by_one(self, taken: Taken) -> None:
        """One of them cannot be sent: the others must not wait for it. It is tried again when its lease has ended."""
        if len(taken) == 1:
            return
        for one, message in taken:
            await self._move([(one, msgspec.structs.replace(message, taken_before=True))], None, once=True)

    def _note(self, error: GroundplaneError, queue: str) -> None:
        self.failures += 1
        self.heard_at = asyncio.get_running_loop().time()
        _log.warning("job_relay_failed", queue=queue, code=error.code, error=error.message, failures=self.failures)


def _slow() -> Unavailable:
    return Unavailable("queues: messages were not sent within their lease; they are sent again", reason="broker_slow")
