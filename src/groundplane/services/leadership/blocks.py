"""Blocks of a user's code that run while a term lasts, and are cancelled with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from groundplane.core.errors import Conflict


class _Block:
    __slots__ = ("cancelling", "reason", "task", "term")

    def __init__(self, task: asyncio.Task[Any], term: int) -> None:
        self.task = task
        self.term = term
        self.cancelling = task.cancelling()
        self.reason: str | None = None

    def end(self, reason: str) -> bool:
        if self.reason is not None:
            return False
        self.reason = reason
        return self.task.cancel()


class Blocks:
    """Those of one election."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._blocks: set[_Block] = set()
        self._left = asyncio.Event()

    @contextmanager
    def run(self, term: int) -> Iterator[None]:
        """Run what is within until the term ends: then it is cancelled, and `conflict` (`leadership_lost`) comes out,
        unless the task was cancelled from elsewhere too.
        """
        task = asyncio.current_task()
        assert task is not None
        block, counted = _Block(task, term), False
        self._blocks.add(block)
        try:
            yield
        except asyncio.CancelledError:
            counted = True
            if block.reason is None or task.uncancel() > block.cancelling:
                raise
            raise Conflict(
                f"{self._name}: term {term} has ended ({block.reason}); whoever leads now goes on",
                reason="leadership_lost",
                details={"name": self._name, "term": term, "why": block.reason},
            ) from None
        finally:
            if block.reason is not None and not counted:  # what was within has kept the cancellation to itself
                task.uncancel()
            self._blocks.discard(block)
            self._left.set()

    def end(self, term: int, reason: str) -> bool:
        """Cancel the blocks of a term. Whether there were any."""
        return sum(block.end(reason) for block in self._blocks if block.term == term) > 0

    def end_all(self, reason: str = "released") -> None:
        """Cancel every block."""
        for block in self._blocks:
            block.end(reason)

    def of_others(self, term: int) -> bool:
        """Whether a block of another term still runs."""
        return any(block.term != term for block in self._blocks)

    async def others_ended(self, term: int) -> None:
        """Wait until no block of another term runs."""
        while self.of_others(term):
            await self._changed()

    def current_task_is_in(self) -> bool:
        """Whether the caller runs within a block."""
        return any(block.task is asyncio.current_task() for block in self._blocks)

    async def ended(self, timeout_s: float) -> bool:
        """Wait until all have ended; False after so long."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._blocks:
                    await self._changed()
        except TimeoutError:
            return False
        return True

    async def _changed(self) -> None:
        """Wait until a block has ended. Nothing comes between the caller's look and this: it runs in the same step."""
        self._left.clear()
        await self._left.wait()
