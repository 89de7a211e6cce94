"""Dead letters of the bus on NATS: a stream of them, listed, redriven to the consumer they died for, purged.

A letter is a message with the dead one's payload; what is known of it stands in one header. A payload that leaves no
room for that header lies in a message of its own.
"""

from __future__ import annotations

import msgspec

from groundplane.backends.nats import MESSAGE_ID, JetStream, Stored, encode_headers, place_of
from groundplane.bus.drivers.nats.naming import IDENTITY, REDRIVES, STORED_AT, SUBJECT, Naming
from groundplane.bus.port import ConsumerSpec, Priority, Reject
from groundplane.core.clock import SYSTEM_CLOCK
from groundplane.core.dead_letters import DeadLetter, DeadLetterPage, DeadLetterSource
from groundplane.core.errors import ErrorRecord, InvalidArgument, NotFound

SUBJECT_HEADER = "groundplane-subject"
"""Header of a dead letter of the bus: the subject on which the message was sent."""
_LETTER = "Groundplane-Dead"
_TRACEBACK_MAX = 4000


class _Letter(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands in the header. `payload_seq`: where the payload lies, if not here."""

    queue: str
    pattern: str
    subject: str
    message_id: str
    headers: dict[str, str]
    priority: int
    reason: str
    attempts: int
    redrives: int
    stored_at: int
    died_at: int
    error: ErrorRecord | None = None
    payload_seq: int = 0


class NatsDeadLetters:
    """See `DeadLetterSource`. `queue` is the name of a consumer; ids are sequences of the stream."""

    def __init__(self, jetstream: JetStream, naming: Naming) -> None:
        self._jetstream = jetstream
        self._naming = naming

    async def bury(self, spec: ConsumerSpec, reject: Reject) -> None:
        """Store the letter of a delivery, once; durable when it returns."""
        delivery, message = reject.delivery, reject.delivery.message
        letter = _Letter(
            queue=spec.name,
            pattern=spec.pattern,
            subject=message.subject,
            message_id=message.id,
            headers=message.headers,
            priority=message.priority,
            reason=reject.reason,
            attempts=delivery.attempt,
            redrives=delivery.redrives,
            stored_at=delivery.stored_at,
            died_at=SYSTEM_CLOCK.now_ms(),
            error=_shortened(reject.error),
        )
        payload, headers = message.payload, _written(letter, delivery.tag)
        if len(encode_headers(headers)) + len(payload) > self._jetstream.link.max_payload:
            apart = await self._jetstream.publish(self._naming.dead_payload_subject, payload)
            headers = _written(msgspec.structs.replace(letter, payload_seq=apart.seq), delivery.tag)
            payload = b""
        await self._jetstream.publish(
            self._naming.dead_subject(spec.name), payload, headers=headers, message_id=headers[MESSAGE_ID]
        )

    async def list_dead(
        self, queue: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> DeadLetterPage:
        """See `DeadLetterSource.list_dead`."""
        after = _number("cursor", cursor) if cursor is not None else 0
        subject = self._naming.dead_subject(queue or "*")
        stream = self._naming.dead
        found = await self._jetstream.get_batch(stream, subject, seq=after + 1, batch=limit + 1)
        if queue is not None and not found and not await self._is_known(queue):
            raise NotFound(f"queue: no consumer of the bus is named {queue!r}", reason="queue_not_found")
        items = [await self._letter(one) for one in found[:limit]]
        return DeadLetterPage(items=items, cursor=items[-1].id if len(found) > limit else None)

    async def get_dead(self, dead_id: str) -> DeadLetter:
        """See `DeadLetterSource.get_dead`."""
        return await self._letter(await self._stored(dead_id))

    async def redrive(self, dead_id: str, *, payload: bytes | None = None) -> None:
        """See `DeadLetterSource.redrive`. Stored again under an id of its own, then deleted: two redrives within two
        minutes send it once. `not_found` also where the consumer is no more.
        """
        stored = await self._stored(dead_id)
        letter = _read(stored)
        stream = self._naming.stream_of(letter.pattern)
        try:
            await self._jetstream.consumer_info(stream, letter.queue)
        except NotFound as error:
            raise NotFound(
                f"queue: the consumer {letter.queue!r} is no more; subscribe under its name, then redrive"
            ) from error
        headers = {
            **letter.headers,
            SUBJECT: letter.subject,
            REDRIVES: str(letter.redrives + 1),
            STORED_AT: str(letter.stored_at),
            **({IDENTITY: letter.message_id} if letter.message_id else {}),
        }
        body = await self._payload(stored, letter) if payload is None else payload
        subject = self._naming.redriven(letter.queue, letter.pattern, Priority(letter.priority))
        await self._jetstream.publish(subject, body, headers=headers, message_id=f"redrive:{dead_id}")
        await self._delete(stored.seq, letter)

    async def purge(self, dead_ids: list[str]) -> int:
        """See `DeadLetterSource.purge`."""
        count = 0
        for dead_id in dead_ids:
            try:
                stored = await self._stored(dead_id)
                await self._delete(stored.seq, _read(stored))
            except NotFound:
                continue
            count += 1
        return count

    async def _delete(self, seq: int, letter: _Letter) -> None:
        await self._jetstream.delete_message(self._naming.dead, seq)
        if letter.payload_seq:
            await self._jetstream.delete_message(self._naming.dead, letter.payload_seq)

    async def _stored(self, dead_id: str) -> Stored:
        stored = await self._jetstream.get(self._naming.dead, _number("dead_id", dead_id))
        if stored is None or _LETTER not in stored.headers:
            raise _unknown(dead_id)
        return stored

    async def _letter(self, stored: Stored) -> DeadLetter:
        letter = _read(stored)
        return DeadLetter(
            id=str(stored.seq),
            queue=letter.queue,
            message_id=letter.message_id,
            payload=await self._payload(stored, letter),
            headers={**letter.headers, SUBJECT_HEADER: letter.subject},
            reason=letter.reason,
            error=letter.error,
            attempts=letter.attempts,
            redrives=letter.redrives,
            enqueued_at=letter.stored_at,
            died_at=letter.died_at,
            trace=letter.headers.get("traceparent", ""),
        )

    async def _payload(self, stored: Stored, letter: _Letter) -> bytes:
        if not letter.payload_seq:
            return stored.payload
        apart = await self._jetstream.get(self._naming.dead, letter.payload_seq)
        if apart is None:
            raise _unknown(str(stored.seq))
        return apart.payload

    async def _is_known(self, queue: str) -> bool:
        for stream in await self._jetstream.stream_names(subject=self._naming.all_subjects):
            if queue in await self._jetstream.consumer_names(stream):
                return True
        return False


def _written(letter: _Letter, tag: str) -> dict[str, str]:
    place = place_of(tag)
    where = f"{place.stream}.{place.consumer}.{place.stream_seq}"
    return {_LETTER: _ascii(msgspec.json.encode(letter)), MESSAGE_ID: f"dead:{letter.queue}:{where}:{letter.redrives}"}


def _ascii(document: bytes) -> str:
    """JSON with every other character escaped, as headers carry printable ASCII."""
    if document.isascii():
        return document.decode()
    out: list[str] = []
    for char in document.decode():
        if ord(char) < 128:
            out.append(char)
        else:
            units = char.encode("utf-16-be")
            out.extend(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
    return "".join(out)


def _read(stored: Stored) -> _Letter:
    return msgspec.json.decode(stored.headers[_LETTER], type=_Letter)


def _shortened(error: ErrorRecord | None) -> ErrorRecord | None:
    if error is None:
        return None
    return msgspec.structs.replace(
        error, message=error.message[:_TRACEBACK_MAX], traceback=error.traceback[-_TRACEBACK_MAX:]
    )


def _number(field: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 18 or (field == "dead_id" and int(text) == 0):
        if field == "dead_id":
            raise _unknown(text)
        raise InvalidArgument(f"{field}: {text!r} is not one that a page gave; leave it out to begin")
    return int(text)


def _unknown(dead_id: str) -> NotFound:
    return NotFound(f"dead_id: no dead letter {dead_id!r}; it was redriven or purged, or never was")


def _conforms(source: NatsDeadLetters) -> DeadLetterSource:
    return source
