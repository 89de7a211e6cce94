"""Who leads, as the registry of services tells it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from groundplane.kv import KV
from groundplane.services import Registry, Status
from groundplane.services.leadership import Leadership, Policy, registered
from groundplane.testing import eventually, unique
from services_lab import STORES, Place, flaky_registry, place_of

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place_of(request, tmp_path, unique("svc"))


@pytest.mark.req("LEAD-05.2")
async def test_the_registry_tells_who_is_active_and_who_stands_by(place: Place, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        registry: Registry = await stack.enter_async_context(place.registry())
        kv = await stack.enter_async_context(KV.open("embedded://", state=tmp_path / "lease"))
        members: list[Leadership] = []
        for name in ("a", "b"):
            registration = await stack.enter_async_context(registry.register("desk", instance_id=name))
            opened = Leadership.open(kv, "desk", member=name, policy=Policy(lease_s=30.0))
            members.append(await stack.enter_async_context(opened))
            await stack.enter_async_context(registered(members[-1], registration))

        async def told() -> dict[str, tuple[str | None, str | None]]:
            found = await registry.instances("desk")
            return {one.instance_id: (one.sticky_active_group, one.sticky_active_status) for one in found}

        async def as_it_is() -> bool:
            is_active = {one.member: "ACTIVE" if one.is_active else "STANDBY" for one in members}
            return await told() == {name: ("desk", status) for name, status in is_active.items()}

        await eventually(lambda: any(one.is_active for one in members))
        await eventually(as_it_is)
        leader = next(one for one in members if one.is_active)
        await leader.resign()
        await eventually(lambda: any(one.is_active for one in members if one is not leader))
        await eventually(as_it_is)


@pytest.mark.req("LEAD-05.2")
async def test_who_was_elected_while_the_registry_was_away_is_active_there_when_it_is_back(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        registry, switch = await stack.enter_async_context(flaky_registry(tmp_path / "registry"))
        kv = await stack.enter_async_context(KV.open("embedded://", state=tmp_path / "lease"))
        patient = Policy(lease_s=30.0)
        leader = await stack.enter_async_context(Leadership.open(kv, "desk", member="a", policy=patient))
        await leader.elected()
        registration = await stack.enter_async_context(registry.register("desk", instance_id="b"))
        standby = await stack.enter_async_context(Leadership.open(kv, "desk", member="b", policy=patient))
        await stack.enter_async_context(registered(standby, registration))

        async def is_told(status: Status) -> bool:
            found = await registry.instance("desk", "b")
            return (found.status, found.sticky_active_status) == (status, status.value)

        await eventually(lambda: is_told(Status.STANDBY))
        switch.down = True
        await leader.resign()
        await standby.elected()
        await eventually(lambda: registration.instance.sticky_active_status == "ACTIVE")
        switch.down = False
        await eventually(lambda: is_told(Status.ACTIVE))
