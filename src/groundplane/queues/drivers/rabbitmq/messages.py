"""A message on the wire: the payload is the body, all else is one note in the header `gp`.

The note is MessagePack, inert, with a version. Headers that begin with `x-` are the broker's and are never copied: a
copied `x-death` makes the broker drop a message in silence. A message of a foreign sender has no note, or none of ours:
its text headers are taken, its id is `message_id`, it is at attempt 1. A note of a newer version is refused by name.
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from typing import Any

import msgspec

from groundplane.backends.amqp import Delivery as Delivered
from groundplane.backends.amqp import Message
from groundplane.core.errors import ErrorRecord, FailedPrecondition, GroundplaneError
from groundplane.core.ids import new_id
from groundplane.queues.port import OutgoingMessage

HEADER = "gp"
VERSION = 1
PROPERTIES_MAX = 100_000
"""Bytes of headers that a message may be sent with: with what a retry or a death adds they fit into one frame."""

_COPY_PROPERTIES_MAX = 120_000
_ERROR_CHARACTERS = 500
_ID_BYTES_MAX = 255
_TABLE = struct.Struct(">I4sI")
_SENDER = os.urandom(6)
_numbers = itertools.count(1)
_last_ms = 0


class Death(msgspec.Struct, array_like=True, frozen=True):
    """Of what, after how many attempts, and when (Unix ms) a message became a dead letter."""

    reason: str
    attempts: int
    died_at: int


class Note(msgspec.Struct, array_like=True, frozen=True):
    """Everything about a copy of a message but its payload. `copy` is new with each publishing and grows with time.

    `due_at` is Unix ms, 0 where it may be handed out at once; `repeat` says that another copy of it may exist.
    """

    version: int
    copy: bytes
    id: str
    attempt: int
    enqueued_at: int
    headers: dict[str, str] = {}
    redrives: int = 0
    due_at: int = 0
    repeat: bool = False
    dedup_key: str | None = None
    error: ErrorRecord | None = None
    death: Death | None = None

    @property
    def since(self) -> int:
        """Unix ms of this copy's publishing."""
        return int.from_bytes(self.copy[:6], "big")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Note).decode
_decode_any = msgspec.msgpack.Decoder(list[Any]).decode


def new_copy(now_ms: int | None = None) -> bytes:
    """16 bytes that name one publishing; those of one process grow, those of several sort by their clocks."""
    global _last_ms
    _last_ms = max(_last_ms, now_ms if now_ms is not None else time.time_ns() // 1_000_000)
    return _last_ms.to_bytes(6, "big") + (next(_numbers) & 0xFFFFFFFF).to_bytes(4, "big") + _SENDER


def first_note(message: OutgoingMessage, now_ms: int) -> Note:
    """The note of a message that is sent for the first time."""
    due_at = now_ms + _ms_up(message.delay_s) if message.delay_s > 0 else 0
    return Note(
        VERSION,
        new_copy(),
        message.id,
        message.attempt,
        now_ms,
        message.headers,
        0,
        due_at,
        False,
        message.dedup_key,
    )


def again(note: Note, *, now_ms: int, delay_s: float = 0.0, **changes: Any) -> Note:
    """The note of the next copy of a message."""
    due_at = now_ms + _ms_up(delay_s) if delay_s > 0 else 0
    return msgspec.structs.replace(note, copy=new_copy(), due_at=due_at, **changes)


def moved(note: Note, *, repeat: bool) -> Note:
    """The note of a copy that changes only its place: it is due when it was."""
    return msgspec.structs.replace(note, copy=new_copy(), repeat=repeat)


def encode(exchange: str, key: str, note: Note, payload: bytes) -> Message:
    """What is published."""
    return Message(exchange, key, payload, properties(_encode(note), note.id.encode()))


def encode_copy(exchange: str, key: str, note: Note, payload: bytes) -> Message:
    """What is published of a message that is there already: where its error does not fit, it is shortened."""
    copy = encode(exchange, key, note, payload)
    if len(copy.properties) <= _COPY_PROPERTIES_MAX or note.error is None:
        return copy
    error = note.error
    short = msgspec.structs.replace(
        error, message=error.message[:_ERROR_CHARACTERS], details={}, traceback=error.traceback[-_ERROR_CHARACTERS:]
    )
    return encode(exchange, key, msgspec.structs.replace(note, error=short), payload)


def properties(stored: bytes, message_id: bytes) -> bytes:
    """The same bytes as `encode_properties({"gp": stored}, message_id=…)`, for each message, at a sixth of its cost.

    Flags, the table of the one header, delivery mode 2, the id where it fits (AMQP 0-9-1, 4.2.5 and 4.2.6.1).
    """
    size = len(stored)
    if len(message_id) > _ID_BYTES_MAX:
        return b"".join((b"\x30\x00", _TABLE.pack(size + 8, b"\x02gpx", size), stored, b"\x02"))
    tail = b"\x02" + bytes((len(message_id),))
    return b"".join((b"\x30\x80", _TABLE.pack(size + 8, b"\x02gpx", size), stored, tail, message_id))


def note_of(delivered: Delivered) -> Note:
    """The note of what was delivered; a made up one for a message of a foreign sender."""
    headers = _headers(delivered)
    stored = headers.get(HEADER)
    if not isinstance(stored, bytes):
        return _foreign(delivered, headers)
    try:
        note = _decode(stored)
        if note.version == VERSION:
            return note
    except msgspec.DecodeError:
        pass  # a newer one, or nobody's
    if (version := _version(stored)) > VERSION:
        raise FailedPrecondition(
            f"message: the note of a message in {delivered.routing_key!r} has version {version!r}, and this program "
            f"reads {VERSION!r}; upgrade Groundplane",
            reason="schema_newer",
        )
    return _foreign(delivered, headers)


def _version(stored: bytes) -> int:
    """What the note says of itself; 0 where it is none."""
    try:
        first = (_decode_any(stored) or [0])[0]
    except msgspec.DecodeError:
        return 0
    return first if type(first) is int else 0


def since(delivered: Delivered) -> int:
    """Unix ms of its publishing; 0 where its note cannot be read."""
    try:
        return note_of(delivered).since
    except FailedPrecondition:
        return 0


def count_of(delivered: Delivered) -> int:
    """How often the broker handed this copy out before, as it counts."""
    count = _headers(delivered).get("x-delivery-count", 0)
    return count if isinstance(count, int) else 0


def _headers(delivered: Delivered) -> dict[str, Any]:
    try:
        return delivered.headers
    except GroundplaneError:
        return {}  # of a foreign sender; its payload may be sound


def _foreign(delivered: Delivered, headers: dict[str, Any]) -> Note:
    texts = {name: value for name, value in headers.items() if isinstance(value, str) and not name.startswith("x-")}
    try:
        message_id = delivered.properties.message_id
    except GroundplaneError:
        message_id = None
    return Note(VERSION, new_copy(), message_id or new_id(), 1, time.time_ns() // 1_000_000, texts)


def _ms_up(seconds: float) -> int:
    """Whole milliseconds, rounded up: nothing comes before its time."""
    return -int(-seconds * 1000 // 1)
