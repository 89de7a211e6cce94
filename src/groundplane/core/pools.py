"""Pools of connections of this process, for whoever shows them: each backend announces its own when it opens one.

pools.announce(engine)          # kept weakly: a pool that is gone is not shown
for state in pools.states(): …
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Protocol

import msgspec


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """One pool now. `in_use` and `idle` count what it holds: connections, workers, or channels, as `backend` has them.

    `waiting` counts calls that wait for one; of RabbitMQ, which has no such calls, what it has not confirmed yet.
    `size_max` is None where it is not bounded by a number. `reconnects` counts connections that were lost and made
    again.
    """

    backend: str
    in_use: int
    idle: int
    waiting: int
    size_max: int | None = None
    reconnects: int = 0


class Pooled(Protocol):
    """What has pools."""

    def pools(self) -> Iterable[PoolState]:
        """Their states now; none where it is closed. Never blocks, never raises."""
        ...


_announced: weakref.WeakSet[Pooled] = weakref.WeakSet()


def announce(owner: Pooled) -> None:
    """Show the pools of `owner` for as long as it lives."""
    _announced.add(owner)


def states() -> list[PoolState]:
    """The pools of this process, those of one backend added up."""
    found: dict[str, PoolState] = {}
    for owner in list(_announced):
        for one in owner.pools():
            found[one.backend] = _sum(found[one.backend], one) if one.backend in found else one
    return list(found.values())


def _sum(one: PoolState, other: PoolState) -> PoolState:
    bounded = one.size_max is not None and other.size_max is not None
    return PoolState(
        backend=one.backend,
        in_use=one.in_use + other.in_use,
        idle=one.idle + other.idle,
        waiting=one.waiting + other.waiting,
        size_max=(one.size_max or 0) + (other.size_max or 0) if bounded else None,
        reconnects=one.reconnects + other.reconnects,
    )
