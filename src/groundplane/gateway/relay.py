"""From the jobs' outbox to the queues: what makes an accepted job run."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from groundplane.core.errors import NotFound
from groundplane.gateway.metrics import GatewayMetrics
from groundplane.gateway.tracing import Relaying
from groundplane.jobs.port import OutboxMessage
from groundplane.mesh.spec import ActorSpec
from groundplane.mesh.start import queue_specs, relayed
from groundplane.queues import Queues


async def declare_missing(queues: Queues, names: Iterable[str]) -> None:
    """Declare the queues that are not there, the ends' included, with the mesh's default limits; those that are there
    keep theirs, and an actor that starts later gives its own.
    """
    known = {spec.name for spec in await queues.queues()}
    wanted = queue_specs([ActorSpec(name=name, handler="") for name in sorted(set(names))])
    missing = [spec for spec in wanted if spec.name not in known]
    if missing:
        await queues.declare(*missing)


class Relay:
    """Sends first messages. A queue that is not there yet is declared, so that no tool blocks another's messages."""

    def __init__(self, queues: Queues, metrics: GatewayMetrics) -> None:
        self._queues = queues
        self._metrics = metrics

    async def send(self, messages: list[OutboxMessage]) -> None:
        """Durable when it returns; repeats are dropped by their key."""
        with Relaying(messages):
            await self._sent(messages)
        self._metrics.relayed.inc(len(messages))

    async def _sent(self, messages: list[OutboxMessage]) -> None:
        try:
            await self._queues.send(*map(relayed, messages))
        except NotFound:
            await declare_missing(self._queues, (one.queue for one in messages))
            again = [msgspec.structs.replace(one, taken_before=True) for one in messages]
            await self._queues.send(*map(relayed, again))
