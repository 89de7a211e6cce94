"""One reader of the event log for all streams of this process.

Each stream reads its own job's history from the store, then gets what the one reader finds. A subscription holds at
most `BUFFER_MAX` events; one that falls behind drops them and reads the store again from where it stands, so a slow
client is bounded and misses nothing. Ids only rise: what was seen twice is dropped.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from groundplane.core.errors import GroundplaneError
from groundplane.core.lifecycle import Lifecycle
from groundplane.jobs import Jobs
from groundplane.jobs.port import Job, JobEvent
from groundplane.telemetry.logs import get_logger

BUFFER_MAX = 256
PAGE = 200
_SAFETY_POLL_S = 5.0
_log = get_logger("gateway")


class Subscription:
    """The events of one job after an id, in order, without a gap. One reader at a time; cancelling a wait is safe."""

    def __init__(self, jobs: Jobs, job_id: str, after: int, *, behind: bool = True) -> None:
        self.job_id = job_id
        self.seen = after
        self._jobs = jobs
        self._fresh: deque[JobEvent] = deque()
        self._behind = behind
        self._changed = asyncio.Event()
        self._ended = False

    def offer(self, event: JobEvent) -> None:
        """Take an event from the reader; never blocks, never grows beyond `BUFFER_MAX`."""
        if len(self._fresh) >= BUFFER_MAX:
            self._fresh.clear()
            self._behind = True
        self._fresh.append(event)
        self._changed.set()

    def end(self) -> None:
        """Wake the reader for good: the gateway drains, or the client left."""
        self._ended = True
        self._changed.set()

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended

    async def batch(self, timeout_s: float | None = None) -> list[JobEvent]:
        """The next events; an empty list after `timeout_s` seconds of silence, or once ended."""
        events = await self._next()
        if events or self._ended:
            return events
        try:
            async with asyncio.timeout(timeout_s):
                while not events and not self._ended:
                    await self._changed.wait()
                    events = await self._next()
        except TimeoutError:
            return []
        return events

    async def _next(self) -> list[JobEvent]:
        self._changed.clear()
        if self._behind:
            self._behind = False
            try:
                page = await self._jobs.events(after=self.seen, job_id=self.job_id, limit=PAGE)
            except BaseException:
                self._behind = True
                raise
            if len(page.items) >= PAGE:
                self._behind = True
                self._changed.set()
            if page.items:
                self.seen = page.items[-1].id
                return page.items
        found = [event for event in self._fresh if event.id > self.seen]
        self._fresh.clear()
        if found:
            self.seen = found[-1].id
        return found


class Feed:
    """Reads the log while somebody listens, and hands each event to the subscriptions of its job."""

    def __init__(self, jobs: Jobs, lifecycle: Lifecycle) -> None:
        self._jobs = jobs
        self._by_job: dict[str, set[Subscription]] = {}
        self._position = 0
        self._wanted = asyncio.Event()
        self._draining = False
        lifecycle.spawn(self._run(), name="feed")

    def __repr__(self) -> str:
        return f"<Feed {sum(map(len, self._by_job.values()))} subscriptions at {self._position}>"

    @contextmanager
    def subscribe(self, job: Job, after: int = 0) -> Iterator[Subscription]:
        """The events of `job` after the id `after`. `job` must have been read before; nothing since is missed."""
        if not self._by_job:
            self._position = max(self._position, job.last_event_id)
        # what comes after a position that is not ahead of `after` is handed over: then there is no history to read
        subscription = Subscription(self._jobs, job.job_id, after, behind=after < self._position)
        self._by_job.setdefault(job.job_id, set()).add(subscription)
        self._wanted.set()
        if self._draining:
            subscription.end()
        try:
            yield subscription
        finally:
            remaining = self._by_job[job.job_id]
            remaining.discard(subscription)
            if not remaining:
                del self._by_job[job.job_id]
            if not self._by_job:
                self._wanted.clear()

    def drain(self) -> None:
        """End every subscription, and those to come."""
        self._draining = True
        for subscriptions in self._by_job.values():
            for subscription in subscriptions:
                subscription.end()

    async def wait_finished(self, job: Job, timeout_s: float) -> Job:
        """The job once it is terminal, or as it stands after `timeout_s` seconds or when the gateway drains."""
        if job.state.terminal or timeout_s <= 0:
            return job
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        with self.subscribe(job, job.last_event_id) as events:
            while not events.ended and (left := until - loop.time()) > 0:
                if await events.batch(left):
                    job = await self._jobs.get(job.job_id)
                    if job.state.terminal:
                        break
        return job

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                async with self._jobs.watch("events") as watch:
                    while True:
                        await self._wanted.wait()
                        if await self._read() < PAGE:
                            failures = 0
                            await watch.wait(_SAFETY_POLL_S)
            except GroundplaneError as error:
                if error.code == "closed":
                    raise
                failures += 1
                _log.warning("feed_interrupted", error=error.message, code=error.code, failures=failures)
                await asyncio.sleep(min(5.0, 0.05 * 2**failures) * random.uniform(0.5, 1.0))

    async def _read(self) -> int:
        page = await self._jobs.events(after=self._position, limit=PAGE)
        for event in page.items:
            for subscription in self._by_job.get(event.job_id, ()):
                subscription.offer(event)
        self._position = max(self._position, page.last_id)
        return len(page.items)
