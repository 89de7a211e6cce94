"""The port of the mesh's ledger: effects that were done (`ctx.once`), children that arrived at a join, and deliveries
that were handled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import msgspec

HANDLED_WINDOW_S = 600.0
"""How long the key of a handled delivery is known at least."""


def hashed(namespace: str, key: str) -> bytes:
    """What stands for the key of a handled delivery where many are kept: 16 bytes."""
    return hashlib.blake2b(f"{namespace}\0{key}".encode(), digest_size=16).digest()


class Once(msgspec.Struct, frozen=True):
    """The state of a keyed effect: `new` (now begun by the caller), `done` with its value, or `begun` by an attempt
    that never ended it.
    """

    state: Literal["new", "done", "begun"]
    value: Any = None


class JoinKey(msgspec.Struct, frozen=True):
    """A join: the children that `parent_id` made at `hop`, awaited by `actor`."""

    parent_id: str
    hop: int
    actor: str


class JoinState(msgspec.Struct, frozen=True):
    """How many of `total` children have arrived, and whether the join was released before."""

    arrived: int
    total: int
    released: bool


class Ledger(Protocol):
    """Durable notes of the mesh. May be called concurrently, by several processes; every write is durable when it
    returns.
    """

    async def once_begin(self, key: str) -> Once:
        """Begin the effect `key` unless it is done. `begun` is returned to every caller until `once_end`."""
        ...

    async def once_end(self, key: str, value: Any) -> None:
        """Record that the effect was done. The first value stays; a repeat changes nothing."""
        ...

    async def join_add(self, key: JoinKey, index: int, total: int, payload: bytes) -> JoinState:
        """Record child `index` of `total`; a repeat changes nothing. Children after the release are refused:
        `released` is true.
        """
        ...

    async def join_items(self, key: JoinKey) -> dict[int, bytes]:
        """The payloads that have arrived, by index."""
        ...

    async def join_release(self, key: JoinKey) -> None:
        """The joined envelope was handed on: later children are late. Idempotent; frees the payloads."""
        ...

    async def handled(self, *, ask: Iterable[str] = (), done: Iterable[str] = ()) -> frozenset[str]:
        """Record that the deliveries with the keys `done` were handled; those of `ask` that were recorded before this
        call, within the last `HANDLED_WINDOW_S` seconds or a little longer. One round trip, in one transaction.

        Repeating `done` changes nothing. Keys are forgotten by themselves when the window is over.
        """
        ...

    async def collect(self, older_than_s: float) -> int:
        """Delete notes older than that, in seconds; how many."""
        ...

    async def aclose(self) -> None:
        """Close what this driver opened. Idempotent, ≤ 10 s."""
        ...
