"""Settling deliveries together with what they send: one call of the queue for all that finished meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from groundplane.core import failpoints
from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument, NotFound, ResourceExhausted
from groundplane.mesh.batching import Batcher
from groundplane.queues.client import Consumer
from groundplane.queues.port import Carried, OutgoingMessage, Settlement


class Settled(msgspec.Struct, frozen=True):
    """One delivery's end, the messages that go with it, and what its job is told in the same transaction."""

    settlement: Settlement
    sends: Sequence[OutgoingMessage] = ()
    carry: Carried | None = None


_ONE_IS_WRONG = (NotFound, InvalidArgument, FailedPrecondition, ResourceExhausted)


class Settler:
    """Settles in natural batches; a batch that fails because of one member is settled member by member."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._batches: Batcher[Settled, None] = Batcher(self._flush)

    async def settle(
        self, settlement: Settlement, sends: Sequence[OutgoingMessage] = (), carry: Carried | None = None
    ) -> None:
        """Durable when it returns. Raises as `Consumer.settle` does, about this delivery alone."""
        await self._batches.submit(Settled(settlement, sends, carry))

    async def aclose(self) -> None:
        """Wait for what is under way."""
        await self._batches.aclose()

    async def _flush(self, items: list[Settled]) -> list[Exception | None]:
        try:
            await self._settle(items)
        except _ONE_IS_WRONG as error:
            if len(items) == 1:
                return [error]
            return list(await asyncio.gather(*(self._alone(item) for item in items)))
        return [None] * len(items)

    async def _alone(self, item: Settled) -> Exception | None:
        try:
            await self._settle([item])
        except GroundplaneError as error:
            return error
        return None

    async def _settle(self, items: list[Settled]) -> None:
        for _ in items:
            failpoints.hit("before_ack")
        await self._consumer.settle(
            [item.settlement for item in items],
            [message for item in items for message in item.sends],
            [item.carry for item in items if item.carry is not None],
        )
        for item in items:
            if item.sends:
                failpoints.hit("child_sent")
