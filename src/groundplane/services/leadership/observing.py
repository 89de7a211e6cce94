"""Who leads, as somebody sees it who is no candidate: for metrics and pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from groundplane.core.clock import iso_z
from groundplane.core.errors import GroundplaneError, Unavailable
from groundplane.kv import KV, Change, ChangeKind, Watch
from groundplane.services.leadership.election import Record, decoded
from groundplane.services.leadership.leadership import KEY_PREFIX, lease_clock
from groundplane.telemetry.logs import get_logger

ELECTIONS_MAX = 1000
_WATCH_AGAIN_S = 1.0
_log = get_logger("leadership")


class Lead(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One election. `leader` and `term` are None where nobody leads; `since` is when the term began by the leader's own
    clock, ISO 8601 in UTC; `lease_s` is how long a silent leader is still waited for.
    """

    name: str
    leader: str | None = None
    term: int | None = None
    since: str | None = None
    lease_s: float | None = None


@dataclass(frozen=True)
class _Seen:
    record: Record | None
    revision: int
    at: float


class Leaders:
    """The elections of one bucket, kept up to date by a watch while `run` runs. A leader whose record stands still for
    longer than its lease is told no more: by the clock of whoever looks, as the candidates do it.
    """

    def __init__(self, kv: KV, *, clock: Callable[[], float] = lease_clock) -> None:
        """Over a bucket that stays the caller's."""
        self._kv, self._clock = kv, clock
        self._watch: Watch | None = None
        self._seen: dict[str, _Seen] = {}
        self._error: GroundplaneError | None = None

    async def run(self) -> None:
        """Watch until the bucket is closed; a watch that fails is begun anew."""
        while True:
            try:
                async with self._kv.watch(prefix=KEY_PREFIX) as watch:
                    await self._follow(watch)
            except GroundplaneError as error:
                self._error = error
                if error.code == "closed":
                    return
                _log.warning("leaders_not_watched", code=error.code, error=error.message)
            finally:
                self._watch = None
            await asyncio.sleep(_WATCH_AGAIN_S)

    def all(self) -> list[Lead]:
        """Every election of which something was heard, sorted by name; at most 1,000. Raises `unavailable` while the
        watch is away: what was heard before says nothing of now.
        """
        if self._watch is None or not self._watch.flowing:
            why = f": {self._error.message}" if self._error is not None else ""
            raise Unavailable(f"leaders: the store of the elections does not answer{why}")
        return [self._told(name, self._seen[name]) for name in sorted(self._seen)[:ELECTIONS_MAX]]

    async def _follow(self, watch: Watch) -> None:
        snapshot = await watch.snapshot()
        self._seen.clear()
        for change in snapshot:
            self._take(change)
        self._watch, self._error = watch, None
        async for change in watch:
            self._take(change)

    def _take(self, change: Change) -> None:
        name = change.key.removeprefix(KEY_PREFIX)
        if change.kind is ChangeKind.PUT:
            self._seen[name] = _Seen(decoded(change.value), change.revision, self._clock())
        else:
            self._seen.pop(name, None)

    def _told(self, name: str, seen: _Seen) -> Lead:
        record = seen.record
        if record is None or record.released or self._clock() >= seen.at + record.lease_ms / 1000:
            return Lead(name=name)
        return Lead(
            name=name,
            leader=record.member,
            term=record.term or seen.revision,
            since=iso_z(record.since_ms) if record.since_ms is not None else None,
            lease_s=record.lease_ms / 1000,
        )


__all__ = ["ELECTIONS_MAX", "Lead", "Leaders"]
