"""Many deadlines on one timer: each passes once, in its time, and what is dropped does not."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from groundplane.core.deadline_timer import DeadlineTimer


class Handle:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, int, Handle, Callable[[], None]]] = []
        self._numbers = count()

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> Handle:
        handle = Handle()
        heapq.heappush(self._timers, (at, next(self._numbers), handle, call))
        return handle

    @property
    def set_timers(self) -> int:
        return sum(not handle.cancelled for _, _, handle, _ in self._timers)

    def pass_until(self, at: float) -> None:
        while self._timers and self._timers[0][0] <= at:
            due, _, handle, call = heapq.heappop(self._timers)
            self.now = max(self.now, due)
            if not handle.cancelled:
                call()
        self.now = at


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    one = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: one)
    return one


def test_each_passes_once_in_its_time_whatever_the_order_in_which_they_were_set(loop: Loop) -> None:
    passed: list[tuple[str, float]] = []
    timer: DeadlineTimer[str] = DeadlineTimer(lambda key: passed.append((key, loop.now)))
    for key, at in (("b", 105.0), ("c", 109.0), ("a", 101.0), ("d", 109.0)):
        timer.set(key, at)
    loop.pass_until(104.0)
    assert passed == [("a", 101.0)]
    loop.pass_until(200.0)
    assert passed == [("a", 101.0), ("b", 105.0), ("c", 109.0), ("d", 109.0)]
    assert loop.set_timers == 0


def test_what_is_dropped_or_cleared_does_not_pass_and_what_is_set_later_does(loop: Loop) -> None:
    passed: list[str] = []
    timer: DeadlineTimer[str] = DeadlineTimer(passed.append)
    timer.set("dropped", 101.0)
    timer.set("kept", 102.0)
    timer.drop("dropped")
    timer.drop("unknown")
    loop.pass_until(103.0)
    timer.set("cleared", 104.0)
    timer.clear()
    assert loop.set_timers == 0
    timer.set("after", 105.0)
    loop.pass_until(110.0)
    assert passed == ["kept", "after"]


def test_one_timer_serves_any_number_of_deadlines_that_come_later_than_its_own(loop: Loop) -> None:
    timer: DeadlineTimer[int] = DeadlineTimer(lambda _: None)
    for number in range(1000):
        timer.set(number, 105.0 + number)
        timer.drop(number)
    assert loop.set_timers == 1


def test_a_deadline_that_is_set_while_another_passes_is_kept(loop: Loop) -> None:
    passed: list[int] = []

    def again(key: int) -> None:
        passed.append(key)
        if key < 3:
            timer.set(key + 1, loop.now + 1)

    timer: DeadlineTimer[Any] = DeadlineTimer(again)
    timer.set(1, 101.0)
    loop.pass_until(200.0)
    assert passed == [1, 2, 3]
