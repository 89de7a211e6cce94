"""Outcomes on their way into blobs: many at once, and a moment late where that is cheaper.

Where puts share the sync of a disk, one that is done at once stands in the way of the next call's, which somebody waits
for; nobody waits for the file of an outcome that was told. There, puts are gathered for a moment, or until there are
enough. A store that is a server takes each as it comes.
"""

from __future__ import annotations

import asyncio

from groundplane.blobs.port import Capability
from groundplane.blobs.store import Blobs

LINGER_S = 0.05
BATCH = 32


class Filing:
    """Puts of one end actor, at most `BATCH` under way. May be used concurrently in one loop; nothing is retried."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._gathers = Capability.SHARES_SYNC in blobs.capabilities
        self._turns = asyncio.Semaphore(BATCH)
        self._waiting = 0
        self._round: asyncio.Event | None = None

    async def put(self, key: str, data: bytes) -> None:
        """Durable when it returns. Raises as `Blobs.put` does, about this object alone."""
        if self._gathers:
            await self._gathered()
        async with self._turns:
            await self._blobs.put(key, data, content_type="application/json")

    async def _gathered(self) -> None:
        """Until `BATCH` wait, or the first of them has waited for `LINGER_S`."""
        if self._round is None:
            self._round, self._waiting = asyncio.Event(), 0
            asyncio.get_running_loop().call_later(LINGER_S, self._let_go, self._round)
        this = self._round
        self._waiting += 1
        if self._waiting >= BATCH:
            self._let_go(this)
        await this.wait()

    def _let_go(self, this: asyncio.Event) -> None:
        this.set()
        if self._round is this:
            self._round = None


__all__ = ["BATCH", "LINGER_S", "Filing"]
