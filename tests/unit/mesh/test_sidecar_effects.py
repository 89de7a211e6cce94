"""What a handler did once is known to every attempt at the same envelope, and to nobody else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from groundplane.core.envelope import Envelope
from groundplane.mesh.ledger import Ledger, open_ledger
from groundplane.mesh.routing import Router
from groundplane.mesh.sidecar.calls import CallWatch, Telling
from groundplane.mesh.spec import ActorSpec
from groundplane.telemetry.metrics import ActorMetrics, CustomMetrics, new_registry

pytestmark = [pytest.mark.anyio, pytest.mark.req("MESH-17")]


def _watch(ledger: Ledger, envelope: Envelope, actor: str, attempt: int = 1) -> CallWatch:
    router, registry = Router(ActorSpec(name=actor, handler="m:f")), new_registry()
    metrics = ActorMetrics(registry, actor)
    return CallWatch(router, envelope, Telling(None), CustomMetrics(registry, actor), metrics, ledger, attempt)


async def test_an_effect_is_known_to_the_attempts_at_its_envelope_and_to_no_other_envelope_hop_or_actor(
    tmp_path: Path,
) -> None:
    first, other = (Envelope.new(["pay", "pay"], {}) for _ in range(2))
    later = msgspec.structs.replace(first, route=msgspec.structs.replace(first.route, current=1))
    ask = {"key": "charge"}
    async with open_ledger("embedded://", state=tmp_path, upgrade=True) as ledger:
        assert await _watch(ledger, first, "pay").ask("once_begin", ask) == {"state": "new"}
        await _watch(ledger, first, "pay").ask("once_end", {**ask, "value": "receipt 1"})
        again = await _watch(ledger, first, "pay", attempt=2).ask("once_begin", ask)
        assert again == {"state": "done", "value": "receipt 1"}
        for envelope, actor in ((other, "pay"), (later, "pay"), (first, "ship")):
            assert await _watch(ledger, envelope, actor).ask("once_begin", ask) == {"state": "new"}
