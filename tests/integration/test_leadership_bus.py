"""A service of which one instance acts, called over the bus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from groundplane import App
from groundplane.bus import Bus
from groundplane.bus.endpoints import start
from groundplane.cli import program
from groundplane.core.errors import GroundplaneError
from groundplane.core.fencing import Fence
from groundplane.kv import KV
from groundplane.services.leadership import Leadership, Policy, ask_leader
from groundplane.testing import eventually, unique

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PATIENT = Policy(lease_s=30.0)


@pytest.fixture(params=["embedded", pytest.param("nats", marks=pytest.mark.nats)])
def url(request: pytest.FixtureRequest) -> str:
    return "embedded://" if request.param == "embedded" else str(request.getfixturevalue("nats_url"))


class Place:
    """Where the instances of a test meet."""

    def __init__(self, url: str, state: Path) -> None:
        self.url, self.state, self.namespace = url, state, unique("desk")

    def bus(self, instance: str) -> Any:
        return Bus.open(self.url, name="desk", instance=instance, namespace=self.namespace, state=self.state)

    @asynccontextmanager
    async def instance(self, name: str) -> AsyncIterator[Leadership]:
        app = App("desk")
        desk = app.single_active("desk", policy=PATIENT)

        @app.rpc("desk.place")
        @desk
        async def place(size: int) -> list[Any]:
            fence: Fence = desk.fence()
            await kv.put(f"order/{size}", str(size).encode(), fence=fence)
            return [name, fence.term]

        @app.rpc("desk.fail")
        @desk
        async def fail() -> None:
            raise ValueError("no such order")

        async with AsyncExitStack() as stack:
            kv = await stack.enter_async_context(KV.open(self.url, namespace=self.namespace, state=self.state))
            bus = await stack.enter_async_context(self.bus(name))
            leadership = await stack.enter_async_context(desk.open(kv, member=name))
            await stack.enter_async_context(start(bus, app.endpoints, instance=name))
            yield leadership


@pytest.mark.req("LEAD-04.2")
async def test_a_request_from_the_shell_finds_whoever_leads(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(url, tmp_path)
    monkeypatch.setenv("GROUNDPLANE_BUS_URL", url)
    words = ["bus", "request", "desk.place", "size:=5", "--name", place.namespace, "--state", str(tmp_path)]
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(place.instance(name)) for name in ("a", "b", "c")]
        await eventually(lambda: all(one.leader() is not None for one in members))
        leading = next(one for one in members if one.is_active)
        for _ in range(3):  # each begins with another instance
            assert await asyncio.to_thread(program.run, words) == 0
            assert json.loads(capsys.readouterr().out) == [leading.member, leading.term]
        standby = next(one for one in members if not one.is_active)
        assert await asyncio.to_thread(program.run, [*words, "--instance", standby.member]) == 1
        assert "not_active" in capsys.readouterr().err


@pytest.mark.req("LEAD-04.1", "LEAD-04.2", "LEAD-04.3")
async def test_a_caller_finds_whoever_leads_and_finds_the_next_one_too(url: str, tmp_path: Path) -> None:
    place = Place(url, tmp_path)
    async with AsyncExitStack() as stack:
        members = {name: await stack.enter_async_context(place.instance(name)) for name in ("a", "b", "c")}
        await eventually(lambda: all(one.leader() is not None for one in members.values()))
        caller = await stack.enter_async_context(place.bus("caller"))
        asked: list[str] = []

        async def order(leader: str | None, size: int = 5) -> Any:
            try:
                return await caller.request("desk", "place", {"size": size}, instance=leader)
            except GroundplaneError as error:
                asked.append(error.reason)
                raise

        leading = next(one for one in members.values() if one.is_active)
        for size in range(6):  # in turn: standbys are asked too, and name the leader
            assert await ask_leader(lambda leader, size=size: order(leader, size)) == [leading.member, leading.term]
        assert set(asked) == {"not_active"}
        await leading.resign()
        name, term = await ask_leader(order)
        assert name != leading.member
        assert term == members[name].term

        with pytest.raises(GroundplaneError) as caught:
            await ask_leader(lambda leader: caller.request("desk", "fail", instance=leader))
        assert (caught.value.code, caught.value.reason, caught.value.retryable) == (
            "internal",
            "execution_error",
            False,
        )
        assert caught.value.details["type"] == "ValueError"
