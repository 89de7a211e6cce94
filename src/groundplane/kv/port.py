"""The port of key-value storage: buckets of small values with revisions, conditions, TTL and watches."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from groundplane.core.fencing import Fence

VALUE_BYTES_MAX = 1024 * 1024
MANY_MAX = 1000
HISTORY_MAX = 64
TOMBSTONES_KEPT_S = 3600
"""How long a removal is remembered, at least: for watches that begin `after` a revision. Expiries on NATS: a minute."""


class Capability(enum.Flag):
    """What a driver declares; the suite asserts the refusal (`unsupported`) of what is absent."""

    NONE = 0
    TTL = enum.auto()
    """Values may have a TTL. Absent also where the bucket was not opened with it."""
    HISTORY = enum.auto()
    """More than the last value of a key can be kept."""
    FENCES = enum.auto()
    """Writes may show a fence."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of one opened bucket: the largest value in bytes, what a TTL is a multiple of in seconds (None: there is
    none), how many values of a key are kept, how many keys one call may name.
    """

    value_bytes_max: int
    ttl_resolution_s: float | None
    history: int
    many_max: int = MANY_MAX


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A value as it was written: its revision rises with every write to the bucket; `created_at` is Unix ms."""

    key: str
    value: bytes
    revision: int
    created_at: int


class ChangeKind(enum.StrEnum):
    """What became of a key."""

    PUT = "put"
    DELETE = "delete"
    EXPIRED = "expired"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a key, `value` empty unless it is a PUT. DELETE and EXPIRED have revisions of their own."""

    kind: ChangeKind
    key: str
    value: bytes = b""
    revision: int


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What a feed hands out at once. `synced`: everything that was there when the watch began has come by now."""

    changes: list[Change]
    synced: bool


class KeyPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of keys, by the bytes of their UTF-8 form; `cursor` of the next page, or None at the end."""

    items: list[str]
    cursor: str | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket now: live keys, bytes of values (with what the backend adds to them), the last revision."""

    bucket: str
    backend: str
    keys: int
    bytes: int
    revision: int
    history: int
    ttl: bool
    limits: Limits


class WriteKind(enum.StrEnum):
    """What a write does. PURGE is a delete that also forgets the older values of the key."""

    PUT = "put"
    DELETE = "delete"
    PURGE = "purge"


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """One write. `expected` is the revision that the key must have, 0 for none at all, None for any."""

    kind: WriteKind
    key: str
    value: bytes = b""
    ttl_s: float | None = None
    expected: int | None = None


class WriteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Of one call of `write`. `id` names it for ever; `repeated`: it was sent before, and may have been done."""

    id: str
    fence: Fence | None = None
    repeated: bool = False


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What is watched: one key, or all that begin with a prefix; with `after` only what changed since that revision."""

    key: str | None = None
    prefix: str = ""
    after: int | None = None


class BucketOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a bucket is opened with. `history` and `ttl` only ever grow what the bucket keeps; each handle answers for
    what it asked for. Without `create` one that is missing is an error (`missing_bucket`). `state`, `upgrade` and
    `inline` are of drivers with a file.
    """

    bucket: str
    namespace: str
    state: str
    history: int = 1
    ttl: bool = False
    create: bool = True
    upgrade: bool = False
    inline: bool = False


class ChangeFeed(Protocol):
    """The changes of a selection. It survives restarts of its backend by itself."""

    @property
    def flowing(self) -> bool:
        """Whether the feed knows that it hears: false between a loss of the backend and the rebuilding."""
        ...

    async def receive(self) -> Changes:
        """The next changes, in the order of their revisions; waits for one, or for the moment of being synced.

        First the live entries of the selection as PUTs (with `after`: what changed since, removals included), then
        every change without a gap. Changes of one key that come faster than they are received may be told as the last
        of them. A removal that happened while the backend was away is told when it is back, at the latest. One caller
        at a time; cancelling loses nothing. Raises `closed`.
        """
        ...


class KVDriver(Protocol):
    """One bucket. Keys, sizes and TTLs are checked by the façade. May be called concurrently."""

    capabilities: Capability
    limits: Limits

    async def get(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The live entries of these keys, in their order; those that are absent or expired are left out. One round
        trip for all. Raises `unavailable`, never an empty answer, when the backend is away.
        """
        ...

    async def write(self, writes: Sequence[Write], options: WriteOptions) -> list[int]:
        """Do all of the writes, which name different keys, in one atomic step, durable when it returns; or none of
        them. Their revisions, in order; 0 for a removal of what was not there, which changes nothing.

        Raises `already_exists` (`expected` 0, details: key, revision), `not_found` (`expected` given, no entry),
        `conflict` (another revision; details: key, expected, actual), `conflict` (reason `term_old`) where a higher
        term was shown for the fence's name, `unavailable` and `deadline_exceeded`: then it may have been done.
        A `repeated` write that was done before is not done again, and answers as it did then; where that cannot be
        known, because the key has changed since: `deadline_exceeded` (reason `outcome_unknown`).
        """
        ...

    async def clear(self, prefix: str) -> int:
        """Delete every key that begins with `prefix`, as single deletes; how many there were."""
        ...

    async def keys(self, prefix: str, *, cursor: str | None, limit: int) -> KeyPage:
        """Live keys that begin with `prefix` and come after `cursor`, a key, by the bytes of their UTF-8 form."""
        ...

    async def history(self, key: str) -> list[Entry]:
        """The values of a key that are kept, newest first, also when it was deleted since; none after a purge, an
        expiry, and before a value with a TTL, which is the only one of its key.
        """
        ...

    async def status(self) -> Status:
        """The bucket now."""
        ...

    def watch(self, selection: Selection) -> AbstractAsyncContextManager[ChangeFeed]:
        """A feed of changes; entered, it hears. Raises `unavailable` when the backend is away at its beginning."""
        ...

    async def aclose(self) -> None:
        """Close what this driver opened, feeds included. Idempotent, ≤ 10 s."""
        ...
