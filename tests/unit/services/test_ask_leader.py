"""The caller's side of a single-active service."""

from __future__ import annotations

import itertools

import pytest

from groundplane.core.errors import Internal, InvalidArgument, Unavailable
from groundplane.services.leadership import ask_leader
from groundplane.testing import VirtualClock

pytestmark = pytest.mark.anyio


def _not_active(leader: str | None) -> Unavailable:
    return Unavailable("s: 'x' is not active", reason="not_active", details={"leader": leader})


@pytest.mark.req("LEAD-04.2")
async def test_a_standby_is_asked_no_more_than_once_before_the_leader_it_names() -> None:
    asked: list[str | None] = []

    async def call(leader: str | None) -> str:
        asked.append(leader)
        if leader != "a":
            raise _not_active("a")
        return "done"

    with VirtualClock().drives():
        assert await ask_leader(call) == "done"
    assert asked == [None, "a"]


@pytest.mark.req("LEAD-04.2")
async def test_waits_double_from_100_ms_to_1_s_and_it_gives_up_after_10_s() -> None:
    clock = VirtualClock()
    moments: list[float] = []

    async def call(leader: str | None) -> None:
        moments.append(clock.monotonic())
        raise _not_active(None)

    with clock.drives(), pytest.raises(Unavailable) as caught:
        await ask_leader(call, clock=clock, rand=lambda: 1.0)
    assert caught.value.reason == "not_active"
    waits = [round(after - before, 3) for before, after in itertools.pairwise(moments)]
    assert waits[:5] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert set(waits[5:]) == {1.0}
    assert 9.0 <= moments[-1] <= 10.0


@pytest.mark.req("LEAD-04.2")
async def test_waits_are_jittered_and_end_with_the_callers_deadline() -> None:
    clock = VirtualClock()
    moments: list[float] = []

    async def call(leader: str | None) -> None:
        moments.append(clock.monotonic())
        raise _not_active(None)

    with clock.drives(), pytest.raises(Unavailable):
        await ask_leader(call, deadline_at=clock.now_ms() + 1500, clock=clock, rand=lambda: 0.5)
    assert [round(one, 3) for one in moments] == [0.0, 0.05, 0.15, 0.35, 0.75, 1.25]


@pytest.mark.req("LEAD-04.2")
async def test_a_leader_that_died_just_now_is_asked_for_anew() -> None:
    asked: list[str | None] = []

    async def call(leader: str | None) -> str:
        asked.append(leader)
        if len(asked) == 1:
            raise _not_active("dead")
        if len(asked) == 2:
            raise Unavailable("s: nobody is there", reason="no_responder")
        return "done"

    with VirtualClock().drives():
        assert await ask_leader(call) == "done"
    assert asked == [None, "dead", None]


@pytest.mark.req("LEAD-04.3")
@pytest.mark.parametrize(
    "error", [Internal("it broke", reason="execution_error"), Unavailable("away", reason="connection_lost")]
)
async def test_everything_else_is_the_answer(error: Exception) -> None:
    asked = 0

    async def call(leader: str | None) -> None:
        nonlocal asked
        asked += 1
        raise error

    with pytest.raises(type(error)) as caught:
        await ask_leader(call)
    assert caught.value is error
    assert asked == 1


@pytest.mark.parametrize("timeout_s", [-1, float("inf"), "5", True])
async def test_a_timeout_that_is_none_is_refused(timeout_s: float) -> None:
    async def call(leader: str | None) -> None:
        raise AssertionError("asked")

    with pytest.raises(InvalidArgument, match=r"^timeout_s: "):
        await ask_leader(call, timeout_s=timeout_s)
