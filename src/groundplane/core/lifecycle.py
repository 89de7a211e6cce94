"""Lifecycle: one task group per opened object, a stop in stages, and nothing left behind.

Stages: refuse new work, finish what runs within the grace, cancel the rest, close. `aclose` is idempotent, may be
called
while calls are blocked, and returns within its bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any

from groundplane.core.errors import Closed

CLOSE_TIMEOUT_S = 10.0


class Lifecycle:
    """Owns the tasks and closers of one object. Start tasks with `spawn`; register what to close with `on_close`
    (LIFO).
    """

    def __init__(self, name: str, *, close_timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        self.name = name
        self.failure: BaseException | None = None
        self._close_timeout_s = close_timeout_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._closing: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<Lifecycle {self.name} {state}, {len(self._tasks)} tasks>"

    @property
    def closed(self) -> bool:
        """Whether closing has begun; from then on no call is accepted."""
        return self._stopping.is_set()

    @property
    def stopping(self) -> asyncio.Event:
        """Set when closing begins: loops wait for it beside their work."""
        return self._stopping

    def check_open(self) -> None:
        """Raise `Closed` once closing has begun."""
        if self._stopping.is_set():
            raise Closed(f"{self.name}: is closed; open it again to use it")

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `work` until it ends or the object closes. Its failure is kept in `failure`, for readiness to report."""
        if self._stopping.is_set():
            work.close()
            self.check_open()
        # in a context of its own: it is about the object, not about whoever came first
        task = asyncio.create_task(work, name=f"{self.name}:{name}", context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Await `closer` on closing, after the tasks have ended, in reverse order."""
        self._closers.append(closer)

    async def run(self, call: Awaitable[Any]) -> Any:
        """Await `call`, or raise `Closed` as soon as the object closes under it."""
        self.check_open()
        work = asyncio.ensure_future(call)
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise Closed(f"{self.name}: was closed during the call; its outcome is unknown")
        finally:
            for task in (work, stop):
                if not task.done():
                    task.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)

    async def aclose(self, *, grace_s: float = 0.0) -> None:
        """Stop in stages and wait for it. A second call waits for the first."""
        if self._closing is None:
            self._stopping.set()
            self._closing = asyncio.create_task(self._close(grace_s), name=f"{self.name}:close")
        await asyncio.shield(self._closing)

    async def _close(self, grace_s: float) -> None:
        try:
            async with asyncio.timeout(self._close_timeout_s):
                if self._tasks and grace_s > 0:
                    await asyncio.wait(self._tasks, timeout=min(grace_s, self._close_timeout_s / 2))
                for task in list(self._tasks):
                    task.cancel()
                if self._tasks:
                    await asyncio.wait(list(self._tasks))
        finally:
            await self._run_closers()

    async def _run_closers(self) -> None:
        failures: list[Exception] = []
        while self._closers:
            try:
                async with asyncio.timeout(self._close_timeout_s):
                    await self._closers.pop()()
            except Exception as error:  # noqa: BLE001 - each closer gets its turn, all are raised below
                failures.append(error)
        if failures:
            raise ExceptionGroup(f"{self.name}: closing failed", failures)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self.failure is None:
            self.failure = task.exception()
