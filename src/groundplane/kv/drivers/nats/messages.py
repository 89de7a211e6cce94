"""Entries, changes and writes as messages of a stream, and back. No input or output."""

from __future__ import annotations

from typing import NamedTuple

from groundplane.backends.nats import EXPECTED_LAST_SUBJECT_SEQUENCE, MARKER_REASON, MESSAGE_ID, ROLLUP, TTL, Stored
from groundplane.kv.drivers.nats.names import decoded, encoded
from groundplane.kv.port import TOMBSTONES_KEPT_S, Change, ChangeKind, Entry, Write, WriteKind

OPERATION = "KV-Operation"
EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
MARKERS_KEPT_S, MARKERS_KEPT_DEEP_S = 60.0, 1.0
"""How long the server's note that a value has expired is kept. Where a stream keeps older values, nats-server raises
every TTL to that: there it is a second."""
HEADER_BYTES = 1024
"""At most so much of `max_payload` is taken by headers."""


class Names(NamedTuple):
    """The names of one bucket on the server."""

    stream: str
    keys: str
    fences: str

    @classmethod
    def of(cls, token: str) -> Names:
        """Those of a bucket."""
        return cls(f"KV_{token}", f"$KV.{token}.", f"$KVF.{token}.")

    def subject(self, key: str) -> str:
        """Where a key's messages are."""
        return self.keys + encoded(key)

    def key(self, subject: str) -> str | None:
        """Whose message it is; None where it is none of ours."""
        return decoded(subject[len(self.keys) :]) if subject.startswith(self.keys) else None


class Outgoing(NamedTuple):
    """A message to be stored."""

    subject: str
    payload: bytes
    headers: dict[str, str]


def is_removal(message: Stored) -> bool:
    """Whether a message says that its key is gone."""
    return MARKER_REASON in message.headers or message.headers.get(OPERATION) in ("DEL", "PURGE")


def is_final(message: Stored) -> bool:
    """Whether it is a removal with nothing older below it."""
    return MARKER_REASON in message.headers or message.headers.get(OPERATION) == "PURGE"


def entry_of(key: str, message: Stored) -> Entry:
    """A value."""
    return Entry(key=key, value=message.payload, revision=message.seq, created_at=message.time_ns // 1_000_000)


def change_of(key: str, message: Stored) -> Change:
    """What became of a key."""
    if not is_removal(message):
        return Change(kind=ChangeKind.PUT, key=key, value=message.payload, revision=message.seq)
    expired = message.headers.get(MARKER_REASON) == "MaxAge"
    return Change(kind=ChangeKind.EXPIRED if expired else ChangeKind.DELETE, key=key, revision=message.seq)


def outgoing(names: Names, write: Write, name: str, *, deep: bool, last: Stored | None) -> Outgoing:
    """The message of a write that has the id `name`. `last` is the last message of its key, where it is known; `deep`
    says that the stream keeps older ones.

    A value with a TTL takes older ones along: they would be read again once it has expired. A removal in a bucket
    without history goes by itself after a while; one that has older values below it must stay.
    """
    headers = {MESSAGE_ID: name}
    if write.kind is WriteKind.PUT:
        if write.ttl_s is not None:
            headers |= {TTL: str(round(write.ttl_s)), ROLLUP: "sub"}
    elif write.kind is WriteKind.DELETE and deep:
        headers[OPERATION] = "DEL"
    else:
        headers |= {OPERATION: "PURGE", ROLLUP: "sub", TTL: str(TOMBSTONES_KEPT_S)}
    if write.expected is not None:
        headers[EXPECTED_LAST_SUBJECT_SEQUENCE] = str(condition(write, last))
    return Outgoing(names.subject(write.key), write.value, headers)


def condition(write: Write, last: Stored | None) -> int:
    """The sequence that the last message of its key must have: a new value may follow a removal."""
    return write.expected or (last.seq if last is not None and is_removal(last) else 0)


def id_of(message: Stored) -> str:
    """The name of the write that a message is from, empty for none."""
    return message.headers.get(MESSAGE_ID, "")
