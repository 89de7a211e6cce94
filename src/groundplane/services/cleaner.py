"""Removing entries that nobody keeps any more.

Entries of this package expire by their TTL. Those that were written without one, by other programs, stay: one whose
revision stands still for longer than `stale_s`, by the clock of whoever looks, is removed unless it beats just then.
"""

from __future__ import annotations

import asyncio

import msgspec

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import Conflict, GroundplaneError, InvalidArgument, NotFound
from groundplane.kv import Entry
from groundplane.services import records
from groundplane.services.registry import Registry
from groundplane.telemetry.logs import get_logger

_GET_MANY = 500
_log = get_logger("services")


class Removed(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An entry that was removed, and for how many seconds at least it had stood still."""

    service_name: str
    instance_id: str
    idle_s: float


class Cleaner:
    """Looks at the registry again and again, and removes what stands still. Several may run at once."""

    def __init__(self, registry: Registry, *, stale_s: float | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        """`stale_s` is three TTLs of the registry where it is left out."""
        if stale_s is not None and not stale_s > 0:
            raise InvalidArgument(f"stale_s: {stale_s!r} must be more than 0 seconds")
        self._registry, self._clock = registry, clock
        self.stale_s = stale_s if stale_s is not None else 3 * registry.settings.ttl_s
        self.removed = 0
        self._seen: dict[str, tuple[int, float]] = {}
        self._turn = asyncio.Lock()

    async def run(self, every_s: float | None = None) -> None:
        """Sweep for ever, every third of `stale_s` where nothing else is said; a sweep that fails is logged."""
        while True:
            try:
                await self.sweep()
            except GroundplaneError as error:
                if error.code == "closed":
                    return
                _log.warning("sweep_failed", code=error.code, error=error.message)
            await asyncio.sleep(every_s if every_s is not None else self.stale_s / 3)

    async def sweep(self) -> list[Removed]:
        """Look once; what was removed. An entry is removed at the earliest `stale_s` after it was first seen as it is.
        One sweep at a time. Raises as `KV` does.
        """
        async with self._turn:
            return await self._sweep()

    async def _sweep(self) -> list[Removed]:
        now = self._clock.monotonic()
        entries = await self._entries()
        before, self._seen = self._seen, {}
        removed: list[Removed] = []
        for entry in entries:
            revision, since = before.get(entry.key, (entry.revision, now))
            since = since if revision == entry.revision else now
            if now - since < self.stale_s or not await self._remove(entry):
                self._seen[entry.key] = (entry.revision, since)
                continue
            service, instance_id = records.names_of(entry.key) or ("", entry.key)
            removed.append(Removed(service_name=service, instance_id=instance_id, idle_s=round(now - since, 3)))
            _log.warning("stale_instance_removed", service=service, instance=instance_id, idle_s=round(now - since, 3))
        self.removed += len(removed)
        return removed

    async def _entries(self) -> list[Entry]:
        keys, cursor, kv = [], None, self._registry.kv
        while True:
            page = await kv.keys(records.INSTANCES, cursor=cursor)
            keys += page.items
            cursor = page.cursor
            if cursor is None:
                break
        found: list[Entry] = []
        for start in range(0, len(keys), _GET_MANY):
            found += (await kv.get_many(keys[start : start + _GET_MANY])).values()
        return found

    async def _remove(self, entry: Entry) -> bool:
        try:
            await self._registry.kv.delete(entry.key, revision=entry.revision)
        except (Conflict, NotFound):  # it lives, or has gone by itself
            return False
        return True


__all__ = ["Cleaner", "Removed"]
