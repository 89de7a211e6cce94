"""What a sidecar does with a delivery that it, or another, has handled before: ack it, and not run it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from groundplane.core.envelope import Envelope
from groundplane.mesh.repeats import key_of, may_repeat
from groundplane.mesh.routing import note
from groundplane.mesh.sidecar.handling import Handling, Parts, Staged
from groundplane.mesh.sidecar.work import token_of
from groundplane.queues.port import Ack, Delivery, Nack
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces


class Gate:
    """Before `Handling` or `FanIn` where the queues do not drop repeats. Those that pass are handled by `inner`."""

    def __init__(
        self,
        parts: Parts,
        staged: Staged,
        handling: Handling,
        inner: Callable[[Delivery, Envelope], Awaitable[None]],
    ) -> None:
        self._p = parts
        self._repeats = staged.repeats
        self._handling = handling
        self._inner = inner

    async def handle(self, delivery: Delivery) -> None:
        """Handle a delivery unless it is a repeat. Never raises but for cancellation."""
        envelope = await self._handling.opened(delivery)
        if envelope is None:
            return
        key = key_of(delivery, envelope)
        if not may_repeat(delivery) and self._repeats.take(key):
            await self._first(delivery, envelope, key)
        else:
            await self._handling.guarded(delivery, lambda: self._looked_up(delivery, envelope, key))

    async def _looked_up(self, delivery: Delivery, envelope: Envelope, key: str) -> None:
        if not await self._repeats.begin(key):
            await self._drop(delivery, envelope)
        elif self._p.active.draining:  # it waited for another copy, and now it is too late to begin
            self._repeats.end(key)
            await self._handling.settle(self._handling.work_of(delivery, envelope), Nack(delivery, counts=False))
        else:
            await self._first(delivery, envelope, key)

    async def _first(self, delivery: Delivery, envelope: Envelope, key: str) -> None:
        try:
            await self._inner(delivery, envelope)
        finally:
            self._repeats.end(key)

    async def _drop(self, delivery: Delivery, envelope: Envelope) -> None:
        self._p.metrics.repeats.inc()
        traces.current().event(names.REPEAT)
        self._p.log.info("repeat_dropped", message_id=delivery.id, attempt=delivery.attempt)
        if self._p.reporter is not None:
            data = {"actor": self._p.router.spec.name, "attempt": delivery.attempt}
            self._p.reporter.post(note(envelope, "repeat", data), token_of(envelope))
        work = self._handling.work_of(delivery, envelope)
        await self._handling.settle(work, Ack(delivery), handled=False)


__all__ = ["Gate"]
