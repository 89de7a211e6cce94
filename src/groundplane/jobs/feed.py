"""One reader of the event log for all followers of this process.

A follower reads its job's history from the store where it needs that, then gets what the one reader finds. It holds
at most `BUFFER_MAX` events; one that falls behind drops them and reads the store again from where it stands: slow
followers are bounded and miss nothing, the final event least of all. Ids only rise, so what comes twice is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from groundplane.core.errors import GroundplaneError, Internal
from groundplane.core.lifecycle import Lifecycle
from groundplane.core.retry import RetryPolicy
from groundplane.jobs.port import Events, Job, JobEvent, JobStore
from groundplane.telemetry.logs import get_logger

BUFFER_MAX = 256
PAGE = 500
_SAFETY_S = 5.0
_BACKOFF = RetryPolicy(attempts=1_000_000, base_s=0.05, cap_s=2.0)
_log = get_logger("jobs")

Read = Callable[[str, int, int], Awaitable[Events]]


class Subscription:
    """The events of one job after an id, in order, without a gap. One reader at a time; cancelling a wait is safe."""

    def __init__(self, job_id: str, after: int, read: Read, check: Callable[[], None], *, behind: bool) -> None:
        self.job_id = job_id
        self.seen = after
        self._read = read
        self._check = check
        self._fresh: deque[JobEvent] = deque()
        self._behind = behind
        self._changed = asyncio.Event()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended

    def offer(self, event: JobEvent) -> None:
        """Take an event from the reader; never blocks, never grows beyond `BUFFER_MAX`."""
        if len(self._fresh) >= BUFFER_MAX:
            self.fall_behind()
        elif not self._behind:
            self._fresh.append(event)
        self._changed.set()

    def fall_behind(self) -> None:
        """Read the store next."""
        self._fresh.clear()
        self._behind = True
        self._changed.set()

    def end(self) -> None:
        """Let the waiting reader go, for good."""
        self._ended = True
        self._changed.set()

    def wake(self) -> None:
        """Let the waiting reader look again."""
        self._changed.set()

    async def batch(self, timeout_s: float | None = None) -> list[JobEvent]:
        """The next events; an empty list after `timeout_s` seconds of silence, or once ended. Raises `closed`."""
        events = await self.ready()
        if events or self._ended:
            return events
        try:
            async with asyncio.timeout(timeout_s):
                while not events and not self._ended:
                    self._check()
                    await self._changed.wait()
                    events = await self.ready()
        except TimeoutError:
            return []
        return events

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
            self.fall_behind()
            raise
        if len(page.items) >= PAGE:
            self.fall_behind()
        self.seen = max(self.seen, page.last_id if page.items else 0)
        return page.items


class Feed:
    """Reads the log while somebody follows, and hands each event to the followers of its job; or final ones alone."""

    def __init__(self, driver: JobStore, lifecycle: Lifecycle, *, final: bool = False) -> None:
        self._final = final
        self._driver = driver
        self._lifecycle = lifecycle
        self._followers: dict[str, set[Subscription]] = {}
        self._position = 0
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._heard_at = 0.0
        self.delivered = 0

    def deaf_s(self) -> float:
        """For how many seconds somebody has followed and the log was not read: 0 where nobody follows. It is read
        every five seconds at the latest.
        """
        return asyncio.get_running_loop().time() - self._heard_at if self._followers else 0.0

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

    @contextmanager
    def subscribe(self, job: Job, after: int) -> Iterator[Subscription]:
        """Follow a job from the id `after`. `job` must have been read before; nothing since is missed."""
        if self._task is None or self._task.done():
            self._task = self._lifecycle.spawn(self._run(), name="feed")
        if not self._followers:
            self._heard_at = asyncio.get_running_loop().time()
            self._position = max(self._position, job.last_event_id)
        # what comes after a position that is not ahead of `after` is handed over: then there is no history to read
        behind = after < self._position
        subscription = Subscription(job.job_id, after, self._history, self.check, behind=behind)
        self._followers.setdefault(job.job_id, set()).add(subscription)
        self._wanted.set()
        try:
            yield subscription
        finally:
            remaining = self._followers[job.job_id]
            remaining.discard(subscription)
            if not remaining:
                del self._followers[job.job_id]
            if not self._followers:
                self._wanted.clear()

    async def _history(self, job_id: str, after: int, limit: int) -> Events:
        self._lifecycle.check_open()
        return await self._driver.events(after=after, job_id=job_id, limit=limit, final=self._final)

    async def _run(self) -> None:
        failures = 0
        try:
            while True:
                try:
                    async with self._driver.watch("ends" if self._final else "events") as watch:
                        await self._step()  # what came before the watch
                        while True:
                            await self._wanted.wait()
                            await watch.wait(_SAFETY_S)  # at once where it was rung while nobody followed
                            await self._step()
                            failures = 0
                except GroundplaneError as error:
                    self._lifecycle.check_open()
                    failures += 1
                    _log.warning("job_feed_interrupted", code=error.code, error=error.message, failures=failures)
                    await asyncio.sleep(_BACKOFF.delay_s(failures))
        finally:
            for one in self._everybody():
                one.wake()

    async def _step(self) -> None:
        """Read what is new; where that is more than a page, everybody reads for himself, from the newest on."""
        page = await self._driver.events(after=self._position, limit=PAGE, final=self._final)
        self._heard_at = asyncio.get_running_loop().time()
        if len(page.items) >= PAGE:
            self._position = (await self._driver.events(after=0, limit=0)).last_id
            for one in self._everybody():
                one.fall_behind()
            return
        for event in page.items:
            for subscription in self._followers.get(event.job_id, ()):
                subscription.offer(event)
                self.delivered += 1
        self._position = max(self._position, page.last_id)

    def _everybody(self) -> list[Subscription]:
        return [one for members in self._followers.values() for one in members]
