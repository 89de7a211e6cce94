"""Waiting with a bound, things at once, unique names, and a clock that tests move."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from groundplane.core.clock import Clock
from groundplane.core.errors import InvalidArgument
from groundplane.testing import NotInTime, VirtualClock, eventually, together, unique, wait_until
from pace import at_most

pytestmark = [pytest.mark.anyio, pytest.mark.req("KIT-08")]


async def test_eventually_gives_the_first_true_value_of_either_kind_of_condition() -> None:
    looks = iter([0, "", None, "there", "later"])

    async def look() -> object:
        return next(looks)

    assert await eventually(look) == "there"
    assert await eventually(lambda: next(looks)) == "later"


async def test_eventually_says_what_did_not_happen_and_what_was_seen_last() -> None:
    with pytest.raises(NotInTime, match=r"^not within 0.05 s: the queue is empty; the last look gave 0$"):
        await eventually(lambda: 0, "the queue is empty", timeout_s=0.05)
    with pytest.raises(NotInTime, match=r"lambda: \[None\]"):
        await eventually(lambda: [None][:0], timeout_s=0.01)


async def test_eventually_is_bounded_also_where_the_condition_hangs() -> None:
    start = time.monotonic()
    with pytest.raises(NotInTime):
        await eventually(asyncio.Event().wait, timeout_s=0.1)
    assert time.monotonic() - start < at_most(2)


async def test_eventually_counts_tolerated_errors_as_not_yet_and_raises_others() -> None:
    errors = iter([ConnectionError("away"), ConnectionError("away"), None])

    def look() -> bool:
        error = next(errors, KeyError("gone"))
        if error is not None:
            raise error
        return True

    assert await eventually(look, tolerate=(ConnectionError,))
    with pytest.raises(KeyError):
        await eventually(look, tolerate=(ConnectionError,))

    def away() -> bool:
        raise ConnectionError("still away")

    with pytest.raises(NotInTime, match="still away") as caught:
        await eventually(away, timeout_s=0.01, tolerate=(ConnectionError,))
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_a_timeout_of_the_condition_itself_is_not_taken_for_ours() -> None:
    async def look() -> bool:
        raise TimeoutError("the server's")

    with pytest.raises(TimeoutError, match="the server's"):
        await eventually(look)


def test_wait_until_is_the_same_for_synchronous_code() -> None:
    looks = iter([0, 0, 7])
    assert wait_until(lambda: next(looks)) == 7
    with pytest.raises(NotInTime, match="never"):
        wait_until(lambda: None, "never", timeout_s=0.02)


async def test_together_begins_all_before_any_ends_and_gives_each_outcome() -> None:
    running = most = 0

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        if number == 3:
            raise ValueError("three")
        return number

    outcomes = await together(5, call)
    assert most == 5
    assert outcomes[:3] == [0, 1, 2]
    assert isinstance(outcomes[3], ValueError)


async def test_together_cancelled_leaves_none_running() -> None:
    ended = 0

    async def call(_: int) -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1

    task = asyncio.create_task(together(4, call))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == 4


def test_unique_names_are_unique_over_threads() -> None:
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(lambda _: unique("q"), range(1000)))
    assert len(set(names)) == 1000
    assert all(name.startswith("q-") and len(name) < 40 for name in names)


async def test_a_virtual_clock_stands_still_until_it_is_advanced_and_wakes_sleepers_in_order() -> None:
    clock = VirtualClock(now_ms=1000)
    as_clock: Clock = clock
    woken: list[int] = []

    async def sleeper(seconds: int) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(n)) for n in (3, 1, 2)]
    await eventually(lambda: clock.sleeping == 3)
    clock.advance(2)
    await eventually(lambda: woken == [1, 2])
    assert (as_clock.now_ms(), as_clock.monotonic(), clock.sleeping) == (3000, 2.0, 1)
    clock.advance(1)
    await asyncio.gather(*tasks)
    with pytest.raises(InvalidArgument, match="seconds"):
        clock.advance(-1)


@pytest.mark.req("KIT-06.3")
def test_the_wall_clock_jumps_without_time_passing() -> None:
    clock = VirtualClock(now_ms=10_000_000)
    clock.jump(-3600)
    assert (clock.now_ms(), clock.monotonic()) == (6_400_000, 0.0)


async def test_timers_of_a_driven_loop_take_no_real_time_and_keep_their_order() -> None:
    clock, start, seen = VirtualClock(), time.monotonic(), []

    async def after(seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append(seconds)

    with clock.drives():
        await asyncio.gather(after(7200), after(60), after(3600))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(86_400):
                await asyncio.Event().wait()
    assert seen == [60, 3600, 7200]
    assert clock.monotonic() == pytest.approx(93_600, abs=1)
    assert time.monotonic() - start < 5
    before = time.monotonic()
    await asyncio.sleep(0.02)
    assert time.monotonic() - before >= 0.02
