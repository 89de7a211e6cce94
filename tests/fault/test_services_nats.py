"""NATS goes away under the registry: instances come back by themselves, lookups are answered from what was known and
say so, and what changed meanwhile is seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from groundplane.core.errors import GroundplaneError
from groundplane.services import Discovery, DiscoverySettings, RegistrationSettings, Status
from groundplane.services.discovery import Found
from groundplane.testing import eventually
from groundplane.testing.servers.contract import Running
from services_lab import impatient_registry

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.integration]

SETTINGS = RegistrationSettings(ttl_s=4.0, heartbeat_s=0.3)
LOOKING = DiscoverySettings(cache_s=0.2, timeout_s=1.0, retry_base_s=0.05, retry_cap_s=0.2)


@pytest.fixture
def server(own_server: Callable[[str], Running]) -> Running:
    return own_server("nats")


@pytest.mark.req("SVC-02.1")
@pytest.mark.req("SVC-02.2")
@pytest.mark.req("SVC-03.3")
@pytest.mark.req("SVC-03.4")
@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_instances_come_back_and_discovery_goes_on_when_the_server_was_away(server: Running, fault: str) -> None:
    url = f"{server.url}?request_timeout=2&reconnect_wait_max=0.2"
    async with (
        impatient_registry(url, SETTINGS) as registry,
        registry.register("quotes", instance_id="a") as registration,
        impatient_registry(url, SETTINGS) as elsewhere,
        Discovery.open(elsewhere, LOOKING) as discovery,
    ):
        await discovery.synced()
        assert [one.instance_id for one in (await discovery.find("quotes")).instances] == ["a"]
        await asyncio.to_thread(server.kill if fault == "kill" else server.pause)
        stale = await eventually(lambda: _stale(discovery), timeout_s=20)
        assert [one.instance_id for one in stale.instances] == ["a"]
        with pytest.raises(GroundplaneError) as caught:
            await discovery.find("unknown")
        assert caught.value.code in ("unavailable", "deadline_exceeded")
        await eventually(lambda: registration.status is Status.UNHEALTHY, timeout_s=30)
        await eventually(discovery.check, timeout_s=20)
        assert await registration.check() is not None
        await asyncio.to_thread(server.start if fault == "kill" else server.resume)
        await eventually(lambda: registration.statistics().failures_in_a_row == 0, timeout_s=30)
        assert (registration.status, await registration.check()) == (Status.ACTIVE, None)
        await eventually(lambda: _flowing(discovery), timeout_s=20)
        async with registry.register("quotes", instance_id="b"):
            await eventually(lambda: _found(discovery, ["a", "b"]), timeout_s=20)
        await eventually(lambda: _found(discovery, ["a"]), timeout_s=20)


async def _stale(discovery: Discovery) -> Found | None:
    found = await discovery.find("quotes")
    assert found.instances, "what is away is never an empty list"
    return found if found.stale else None


async def _flowing(discovery: Discovery) -> bool:
    return await discovery.check() is None


async def _found(discovery: Discovery, expected: list[str]) -> bool:
    found = await discovery.find("quotes")
    return not found.stale and [one.instance_id for one in found.instances] == expected
