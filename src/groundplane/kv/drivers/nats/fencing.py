"""The highest term of each name, as a record in the bucket's stream, and how a write is tied to it.

A write is stored on condition that the record has not changed since it was read; so it is never stored after the record
of a higher term. The record of a new term is stored before the first write that shows it.
"""

from __future__ import annotations

from groundplane.backends.nats import EXPECTED_LAST_SUBJECT_SEQUENCE, JetStream
from groundplane.core.errors import Conflict
from groundplane.core.fencing import Fence, term_old
from groundplane.kv.drivers.nats.messages import EXPECTED_SUBJECT, Names, Outgoing
from groundplane.kv.drivers.nats.names import encoded
from groundplane.kv.drivers.nats.storing import Storing

CACHED_MAX = 1000


class Fences:
    """The records of one bucket, as they were last seen."""

    def __init__(self, jetstream: JetStream, names: Names, storing: Storing) -> None:
        self._jetstream = jetstream
        self._names = names
        self._storing = storing
        self._seen: dict[str, tuple[int, int]] = {}

    async def pass_through(self, fence: Fence) -> int:
        """The sequence of the fence's record, which has its term now. Raises `conflict` (`term_old`)."""
        while True:
            seq, term = self._seen.get(fence.name) or await self._read(fence)
            if term > fence.term:
                raise term_old(fence, term)
            if term == fence.term:
                return seq
            try:
                await self._raise(fence, seq)
            except Conflict:
                self.forget(fence)

    def forget(self, fence: Fence) -> None:
        """Its record may have changed."""
        self._seen.pop(fence.name, None)

    def tie(self, fence: Fence, seq: int, messages: list[Outgoing]) -> list[Outgoing]:
        """The same messages, on condition that the record is still that sequence. A message has one condition: where
        all have one of their own, another message carries it.
        """
        condition = {EXPECTED_LAST_SUBJECT_SEQUENCE: str(seq), EXPECTED_SUBJECT: self._subject(fence)}
        for at, message in enumerate(messages):
            if EXPECTED_LAST_SUBJECT_SEQUENCE not in message.headers:
                tied = message._replace(headers={**message.headers, **condition})
                return [*messages[:at], tied, *messages[at + 1 :]]
        return [*messages, Outgoing(self._subject(fence, "touched"), b"", condition)]

    async def _read(self, fence: Fence) -> tuple[int, int]:
        last = await self._jetstream.get_last(self._names.stream, self._subject(fence))
        found = (0, 0) if last is None else (last.seq, int(last.payload))
        if last is not None:
            self._keep(fence, found)
        return found

    async def _raise(self, fence: Fence, seq: int) -> None:
        record = Outgoing(self._subject(fence), str(fence.term).encode(), {EXPECTED_LAST_SUBJECT_SEQUENCE: str(seq)})
        [stored] = await self._storing.store([record])
        self._keep(fence, (stored, fence.term))

    def _keep(self, fence: Fence, seen: tuple[int, int]) -> None:
        if len(self._seen) >= CACHED_MAX:
            self._seen.clear()
        self._seen[fence.name] = seen

    def _subject(self, fence: Fence, what: str = "term") -> str:
        return f"{self._names.fences}{what}.{encoded(fence.name)}"
