"""Natural batches: whatever came while the batch before was under way goes together. No timer, no lingering."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")

BATCH_MAX = 512


class Batcher(Generic[Item, Done]):
    """Hands items to `flush` in order, many at once. `flush` returns a value or an exception for each.

    May be used concurrently in one loop. Nothing is retried here. The task that flushes ends when there is nothing to
    do; `aclose` waits for it.
    """

    def __init__(
        self, flush: Callable[[list[Item]], Awaitable[Sequence[Done | Exception]]], *, batch_max: int = BATCH_MAX
    ) -> None:
        self._flush = flush
        self._batch_max = batch_max
        self._waiting: deque[tuple[Item, asyncio.Future[Done] | None]] = deque()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, item: Item) -> asyncio.Future[Done]:
        """Put an item into the next batch; the future has its value, or its exception."""
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._add(item, future)
        return future

    def post(self, item: Item) -> None:
        """Put an item into the next batch and do not ask what became of it."""
        self._add(item, None)

    async def aclose(self) -> None:
        """Wait for everything that was handed over."""
        while self._task is not None:
            await asyncio.shield(self._task)

    def _add(self, item: Item, future: asyncio.Future[Done] | None) -> None:
        self._waiting.append((item, future))
        if self._task is None:
            # in a context of its own: a batch is about nobody in particular, also not about who began it
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), name="groundplane-batcher", context=Context())

    async def _run(self) -> None:
        try:
            while self._waiting:
                chosen = [self._waiting.popleft() for _ in range(min(self._batch_max, len(self._waiting)))]
                await self._one(chosen)
        finally:
            self._task = None

    async def _one(self, chosen: list[tuple[Item, asyncio.Future[Done] | None]]) -> None:
        try:
            values = await self._flush([item for item, _ in chosen])
        except Exception as error:  # noqa: BLE001 - handed to everyone who waits for this batch
            values = [error] * len(chosen)
        except BaseException:
            for _, future in chosen:
                if future is not None and not future.done():
                    future.cancel()
            raise
        for (_, future), value in zip(chosen, values, strict=True):
            if future is None or future.done():
                continue
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)
