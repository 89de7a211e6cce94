"""A timeout that is used again and again: each call has its own time, however many share the timer."""

from __future__ import annotations

import asyncio

import pytest

from groundplane.bus.timeouts import Timeout

pytestmark = pytest.mark.anyio
LONG_S = 60.0


@pytest.mark.req("BUS-07.1")
async def test_a_call_that_takes_too_long_is_cancelled_also_when_the_timer_was_set_for_one_before() -> None:
    timeout = Timeout(0.05)
    with timeout:
        pass
    for _ in range(2):
        with pytest.raises(TimeoutError):
            with timeout:
                await asyncio.sleep(LONG_S)
        assert timeout.expired
    with timeout:
        await asyncio.sleep(0)
    assert not timeout.expired
    timeout.close()


async def test_a_call_that_is_in_time_is_left_alone_when_the_timer_of_one_before_rings() -> None:
    timeout = Timeout(LONG_S)
    with timeout:
        pass
    with timeout:
        timeout._look()  # as the timer of the call before would, long before this call's time is over
        await asyncio.sleep(0)
    assert not timeout.expired
    timeout.close()


async def test_cancelled_from_outside_it_stays_a_cancellation() -> None:
    timeout, inside = Timeout(LONG_S), asyncio.Event()

    async def wait() -> None:
        with timeout:
            inside.set()
            await asyncio.sleep(LONG_S)

    task = asyncio.create_task(wait())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not timeout.expired
    timeout.close()


async def test_a_timeout_error_of_the_call_itself_is_told_apart() -> None:
    timeout = Timeout(LONG_S)
    with pytest.raises(TimeoutError, match="its own"):
        with timeout:
            raise TimeoutError("its own")
    assert not timeout.expired
    timeout.close()
