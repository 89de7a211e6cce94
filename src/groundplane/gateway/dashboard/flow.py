"""How work flows through the actors: rates, failures and latency of the last minutes, read from the jobs' log.

The log is where every sidecar of every machine tells what it does, so one reader in this process sees all of them,
whatever the stores are. It reads while somebody looks at the dashboard, and ten minutes longer; when it begins it reads
the log's end first, so that there is a history at once. All of it is bounded: so many actors, so many points of time,
a histogram of latency at each.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import GroundplaneError
from groundplane.core.lifecycle import Lifecycle
from groundplane.jobs import Jobs
from groundplane.jobs.port import JobEvent
from groundplane.queues import Queues
from groundplane.queues.port import Depth
from groundplane.telemetry.logs import get_logger

STEP_S = 5
POINTS = 72
"""Six minutes in steps of five seconds."""
ACTORS_MAX = 200
OPEN_MAX = 20_000
TICK_S = 2.0
IDLE_S = 600.0
BACKFILL_IDS = 10_000
PAGE = 1000
PAGES_A_TICK = 10
BOUNDS = tuple(0.001 * 1.35**n for n in range(48))
"""Seconds, from a millisecond to twenty minutes: a quantile is told to within a third of itself, mostly better."""
_log = get_logger("dashboard")


@dataclass
class Point:
    """What one actor did in one step of time."""

    received: int = 0
    completed: int = 0
    failed: int = 0
    retried: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))


class Track:
    """One actor's steps, newest last, and the depth of its queue at some moments."""

    def __init__(self) -> None:
        self.points: OrderedDict[int, Point] = OrderedDict()
        self.depths: deque[tuple[int, int]] = deque(maxlen=POINTS)

    def at(self, moment_ms: int) -> Point:
        """The step that a moment is in."""
        step = moment_ms // (STEP_S * 1000)
        point = self.points.get(step)
        if point is None:
            point = self.points[step] = Point()
            while len(self.points) > POINTS:
                self.points.pop(min(self.points))
        return point

    def series(self, now_ms: int) -> dict[str, list[Any]]:
        """The last minutes, a value for each step; the step that is not over yet is left out."""
        last = now_ms // (STEP_S * 1000) - 1
        steps = range(last - POINTS + 2, last + 1)
        depths = {moment // (STEP_S * 1000): depth for moment, depth in self.depths}
        points = [self.points.get(step) or Point() for step in steps]
        return {
            "time": [step * STEP_S for step in steps],
            "rate": [point.completed / STEP_S for point in points],
            "failed": [(point.failed + point.retried) / STEP_S for point in points],
            "p50": [quantile(point.latency, 0.5) for point in points],
            "p95": [quantile(point.latency, 0.95) for point in points],
            "depth": [depths.get(step) for step in steps],
        }

    def lately(self, now_ms: int, seconds: int = 60) -> dict[str, Any]:
        """The last minute in a few numbers."""
        first = (now_ms - seconds * 1000) // (STEP_S * 1000)
        points = [point for step, point in self.points.items() if step >= first]
        latency = [sum(counts) for counts in zip(*(point.latency for point in points), strict=True)]
        return {
            "rate": sum(point.completed for point in points) / seconds,
            "failed": sum(point.failed for point in points),
            "retried": sum(point.retried for point in points),
            "p50": quantile(latency, 0.5),
            "p95": quantile(latency, 0.95),
        }


def quantile(counts: list[int], share: float) -> float | None:
    """The upper bound of the bucket that holds it, in seconds; None of nothing."""
    total = sum(counts)
    if not total:
        return None
    wanted, seen = math.ceil(total * share), 0
    for index, count in enumerate(counts):
        seen += count
        if seen >= wanted:
            return BOUNDS[min(index, len(BOUNDS) - 1)]
    raise AssertionError("the counts add up to their total")


class Flow:
    """The tracks of all actors. `wanted` keeps it reading."""

    def __init__(self, jobs: Jobs, queues: Queues, lifecycle: Lifecycle, clock: Clock = SYSTEM_CLOCK) -> None:
        self._jobs = jobs
        self._queues = queues
        self._lifecycle = lifecycle
        self._clock = clock
        self._tracks: dict[str, Track] = {}
        self._begun: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._position: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()  # of several that look at once, one reads for all
        self._until = 0.0
        self.depths: dict[str, Depth] = {}
        self.troubles: dict[str, str] = {}
        self.partial = False
        """Whether the log was faster than the reader, so that rates are lower bounds."""

    async def wanted(self) -> None:
        """Somebody looks: read for another ten minutes; what there is now has been read when this returns."""
        self._until = self._clock.monotonic() + IDLE_S
        async with self._starting:
            if self._task is None or self._task.done():
                self._position, self.depths = None, {}
                self._tracks, self._begun = {}, OrderedDict()  # the log's end is read again
                await self._tick()
                self._task = self._lifecycle.spawn(self._run(), name="dashboard:flow")

    def track(self, actor: str) -> Track:
        """One actor's; an empty one where nothing is known."""
        return self._tracks.get(actor) or Track()

    def now_ms(self) -> int:
        """The time that series end at."""
        return self._clock.now_ms()

    async def _run(self) -> None:
        while self._clock.monotonic() < self._until:
            await asyncio.sleep(TICK_S)
            await self._tick()

    async def _tick(self) -> None:
        try:
            await self._read_log()
            await self._count()
        except GroundplaneError as error:  # what is away is on the health page; the tracks go on when it is back
            if error.code == "closed":
                raise
            _log.warning("dashboard_flow_interrupted", code=error.code, error=error.message)

    async def _read_log(self) -> None:
        if self._position is None:
            newest = (await self._jobs.events(limit=0)).last_id
            self._position = max(0, newest - BACKFILL_IDS)
        for _ in range(PAGES_A_TICK):
            page = await self._jobs.events(self._position, None, PAGE)
            for event in page.items:
                self.take(event)
            self._position = max(self._position, page.last_id)
            if len(page.items) < PAGE:
                self.partial = False
                return
        newest = (await self._jobs.events(limit=0)).last_id
        if newest - self._position > PAGE:
            self._position, self.partial = newest, True

    async def _count(self) -> None:
        now = self._clock.now_ms()
        names = [spec.name for spec in await self._queues.queues()][:ACTORS_MAX]
        turn = asyncio.Semaphore(8)

        async def count(name: str) -> Depth | GroundplaneError:
            async with turn:
                try:
                    return await self._queues.depth(name)
                except GroundplaneError as error:
                    return error

        found = dict(zip(names, await asyncio.gather(*map(count, names)), strict=True))
        self.depths = {name: one for name, one in found.items() if isinstance(one, Depth)}
        self.troubles = {name: one.message for name, one in found.items() if isinstance(one, GroundplaneError)}
        for name, depth in self.depths.items():
            track = self._track(name)
            if track is not None and (not track.depths or now - track.depths[-1][0] >= STEP_S * 1000):
                track.depths.append((now, depth.total))

    def take(self, event: JobEvent) -> None:
        """One event of the log."""
        data, kind = event.data, event.kind
        track = self._track(str(data.get("actor") or ""))
        if track is None:
            return
        if kind == "retry":
            track.at(event.created_at).retried += 1
        elif kind == "dead_letter":
            track.at(event.created_at).failed += 1
        elif kind == "progress":
            self._hop(track, event)

    def _hop(self, track: Track, event: JobEvent) -> None:
        key, status = (str(event.data.get("envelope_id")), int(event.data.get("hop", 0))), event.data.get("status")
        if status == "received":
            track.at(event.created_at).received += 1
            self._begun[key] = event.created_at
            if len(self._begun) > OPEN_MAX:
                self._begun.popitem(last=False)
        elif status == "completed":
            point = track.at(event.created_at)
            point.completed += 1
            began = self._begun.pop(key, None)
            if began is not None:
                point.latency[bisect_right(BOUNDS, (event.created_at - began) / 1000)] += 1

    def _track(self, actor: str) -> Track | None:
        found = self._tracks.get(actor)
        if found is None and actor and len(self._tracks) < ACTORS_MAX:
            found = self._tracks[actor] = Track()
        return found
