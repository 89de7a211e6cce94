"""Lifecycle: closing is idempotent, bounded, staged, and possible while calls are blocked."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from groundplane.core.errors import Closed
from groundplane.core.lifecycle import Lifecycle

pytestmark = [pytest.mark.anyio, pytest.mark.req("CORE-03")]


async def test_a_blocked_call_ends_with_closed_as_soon_as_the_object_closes() -> None:
    lifecycle = Lifecycle("thing")
    call = asyncio.create_task(lifecycle.run(asyncio.Event().wait()))
    await asyncio.sleep(0)
    await lifecycle.aclose()
    with pytest.raises(Closed, match=r"^thing: "):
        await call


async def test_every_call_after_closing_raises_closed() -> None:
    lifecycle = Lifecycle("thing")
    await lifecycle.aclose()
    with pytest.raises(Closed):
        lifecycle.check_open()
    call = asyncio.sleep(0)
    with pytest.raises(Closed):
        await lifecycle.run(call)
    call.close()
    with pytest.raises(Closed):
        lifecycle.spawn(asyncio.sleep(0), name="late")


async def test_closing_twice_at_once_closes_once() -> None:
    lifecycle, closed = Lifecycle("thing"), []

    async def closer() -> None:
        await asyncio.sleep(0.01)
        closed.append(1)

    lifecycle.on_close(closer)
    await asyncio.gather(lifecycle.aclose(), lifecycle.aclose())
    await lifecycle.aclose()
    assert closed == [1]


async def test_the_stop_is_staged_tasks_within_the_grace_then_cancelled_then_closers_last_first() -> None:
    lifecycle, order = Lifecycle("thing"), []

    async def quick() -> None:
        await lifecycle.stopping.wait()
        order.append("quick finished")

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("stubborn cancelled")

    async def first() -> None:
        order.append("first closer")

    async def second() -> None:
        order.append("second closer")

    lifecycle.on_close(first)
    lifecycle.on_close(second)
    lifecycle.spawn(quick(), name="quick")
    lifecycle.spawn(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    await lifecycle.aclose(grace_s=0.05)
    assert order == ["quick finished", "stubborn cancelled", "second closer", "first closer"]


async def test_a_task_that_will_not_end_does_not_hold_up_the_closing_for_ever() -> None:
    lifecycle = Lifecycle("thing", close_timeout_s=0.1)
    release, closed = asyncio.Event(), []

    async def deaf() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async def closer() -> None:
        closed.append(1)

    lifecycle.on_close(closer)
    task = lifecycle.spawn(deaf(), name="deaf")
    await asyncio.sleep(0)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await lifecycle.aclose()
    assert time.monotonic() - began < 5
    assert closed == [1]
    release.set()
    await task


async def test_a_closer_that_fails_does_not_keep_the_others_from_their_turn() -> None:
    lifecycle, closed = Lifecycle("thing"), []

    async def good() -> None:
        closed.append("good")

    async def bad() -> None:
        raise RuntimeError("stuck")

    lifecycle.on_close(good)
    lifecycle.on_close(bad)
    with pytest.raises(ExceptionGroup, match="thing: closing failed"):
        await lifecycle.aclose()
    assert closed == ["good"]


async def test_the_failure_of_a_task_is_kept_for_readiness_to_report() -> None:
    lifecycle = Lifecycle("thing")

    async def fails() -> None:
        raise RuntimeError("lost")

    task = lifecycle.spawn(fails(), name="fails")
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert isinstance(lifecycle.failure, RuntimeError)
    await lifecycle.aclose()


async def test_a_cancelled_call_is_cancelled_and_not_swallowed() -> None:
    lifecycle = Lifecycle("thing")
    call = asyncio.create_task(lifecycle.run(asyncio.Event().wait()))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await lifecycle.aclose()


async def test_cancelling_who_waits_for_the_closing_does_not_stop_the_closing() -> None:
    lifecycle, closed = Lifecycle("thing"), asyncio.Event()

    async def closer() -> None:
        await asyncio.sleep(0.02)
        closed.set()

    lifecycle.on_close(closer)
    waiting = asyncio.create_task(lifecycle.aclose())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await lifecycle.aclose()
    assert closed.is_set()


async def test_the_repr_tells_the_state() -> None:
    lifecycle = Lifecycle("thing")
    assert "open" in repr(lifecycle)
    await lifecycle.aclose()
    assert "closed" in repr(lifecycle)
