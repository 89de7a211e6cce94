"""A clock that a test moves, and timers that follow it.

clock = VirtualClock()
store = Store(clock=clock)
clock.advance(30)                 # 30 s later, at once
clock.jump(-3600)                 # somebody set the wall clock back; durations are not touched

with clock.drives():              # asyncio.sleep, timeout and call_later of this loop take no real time
    await asyncio.sleep(3600)
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from groundplane.core.errors import InvalidArgument

_START_MS = 1_700_000_000_000


class VirtualClock:
    """A `groundplane.core.clock.Clock` that stands still until it is moved. For one loop or one thread."""

    def __init__(self, now_ms: int = _START_MS) -> None:
        self._wall_ms = float(now_ms)
        self._monotonic = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return round(self._wall_ms)

    def monotonic(self) -> float:
        """Seconds since the clock was made; never goes back."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Time passes: both clocks go on, and those who sleep until then are woken in the order of their times."""
        if not seconds >= 0:
            raise InvalidArgument(f"seconds: {seconds!r} must be at least 0; to set the wall clock use jump()")
        self._monotonic += seconds
        self._wall_ms += seconds * 1000
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    def jump(self, seconds: float) -> None:
        """The wall clock is set forward or back; no time passes."""
        self._wall_ms += seconds * 1000

    async def sleep(self, seconds: float) -> None:
        """Until the clock was advanced by so much."""
        if seconds <= 0:
            return await asyncio.sleep(0)
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._numbers), future))
        await future
        return None

    @property
    def sleeping(self) -> int:
        """How many sleep."""
        return sum(not future.done() for _, _, future in self._sleepers)

    @contextmanager
    def drives(self, loop: asyncio.AbstractEventLoop | None = None) -> Iterator[None]:
        """The timers of the loop (None: the running one) follow this clock, which goes on to the next of them by
        itself whenever nothing else is to be done.

        For code that waits for time alone: work in threads and answers over sockets take real time, during which the
        timers would run away. Needs a loop of asyncio's own (with a selector).
        """
        chosen: Any = loop or asyncio.get_running_loop()
        selector = getattr(chosen, "_selector", None)
        if selector is None:
            raise InvalidArgument(f"loop: {chosen!r} has no selector; use a loop of asyncio's own")
        select, real, mine = selector.select, chosen.time(), self._monotonic

        def turn(timeout: float | None = None) -> Any:
            ready = select(0 if timeout is not None else None)
            if not ready and timeout:
                self.advance(timeout)
            return ready

        chosen.time = lambda: real + self._monotonic - mine
        selector.select = turn
        try:
            yield
        finally:
            del selector.select, chosen.time
