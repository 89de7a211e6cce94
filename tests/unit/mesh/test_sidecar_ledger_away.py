"""A handler that fails as the sidecar's ledger cannot be written has not failed itself: the work is handed back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from groundplane.core.clock import SYSTEM_CLOCK
from groundplane.core.envelope import Envelope
from groundplane.core.errors import GroundplaneError, ResourceExhausted, Unavailable
from groundplane.mesh.routing import Failure, Outcome, Result, Router
from groundplane.mesh.sidecar.calls import CallWatch, Telling
from groundplane.mesh.sidecar.handling import Handling
from groundplane.mesh.sidecar.work import Work
from groundplane.mesh.spec import ActorSpec
from groundplane.queues.port import Delivery
from groundplane.telemetry.metrics import ActorMetrics, CustomMetrics, new_registry

pytestmark = [pytest.mark.anyio, pytest.mark.req("MESH-17")]

_FAILED = Failure(reason="processing_error", message="database: no room left")


class _FullDisk:
    async def once_begin(self, key: str) -> Any:
        raise ResourceExhausted(f"database: no room left for {key!r}", reason="disk_full", retryable=True)


async def _called(outcome: Outcome) -> Outcome:
    """The outcome of a handler that asked for its ledger and came to `outcome`."""
    router, registry = Router(ActorSpec(name="pay", handler="m:f")), new_registry()
    metrics = ActorMetrics(registry, "pay")
    envelope = Envelope.new(["pay"], {})
    watch = CallWatch(router, envelope, Telling(None), CustomMetrics(registry, "pay"), metrics, _FullDisk())  # type: ignore[arg-type]

    async def call(*_: object) -> Outcome:
        with pytest.raises(ResourceExhausted):
            await watch.ask("once_begin", {"key": "order"})
        return outcome

    active = SimpleNamespace(spent=lambda seconds: None)
    parts = SimpleNamespace(
        router=router,
        clock=SYSTEM_CLOCK,
        client=SimpleNamespace(call=call),
        metrics=metrics,
        active=active,
        claims=None,
    )
    delivery = Delivery(tag=1, queue="pay", id="1", payload=b"", headers={}, attempt=1, enqueued_at=0, redrives=0)
    handling = Handling(parts, asyncio.Semaphore())  # type: ignore[arg-type]
    return await handling._called(Work(delivery=delivery, envelope=envelope, telling=Telling(None)), watch)


async def test_its_failure_is_the_ledgers_and_may_be_tried_again() -> None:
    with pytest.raises(GroundplaneError) as caught:
        await _called(_FAILED)
    assert (caught.value.reason, caught.value.retryable) == ("disk_full", True)


async def test_a_handler_that_gets_along_without_it_has_succeeded() -> None:
    assert isinstance(await _called(Result([])), Result)


async def test_the_end_of_an_effect_is_recorded_when_the_ledger_is_back_and_the_handler_waits() -> None:
    class Away:
        refusals = 2
        recorded: ClassVar[dict[str, object]] = {}

        async def once_end(self, key: str, value: object) -> None:
            if self.refusals:
                self.refusals -= 1
                raise Unavailable("ledger: away")
            self.recorded[key] = value

    ledger, registry = Away(), new_registry()
    watch = CallWatch(
        Router(ActorSpec(name="pay", handler="m:f")), Envelope.new(["pay"], {}), Telling(None),
        CustomMetrics(registry, "pay"), ActorMetrics(registry, "pay"), ledger,  # type: ignore[arg-type]
    )  # fmt: skip
    assert await watch.ask("once_end", {"key": "order", "value": 7}) == {}
    assert list(ledger.recorded.values()) == [7]
    assert watch.away is None
