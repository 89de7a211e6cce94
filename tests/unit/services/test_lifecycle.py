"""The states of a service, in order, with hooks, whatever fails."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from groundplane.core.errors import DeadlineExceeded, FailedPrecondition
from groundplane.services.lifecycle import NEXT, LifeState, ServiceLifecycle

pytestmark = [pytest.mark.anyio, pytest.mark.req("SVC-06")]


def recorded(life: ServiceLifecycle, *names: str) -> list[str]:
    """A list that every entered state is written to, by a hook for each of `names`."""
    seen: list[str] = []
    for state, name in itertools.product(LifeState, names):
        if state is not LifeState.INITIALIZING:
            life.on(state, lambda state=state, name=name: seen.append(f"{state.value} {name}".strip()))  # type: ignore[misc]
    return seen


async def test_a_life_goes_through_every_state_and_runs_its_hooks() -> None:
    life = ServiceLifecycle("quotes")
    seen = recorded(life, "")
    assert life.state is LifeState.INITIALIZING
    await life.start()
    assert life.state is LifeState.STARTED
    await life.stop()
    assert seen == ["STARTING", "STARTED", "STOPPING", "STOPPED"]
    assert (life.state, life.failure) == (LifeState.STOPPED, None)


async def test_hooks_of_a_stop_run_in_reverse_order() -> None:
    life = ServiceLifecycle("quotes")
    seen = recorded(life, "1", "2")
    await life.start()
    await life.stop()
    assert seen == [
        "STARTING 1", "STARTING 2", "STARTED 1", "STARTED 2", "STOPPING 2", "STOPPING 1", "STOPPED 2", "STOPPED 1",
    ]  # fmt: skip


async def test_coroutine_functions_are_awaited_before_the_next_state() -> None:
    life = ServiceLifecycle("quotes")
    gate = asyncio.Event()

    @lambda hook: life.on(LifeState.STARTING, hook)
    async def connect() -> None:
        await gate.wait()

    starting = asyncio.create_task(life.start())
    assert await life.wait(LifeState.STARTING) is LifeState.STARTING
    gate.set()
    await starting
    assert life.state is LifeState.STARTED
    await life.stop()


async def test_a_start_that_fails_stops_what_was_started_and_ends_failed() -> None:
    life = ServiceLifecycle("quotes")
    seen = recorded(life, "")
    error = RuntimeError("no database")

    def connect() -> None:
        raise error

    life.on(LifeState.STARTING, connect)
    with pytest.raises(RuntimeError) as caught:
        await life.start()
    assert caught.value is error
    assert life.failure is error
    assert seen == ["STARTING", "STOPPING", "FAILED"]
    await life.stop()
    assert life.state is LifeState.FAILED


async def test_a_stop_that_fails_runs_the_other_hooks_and_ends_failed() -> None:
    life = ServiceLifecycle("quotes")
    seen = recorded(life, "1", "2")

    def broken() -> None:
        raise RuntimeError("cannot flush")

    life.on(LifeState.STOPPING, broken)
    await life.start()
    with pytest.raises(ExceptionGroup, match="quotes: stopping failed") as caught:
        await life.stop()
    assert [str(one) for one in caught.value.exceptions] == ["cannot flush"]
    assert seen[-4:] == ["STOPPING 2", "STOPPING 1", "FAILED 2", "FAILED 1"]


async def test_a_failure_at_work_runs_the_hooks_of_the_stop_and_ends_failed() -> None:
    life = ServiceLifecycle("quotes")
    seen = recorded(life, "")
    await life.start()
    error = RuntimeError("out of quotes")
    await asyncio.gather(life.fail(error), life.stop())
    assert seen == ["STARTING", "STARTED", "STOPPING", "FAILED"]
    assert life.failure is error


async def test_stopping_before_the_start_is_legal_and_final() -> None:
    life = ServiceLifecycle("quotes")
    seen = recorded(life, "")
    await life.stop()
    assert (life.state, seen) == (LifeState.STOPPED, ["STOPPED"])
    with pytest.raises(FailedPrecondition) as caught:
        await life.start()
    assert caught.value.reason == "lifecycle"


async def test_stopping_during_the_start_cancels_it() -> None:
    life = ServiceLifecycle("quotes")
    seen = recorded(life, "")
    life.on(LifeState.STARTING, asyncio.Event().wait)
    starting = asyncio.create_task(life.start())
    await life.wait(LifeState.STARTING)
    await life.stop()
    with pytest.raises(FailedPrecondition):
        await starting
    assert seen == ["STARTING", "STOPPING", "STOPPED"]


async def test_concurrent_starts_and_stops_happen_once() -> None:
    life = ServiceLifecycle("quotes")
    seen = recorded(life, "")
    await asyncio.gather(*(life.start() for _ in range(5)))
    await asyncio.gather(*(life.stop() for _ in range(5)))
    assert seen == ["STARTING", "STARTED", "STOPPING", "STOPPED"]


async def test_a_start_that_takes_too_long_is_ended() -> None:
    life = ServiceLifecycle("quotes", start_timeout_s=0.05)
    life.on(LifeState.STARTING, asyncio.Event().wait)
    with pytest.raises(DeadlineExceeded):
        await life.start()
    assert life.state is LifeState.FAILED


async def test_a_hook_whose_own_time_is_up_is_not_taken_for_a_start_that_took_too_long() -> None:
    life = ServiceLifecycle("quotes")

    async def impatient() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    life.on(LifeState.STARTING, impatient)
    with pytest.raises(TimeoutError):
        await life.start()
    assert life.state is LifeState.FAILED


async def test_a_hook_of_a_stop_that_hangs_is_cut_off() -> None:
    life = ServiceLifecycle("quotes", stop_timeout_s=0.05)
    life.on(LifeState.STOPPING, asyncio.Event().wait)
    await life.start()
    with pytest.raises(ExceptionGroup) as caught:
        await life.stop()
    assert [type(one) for one in caught.value.exceptions] == [TimeoutError]


async def test_a_hook_for_a_state_that_never_comes_again_is_refused() -> None:
    life = ServiceLifecycle("quotes")
    await life.start()
    with pytest.raises(FailedPrecondition, match=r"^hook: quotes is STARTED, and never enters STARTING again"):
        life.on(LifeState.STARTING, lambda: None)
    await life.stop()


def test_nothing_follows_an_end() -> None:
    assert {state for state in LifeState if not NEXT[state]} == {state for state in LifeState if state.terminal}
    assert {state.value for state in LifeState if state.terminal} == {"STOPPED", "FAILED"}
