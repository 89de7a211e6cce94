"""What a bus does stands in the metrics of its process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from groundplane.bus import Bus
from groundplane.core.errors import GroundplaneError
from groundplane.telemetry.process import process_registry

pytestmark = pytest.mark.anyio


def _calls(registry: CollectorRegistry, operation: str, outcome: str) -> float:
    labels = {"port": "bus", "operation": operation, "outcome": outcome}
    return registry.get_sample_value("groundplane_port_calls_total", labels) or 0.0


@pytest.mark.req("BUS-22")
async def test_requests_events_and_commands_are_counted_by_outcome_with_their_latency(tmp_path: Path) -> None:
    registry = process_registry("test", folder=tmp_path)
    counted = [
        ("request", "ok"), ("request", "internal"), ("handle_served", "ok"), ("handle_served", "internal"),
        ("publish_many", "ok"), ("handle_events", "ok"), ("handle_commands", "succeeded"),
    ]  # fmt: skip
    before = [_calls(registry, *one) for one in counted]
    seen: list[Any] = []

    async def pick(good: bool) -> None:
        if not good:
            raise ValueError("bad")

    async def handler(event: Any) -> None:
        seen.append(event)

    async with (
        Bus.open(state=tmp_path, name="test") as bus,
        bus.serve("s", {"pick": pick}),
        bus.subscribe("d.*", handler),
        bus.handle("s", {"pick": pick}),
    ):
        await bus.request("s", "pick", {"good": True})
        with pytest.raises(GroundplaneError):
            await bus.request("s", "pick", {"good": False})
        await bus.publish("d", "x")
        async with bus.track("s", "pick", {"good": True}) as tracked:
            await tracked.result()
        async with asyncio.timeout(10):
            while not bus.statistics().events:
                await asyncio.sleep(0.005)
        connections = registry.get_sample_value("groundplane_pool_connections", {"backend": "bus", "state": "in_use"})
        reconnects = registry.get_sample_value("groundplane_pool_reconnects_total", {"backend": "bus"})
    assert [_calls(registry, *one) for one in counted] == [number + 1 for number in before]
    took = registry.get_sample_value("groundplane_port_call_seconds_count", {"port": "bus", "operation": "request"})
    assert took is not None
    assert took >= 2
    assert (connections, reconnects) == (0.0, 0.0)
