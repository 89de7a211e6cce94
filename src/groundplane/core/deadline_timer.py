"""Many deadlines on one timer of the loop: few are missed, and a timer for each costs more than what it guards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
_CLOSE_S = 0.001
"""Deadlines that are no further apart pass together."""


class DeadlineTimer(Generic[K]):
    """Calls `passed(key)` once for each key whose time has come, in the loop. Times are those of the loop's clock.

    The timer stands at the nearest deadline that was ever set since it went off last: setting a later one, and dropping
    any, touches no timer.
    """

    def __init__(self, passed: Callable[[K], None]) -> None:
        self._passed = passed
        self._loop = asyncio.get_running_loop()
        self._due: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def set(self, key: K, at: float) -> None:
        """`key` passes at `at`."""
        self._due[key] = at
        if at < self._timer_at:
            self._arm(at)

    def drop(self, key: K) -> None:
        """It does not pass any more. Idempotent."""
        self._due.pop(key, None)

    def clear(self) -> None:
        """None passes any more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, float("inf")

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        until = self._loop.time() + _CLOSE_S
        for key in [key for key, at in self._due.items() if at <= until]:
            if self._due.pop(key, None) is not None:
                self._passed(key)
        if self._due:
            nearest = min(self._due.values())
            if nearest < self._timer_at:
                self._arm(nearest)
