"""What was looked up, for a while: bounded in time and number, counted, and kept a little longer for when the source
does not answer. No input or output.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from groundplane.core.clock import Clock
from groundplane.services.port import Instance


class Kept(msgspec.Struct, kw_only=True):
    """What the source said of one service, when (monotonic seconds), to which question, and whether it may have
    changed since.
    """

    instances: tuple[Instance, ...]
    at: float
    question: int = 0
    invalidated: bool = False


class InstanceCache:
    """The instances of up to `entries_max` services, the least recently asked for dropped first."""

    def __init__(self, *, ttl_s: float, stale_s: float, entries_max: int, clock: Clock) -> None:
        self._ttl_s, self._stale_s, self._entries_max, self._clock = ttl_s, stale_s, entries_max, clock
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self.evictions = 0
        self.invalidations = 0

    def __len__(self) -> int:
        return len(self._kept)

    def fresh(self, service: str) -> Kept | None:
        """What may be answered without asking: younger than the TTL and not invalidated."""
        kept = self._kept.get(service)
        if kept is None:
            return None
        self._kept.move_to_end(service)
        return kept if not kept.invalidated and self.age_s(kept) < self._ttl_s else None

    def stale(self, service: str) -> Kept | None:
        """What may be answered, marked, where the source does not answer."""
        kept = self._kept.get(service)
        if kept is None or self.age_s(kept) < self._ttl_s + self._stale_s:
            return kept
        del self._kept[service]
        return None

    def age_s(self, kept: Kept) -> float:
        """Seconds since the source said it."""
        return max(0.0, self._clock.monotonic() - kept.at)

    def put(self, service: str, instances: Iterable[Instance], *, question: int = 0, invalidated: bool = False) -> Kept:
        """Keep what the source has said just now, unless the answer to a later `question` is kept already."""
        now, before = self._clock.monotonic(), self._kept.get(service)
        kept = Kept(instances=tuple(instances), at=now, question=question, invalidated=invalidated)
        if before is not None and before.question > question:
            return kept
        self._kept[service] = kept
        self._kept.move_to_end(service)
        if len(self._kept) > self._entries_max:
            self._kept.popitem(last=False)
            self.evictions += 1
        return kept

    def invalidate(self, service: str) -> None:
        """Ask again before it is answered; what is kept remains for when the source does not answer."""
        kept = self._kept.get(service)
        if kept is not None and not kept.invalidated:
            kept.invalidated = True
            self.invalidations += 1

    def invalidate_all(self) -> None:
        """As `invalidate`, for every service."""
        for service in self._kept:
            self.invalidate(service)


__all__ = ["InstanceCache", "Kept"]
