"""The sidecar's loop over real queues whose disk is full for a while: it waits, says so, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import GroundplaneError, Internal, ResourceExhausted, Unavailable
from groundplane.mesh.settling import Settler
from groundplane.mesh.sidecar import calls
from groundplane.mesh.sidecar.calls import Active
from groundplane.mesh.sidecar.loop import Loop, flow_check
from groundplane.queues.client import Queues
from groundplane.queues.conformance.kit import eventually
from groundplane.queues.port import Ack, Delivery, OutgoingMessage, QueueSpec
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.metrics import ActorMetrics, new_registry

pytestmark = pytest.mark.anyio


class Faulty:
    """A consumer whose `receive` raises what it is given, as long as it is given something."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.fault: GroundplaneError | None = None
        self.raised = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        if self.fault is not None:
            self.raised += 1
            raise self.fault
        return list(await self._consumer.receive(limit, timeout_s))

    async def has_raised(self, times: int) -> bool:
        return self.raised >= times


class Sidecar:
    """A loop that acks whatever comes, and what it is made of."""

    def __init__(self, queues: Queues, consumer: Any) -> None:
        self.queues = queues
        self.consumer = Faulty(consumer)
        self.handled: list[str] = []
        self.stop = asyncio.Event()
        self.active = Active()
        self._settler = Settler(consumer)
        self.loop = Loop(
            self.consumer,  # type: ignore[arg-type]
            self._settler,
            self._handle,
            concurrency=1,
            window=None,
            active=self.active,
            metrics=ActorMetrics(new_registry(), "a"),
            log=get_logger("test"),
        )
        self.running = asyncio.create_task(self.loop.run(self.stop))

    async def _handle(self, delivery: Delivery) -> None:
        await self._settler.settle(Ack(delivery))
        self.handled.append(delivery.id)

    async def has_handled(self, *ids: str) -> bool:
        return self.handled == list(ids)

    async def send(self, name: str) -> None:
        await self.queues.send(OutgoingMessage(queue="a", id=name, payload=b""))

    async def trouble(self) -> str | None:
        """What the check of readiness says."""
        return await flow_check(self.queues, "a", self.loop, self.active)()

    async def fine(self) -> bool:
        return await self.trouble() is None


@asynccontextmanager
async def _sidecar(state: Path) -> AsyncIterator[Sidecar]:
    async with Queues.open(state=state) as queues:
        await queues.declare(QueueSpec(name="a"))
        async with queues.consume("a", max_in_flight=8) as consumer:
            sidecar = Sidecar(queues, consumer)
            try:
                await sidecar.send("first")
                await eventually(lambda: sidecar.has_handled("first"))
                yield sidecar
            finally:
                sidecar.stop.set()
                await sidecar.running
                await sidecar.loop.drain(1.0)


@pytest.mark.req("QUEUE-12")
@pytest.mark.parametrize(
    "fault", [ResourceExhausted("disk: full", reason="disk_full"), Unavailable("file: busy", reason="database_busy")]
)
async def test_a_fault_that_may_pass_is_told_and_waited_out(tmp_path: Path, fault: GroundplaneError) -> None:
    async with _sidecar(tmp_path) as sidecar:
        sidecar.consumer.fault = fault
        await eventually(lambda: sidecar.consumer.has_raised(3))
        assert str(fault) in str(await sidecar.trouble())
        assert not sidecar.running.done()
        await sidecar.send("second")
        sidecar.consumer.fault = None
        await eventually(lambda: sidecar.has_handled("first", "second"))
        await eventually(sidecar.fine)


async def test_a_fault_that_stays_ends_the_loop_and_is_told(tmp_path: Path) -> None:
    async with _sidecar(tmp_path) as sidecar:
        sidecar.consumer.fault = Internal("file: damaged")
        async with asyncio.timeout(10):
            await sidecar.running
        assert sidecar.loop.failure is sidecar.consumer.fault
        assert sidecar.consumer.raised == 1


async def test_a_store_that_is_away_is_told_until_a_delivery_is_handled_or_some_seconds_have_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _sidecar(tmp_path) as sidecar:
        sidecar.active.troubled(ResourceExhausted("queue: full"))
        assert await sidecar.fine()
        sidecar.active.troubled(Unavailable("jobs: away"))
        assert "jobs: away" in str(await sidecar.trouble())
        sidecar.active.at_ease()
        assert await sidecar.fine()
        sidecar.active.troubled(Unavailable("jobs: away"))
        monkeypatch.setattr(calls, "TROUBLE_S", 0.0)
        assert await sidecar.fine()
