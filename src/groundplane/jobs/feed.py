"""One reader of the event log for all followers of this process.

A follower reads its job's history from the store, then gets what the one reader finds. It holds at most `BUFFER_MAX`
events; one that falls behind drops them and reads the store again from where it stands: slow followers are bounded and
miss nothing, the final event least of all. Ids only rise, so what comes twice is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from groundplane.core.errors import GroundplaneError, Internal
from groundplane.core.lifecycle import Lifecycle
from groundplane.core.retry import RetryPolicy
from groundplane.jobs.port import Events, JobEvent, JobStore
from groundplane.telemetry.logs import get_logger

BUFFER_MAX = 256
PAGE = 500
_SAFETY_S = 5.0
_BACKOFF = RetryPolicy(attempts=1_000_000, base_s=0.05, cap_s=2.0)
_log = get_logger("jobs")


class Subscription:
    """The events of one job after an id, in order, without a gap. One reader at a time; cancelling a wait is safe."""

    def __init__(self, job_id: str, after: int, read: Callable[[str, int, int], Awaitable[Events]]) -> None:
        self.job_id = job_id
        self.seen = after
        self._read = read
        self._fresh: deque[JobEvent] = deque()
        self._behind = True
        self._changed = asyncio.Event()

    def offer(self, event: JobEvent) -> None:
        """Take an event from the reader; never blocks."""
        if len(self._fresh) >= BUFFER_MAX:
            self._fresh.clear()
            self._behind = True
        elif not self._behind:
            self._fresh.append(event)
        self._changed.set()

    def wake(self) -> None:
        """Let the waiting reader look again."""
        self._changed.set()

    async def wait(self) -> None:
        """Until there may be something new."""
        await self._changed.wait()

    async def ready(self) -> list[JobEvent]:
        """What is there now."""
        self._changed.clear()
        if self._behind:
            return await self._catch_up()
        found = [event for event in self._fresh if event.id > self.seen]
        self._fresh.clear()
        if found:
            self.seen = found[-1].id
        return found

    async def _catch_up(self) -> list[JobEvent]:
        self._behind = False  # before the read: what comes meanwhile is offered, and dropped where it was read as well
        try:
            page = await self._read(self.job_id, self.seen, PAGE)
        except BaseException:
            self._behind = True
            self._changed.set()
            raise
        if len(page.items) >= PAGE:
            self._behind = True
            self._changed.set()
        self.seen = max(self.seen, page.last_id if page.items else 0)
        return page.items


class Feed:
    """Reads the log while somebody follows, and hands each event to the followers of its job."""

    def __init__(self, driver: JobStore, lifecycle: Lifecycle) -> None:
        self._driver = driver
        self._lifecycle = lifecycle
        self._followers: dict[str, set[Subscription]] = {}
        self._position: int | None = None
        self._wanted = asyncio.Event()
        self._placed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.delivered = 0

    @property
    def followers(self) -> int:
        """How many follow."""
        return sum(map(len, self._followers.values()))

    def check(self) -> None:
        """Raise when nothing will come any more: `closed`, or `internal` where the reader broke."""
        self._lifecycle.check_open()
        if self._task is not None and self._task.done() and not self._task.cancelled():
            failure = self._task.exception()
            raise Internal(f"jobs: the reader of the event log broke: {failure!r}") from failure

    @asynccontextmanager
    async def subscribe(self, job_id: str, after: int) -> AsyncIterator[Subscription]:
        """Follow a job from the id `after`. Nothing committed after that is missed."""
        subscription = Subscription(job_id, after, self._history)
        self._followers.setdefault(job_id, set()).add(subscription)
        self._wanted.set()
        if self._task is None or self._task.done():
            self._placed.clear()
            self._position = None
            self._task = self._lifecycle.spawn(self._run(), name="feed")
        try:
            await self._placed.wait()  # from here on the reader sees whatever this follower's history does not
            self.check()
            yield subscription
        finally:
            remaining = self._followers[job_id]
            remaining.discard(subscription)
            if not remaining:
                del self._followers[job_id]
            if not self._followers:
                self._wanted.clear()

    async def _history(self, job_id: str, after: int, limit: int) -> Events:
        self._lifecycle.check_open()
        return await self._driver.events(after=after, job_id=job_id, limit=limit)

    async def _run(self) -> None:
        failures = 0
        try:
            while True:
                await self._wanted.wait()
                try:
                    async with self._driver.watch("events") as watch:
                        while self._followers:
                            if not await self._step():
                                failures = 0
                                await watch.wait(_SAFETY_S)
                        self._placed.clear()  # nobody follows, and nobody can begin to between the look and this
                        self._position = None
                except GroundplaneError as error:
                    self._lifecycle.check_open()
                    failures += 1
                    _log.warning("job_feed_interrupted", code=error.code, error=error.message, failures=failures)
                    await asyncio.sleep(_BACKOFF.delay_s(failures))
        finally:
            self._placed.set()
            for subscriptions in self._followers.values():
                for one in subscriptions:
                    one.wake()

    async def _step(self) -> bool:
        """Read one page; whether there may be more at once."""
        if self._position is None:
            self._position = (await self._driver.events(after=0, limit=0)).last_id
            self._placed.set()
        page = await self._driver.events(after=self._position, limit=PAGE)
        for event in page.items:
            for subscription in self._followers.get(event.job_id, ()):
                subscription.offer(event)
                self.delivered += 1
        self._position = page.last_id
        return len(page.items) >= PAGE
