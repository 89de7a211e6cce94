"""Outcomes on their way into blobs: many at once, and a moment late.

A put costs a sync of the disk, and one that is shared with the puts beside it. Done at once it stands in the way of
the next call's, which somebody waits for; nobody waits for the file of an outcome that was told. So puts are gathered
for a moment, or until there are enough.
"""

from __future__ import annotations

import asyncio

from groundplane.blobs.store import Blobs

LINGER_S = 0.05
BATCH = 32


class Filing:
    """Puts of one end actor. May be used concurrently in one loop; nothing is retried here."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._waiting: list[tuple[str, bytes, asyncio.Future[None]]] = []
        self._enough = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def put(self, key: str, data: bytes) -> None:
        """Durable when it returns. Raises as `Blobs.put` does, about this object alone."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((key, data, future))
        if len(self._waiting) >= BATCH:
            self._enough.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="groundplane-filing")
        await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                chosen, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                await asyncio.gather(*(self._one(*item) for item in chosen))
        finally:
            self._task = None
            for _, _, future in self._waiting:
                future.cancel()

    async def _gather(self) -> None:
        if len(self._waiting) < BATCH:
            self._enough.clear()
            try:
                async with asyncio.timeout(LINGER_S):
                    await self._enough.wait()
            except TimeoutError:
                return

    async def _one(self, key: str, data: bytes, future: asyncio.Future[None]) -> None:
        try:
            await self._blobs.put(key, data, content_type="application/json")
        except Exception as error:  # noqa: BLE001 - it is the outcome of the put, for whoever waits for it
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(None)


__all__ = ["BATCH", "LINGER_S", "Filing"]
