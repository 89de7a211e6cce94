"""Elections that an App declares."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane import App
from groundplane.core.errors import FailedPrecondition, InvalidArgument, Unavailable
from groundplane.core.fencing import Fence
from groundplane.kv import KV
from groundplane.services.leadership import Policy, SingleActive
from groundplane.testing import eventually

pytestmark = pytest.mark.anyio

PATIENT = Policy(lease_s=30.0)


@pytest.fixture
async def kv(tmp_path: Path) -> AsyncIterator[KV]:
    async with KV.open("embedded://", state=tmp_path) as kv:
        yield kv


@pytest.mark.req("LEAD-04.1", "LEAD-02")
async def test_a_declared_handler_is_served_by_the_leader_alone_and_has_its_fence(kv: KV) -> None:
    here, there = App("acme").single_active("desk", policy=PATIENT), SingleActive("desk", PATIENT)

    @here
    async def place(size: int) -> tuple[int, Fence]:
        return size, here.fence()

    @there
    async def place_there(size: int) -> int:
        return size

    assert list(inspect.signature(place).parameters) == ["size"]
    async with here.open(kv, member="a") as leadership:
        term = await leadership.elected()
        assert await place(5) == (5, Fence("desk", term))
        async with there.open(kv, member="b") as standby:
            await eventually(lambda: standby.leader() is not None)
            with pytest.raises(Unavailable) as caught:
                await place_there(5)
            assert (caught.value.reason, caught.value.details["leader"]) == ("not_active", "a")


@pytest.mark.req("LEAD-03.2")
async def test_declared_work_runs_while_its_process_leads(kv: KV) -> None:
    desk = App("acme").single_active("desk", policy=PATIENT)
    other = SingleActive("desk", PATIENT)
    ran: list[str] = []

    @desk.work
    async def quote(fence: Fence) -> None:
        ran.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            ran.append("ended")

    @other.work
    async def quote_there(fence: Fence) -> None:
        ran.append(f"there {fence.term > first}")

    async with other.open(kv, member="b") as holder:
        first = await holder.elected()
        async with desk.open(kv, member="a"):
            assert "began" not in ran
            await holder.resign()
            await eventually(lambda: "began" in ran)
        assert ran[-1] == "ended"


async def test_what_a_work_raises_ends_the_block(kv: KV) -> None:
    desk = SingleActive("desk", PATIENT)

    @desk.work
    async def broken(fence: Fence) -> None:
        raise ValueError("no such desk")

    with pytest.raises(ExceptionGroup) as caught:
        async with desk.open(kv):
            await asyncio.Event().wait()
    assert caught.group_contains(ValueError, match="no such desk")
    assert "not open" in repr(desk)


async def test_an_election_that_is_not_open_or_twice_is_refused(kv: KV) -> None:
    desk = SingleActive("desk", PATIENT)

    @desk
    async def place() -> None:
        raise AssertionError("served")

    with pytest.raises(FailedPrecondition, match="'desk' is not open"):
        await place()
    async with desk.open(kv):
        with pytest.raises(FailedPrecondition, match="open already"):
            async with desk.open(kv):
                raise AssertionError("opened")


def test_mistakes_are_seen_where_they_are_declared() -> None:
    app = App("acme")
    desk = app.single_active("desk")
    assert app.elections == {"desk": desk}
    with pytest.raises(InvalidArgument, match=r"declared twice, first at .*test_single_active"):
        app.single_active("desk")
    with pytest.raises(InvalidArgument, match=r"^policy: "):
        app.single_active("other", policy="brave")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"^name: "):
        app.single_active("no name")
    with pytest.raises(InvalidArgument, match=r"^handler: "):
        desk(lambda: 1)  # type: ignore[arg-type,return-value]
    with pytest.raises(InvalidArgument, match=r"^work: "):
        desk.work(lambda fence: None)  # type: ignore[arg-type,return-value]
