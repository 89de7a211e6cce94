"""What a watcher holds: changes one by one, over any driver's feed."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator

from groundplane.core.errors import InvalidArgument
from groundplane.kv.port import Change, ChangeFeed


class Watch:
    """The changes of a key, of a prefix, or of a whole bucket, in the order of their revisions.

    First comes what is there, as PUTs; then every change, without a gap, also over restarts of the backend. Changes of
    one key that come faster than they are taken may be told as the last of them. One taker at a time.
    """

    def __init__(self, feed: ChangeFeed) -> None:
        self._feed = feed
        self._waiting: deque[Change] = deque()
        self._heard_all = False
        self.revision = 0
        """The revision of the last change that was handed out, 0 before the first."""

    @property
    def synced(self) -> bool:
        """Whether everything that was there when the watch began has been handed out."""
        return self._heard_all and not self._waiting

    @property
    def flowing(self) -> bool:
        """Whether the watch knows that it hears: false from a loss of the backend to its return."""
        return self._feed.flowing

    async def snapshot(self) -> list[Change]:
        """Take everything up to the moment of being synced: what was there when the watch began, and what has changed
        since. Raises `closed`.
        """
        taken: list[Change] = []
        while not self.synced:
            if not self._waiting:
                await self._receive()
            while self._waiting:
                taken.append(self._take())
        return taken

    async def receive(self, timeout_s: float | None = None) -> Change | None:
        """The next change; None after `timeout_s` (None waits without end). Cancelling loses nothing."""
        _check_timeout(timeout_s)
        try:
            async with asyncio.timeout(None if self._waiting else timeout_s):
                while not self._waiting:
                    await self._receive()
        except TimeoutError:
            return None
        return self._take()

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            await self._receive()
        return self._take()

    async def _receive(self) -> None:
        batch = await self._feed.receive()
        self._waiting.extend(batch.changes)
        self._heard_all = self._heard_all or batch.synced

    def _take(self) -> Change:
        change = self._waiting.popleft()
        self.revision = max(self.revision, change.revision)
        return change


def _check_timeout(value: object) -> None:
    if value is not None and (not isinstance(value, int | float) or math.isnan(value)):
        raise InvalidArgument(f"timeout_s: {value!r} is not a number of seconds")
