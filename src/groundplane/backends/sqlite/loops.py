"""Crossing between threads and event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
A = TypeVar("A")


def post(loop: asyncio.AbstractEventLoop, function: Callable[[A], object], argument: A) -> None:
    """Calls a function in another thread's loop; where the loop has ended, nobody waits any more."""
    try:
        loop.call_soon_threadsafe(function, argument)
    except RuntimeError:
        if not loop.is_closed():
            raise


async def in_thread(function: Callable[[], T], *, undo: Callable[[T], None] | None = None) -> T:
    """Runs a blocking function in a thread of its own. When the caller is cancelled meanwhile, the thread goes on,
    and runs `undo` on the value that nobody took."""
    job = _Job(function, undo)
    try:
        return await asyncio.shield(job.future)
    except asyncio.CancelledError:
        job.abandon()
        raise


async def in_thread_within(function: Callable[[], object], timeout_s: float) -> bool:
    """Runs a blocking function in a thread of its own; False where it has not ended after `timeout_s`.

    A thread that blocks for ever is left behind; it does not keep the process alive.
    """
    job = _Job(function, None)
    done, _ = await asyncio.wait({job.future}, timeout=timeout_s)
    if done:
        job.future.result()
    return bool(done)


class _Job(Generic[T]):
    def __init__(self, function: Callable[[], T], undo: Callable[[T], None] | None) -> None:
        self._function = function
        self._undo = undo
        self._lock = threading.Lock()
        self._abandoned = False
        self._values: list[T] = []
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()
        self._start(self._run)

    def abandon(self) -> None:
        """Nobody takes the value any more."""
        with self._lock:
            self._abandoned = True
            waiting = bool(self._values)
        if waiting:
            self._start(self._undo_all)

    def _run(self) -> None:
        try:
            value = self._function()
        except BaseException as error:  # noqa: BLE001 (raised where the value is awaited)
            post(self._loop, self._reject, error)
            return
        with self._lock:
            self._values.append(value)
            abandoned = self._abandoned
        if abandoned:
            self._undo_all()
        else:
            post(self._loop, self._accept, value)

    def _undo_all(self) -> None:
        for value in self._values:
            if self._undo is not None:
                self._undo(value)

    def _start(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name="groundplane-blocking", daemon=True).start()

    def _accept(self, value: T) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def _reject(self, error: BaseException) -> None:
        if not self.future.done() and not self._abandoned:
            self.future.set_exception(error)
