"""Storing messages: one by itself, or several in one atomic step; answered, refused, or in doubt."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from groundplane.backends.nats import JetStream, encode_headers
from groundplane.backends.nats.jetstream import read_ack
from groundplane.core.errors import DeadlineExceeded, Unavailable
from groundplane.kv.drivers.nats.messages import Outgoing

BATCHES_AT_ONCE = 16
"""The server takes 50 of one stream, from all clients."""


class Storing:
    """What stores the messages of one stream. Each call is one attempt."""

    def __init__(self, jetstream: JetStream) -> None:
        self._jetstream = jetstream
        self._link = jetstream.link
        self._batches = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def store(self, messages: Sequence[Outgoing]) -> list[int]:
        """All of them, or none; their sequences.

        Raises `conflict` (`wrong_sequence`) where a condition does not hold, `already_exists` (`batch_repeated`) where
        a batch was stored before, `unavailable`: with `Doubt` it may be stored.
        """
        if len(messages) == 1:
            [message] = messages
            return [await self._ask(message.subject, message.payload, message.headers)]
        async with self._batches:
            last = await self._batch(messages, secrets.token_hex(12))
        return list(range(last - len(messages) + 1, last + 1))

    async def _batch(self, messages: Sequence[Outgoing], name: str) -> int:
        *rest, final = messages
        for number, message in enumerate(rest, start=1):
            headers = {**message.headers, "Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}
            self._link.publish_raw(message.subject, message.payload, encode_headers(headers))
            await self._link.room()
        closing = {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(len(messages)), "Nats-Batch-Commit": "1"}
        return await self._ask(final.subject, final.payload, {**final.headers, **closing})

    async def _ask(self, subject: str, payload: bytes, headers: dict[str, str]) -> int:
        try:
            answer = await self._link.request(subject, payload, headers=headers)
        except DeadlineExceeded as error:
            raise Doubt(error.message, reason=error.reason, details=error.details) from error
        except Unavailable as error:
            if error.reason == "no_responder":
                raise Unavailable(
                    f"kv: no stream takes {subject!r} now; it is starting, elects a leader, or was deleted",
                    reason="jetstream_unavailable",
                ) from error
            if error.reason == "connection_lost":
                raise Doubt(error.message, reason=error.reason, details=error.details) from error
            raise
        try:
            return read_ack(subject, answer).seq
        except Unavailable as error:
            if error.reason != "jetstream_unavailable":
                raise
            # a leader that steps down may say so of what the next one stores after all
            raise Doubt(error.message, reason=error.reason, details=error.details) from error


class Doubt(Unavailable):
    """The answer is missing: the messages may be stored."""
