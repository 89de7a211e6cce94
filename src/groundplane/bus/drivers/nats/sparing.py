"""Handings-over that cost no attempt. JetStream counts each one; those that did not count are counted here, in one
record for each consumer and message that was handed back, kept in the stream of results for a day.

A record is stored before its message is handed back, and read by whoever gets that again. One that is lost costs an
attempt, never a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from groundplane.backends.nats import JetStream, place_of
from groundplane.bus.drivers.nats.naming import Naming
from groundplane.bus.port import Delivery


class Spared:
    """The records of one consumer, as far as it holds their messages."""

    def __init__(self, jetstream: JetStream, naming: Naming, consumer: str) -> None:
        self._jetstream = jetstream
        self._naming = naming
        self._consumer = consumer
        self._known: dict[str, int] = {}

    async def counted(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The same with their true attempts. One round trip, for those that were handed out before."""
        again = {self._subject(one.tag): one.tag for one in deliveries if one.attempt > 1}
        if again:
            for record in await self._jetstream.get_last_many(self._naming.results, list(again)):
                self._known[again[record.subject]] = int(record.payload)
        return [
            msgspec.structs.replace(one, attempt=max(1, one.attempt - self._known[one.tag]))
            if one.tag in self._known
            else one
            for one in deliveries
        ]

    async def spare(self, tags: Sequence[str]) -> None:
        """This handing-over of them does not count either; durable when it returns."""
        records = [(self._subject(tag), b"%d" % (self._known.get(tag, 0) + 1)) for tag in tags]
        await asyncio.gather(*(self._jetstream.publish(subject, count) for subject, count in records))

    def forget(self, tag: str) -> None:
        """It is held no more."""
        self._known.pop(tag, None)

    def _subject(self, tag: str) -> str:
        return self._naming.spared(self._consumer, place_of(tag).stream_seq)
