"""Who holds a key: looked up once, then known for a few seconds, in bounded space.

A key that was verified is known for `KNOWN_S`, so a revocation holds everywhere within that time. Keys that open
nothing are remembered apart from the good ones: whoever tries many of them pushes out nobody. What cannot be a key is
refused without a look. A store that is away is an error, and never a refusal.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from groundplane.core.clock import Clock
from groundplane.core.errors import ResourceExhausted
from groundplane.security.access import Caller
from groundplane.security.keys import digest_of, key_id_of
from groundplane.security.port import FoundKey

KNOWN_S = 5.0
KNOWN_MAX = 10_000
LOOKUPS_MAX = 16
WAITING_MAX = 1_000

Find = Callable[[str], Awaitable[FoundKey | None]]


class KeyVerifier:
    """Verifies keys. `find` looks one up; `used` holds the ids that were used since they were last taken from it."""

    def __init__(self, find: Find, clock: Clock) -> None:
        self._find = find
        self._clock = clock
        self._known: OrderedDict[bytes | str, tuple[float, Caller]] = OrderedDict()
        self._refused: OrderedDict[bytes | str, float] = OrderedDict()
        self._looking: dict[bytes | str, asyncio.Future[Caller | None]] = {}
        self._turn = asyncio.Semaphore(LOOKUPS_MAX)
        self.used: set[str] = set()
        self.lookups = 0

    async def verify(self, text: str) -> Caller | None:
        """The holder of this key; None where it opens nothing (any more)."""
        key_id = key_id_of(text)
        if key_id is None:
            return None
        digest = digest_of(text)
        return await self._caller(digest, key_id, digest)

    async def caller_of(self, key_id: str) -> Caller | None:
        """The holder of the key of that id, for what was opened with it: a login. None where it opens nothing."""
        return await self._caller(key_id, key_id, None)

    async def _caller(self, cached: bytes | str, key_id: str, digest: bytes | None) -> Caller | None:
        now = self._clock.monotonic()
        known = self._known.get(cached)
        if known is not None and now < known[0]:
            self.used.add(key_id)
            return known[1]
        if self._refused.get(cached, 0.0) > now:
            return None
        under_way = self._looking.get(cached)
        if under_way is None:
            if len(self._looking) >= WAITING_MAX:
                raise ResourceExhausted("key: too many unknown keys are being looked up; try again later")
            under_way = asyncio.ensure_future(self._look_up(cached, key_id, digest))
            self._looking[cached] = under_way
            under_way.add_done_callback(lambda _: self._looking.pop(cached, None))
        caller = await asyncio.shield(under_way)
        if caller is not None:
            self.used.add(key_id)
        return caller

    async def _look_up(self, cached: bytes | str, key_id: str, digest: bytes | None) -> Caller | None:
        began = self._clock.monotonic()
        async with self._turn:
            self.lookups += 1
            found = await self._find(key_id)
        self._known.pop(cached, None)
        if found is None or not found.live or not (digest is None or hmac.compare_digest(found.digest, digest)):
            self._refused[cached] = began + KNOWN_S
            self._refused.move_to_end(cached)
            _bound(self._refused)
            return None
        key = found.key
        caller = Caller(principal=key.principal, name=key.name, kind="key", scopes=key.scopes, key_id=key.key_id)
        self._known[cached] = (began + min(KNOWN_S, KNOWN_S if found.left_s is None else found.left_s), caller)
        _bound(self._known)
        return caller


def _bound(cache: OrderedDict[bytes | str, float] | OrderedDict[bytes | str, tuple[float, Caller]]) -> None:
    """Forget the oldest beyond the bound."""
    while len(cache) > KNOWN_MAX:
        cache.popitem(last=False)
