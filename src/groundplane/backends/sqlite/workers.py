"""Who runs the calls: a writer thread, reader threads, or the loop itself.

The threads never block the loop. Running inline spares two thread switches for each call, which is most of the time of
a small one; it is for processes that do little else (a sidecar). It falls back to the writer thread whenever the lock
of the file is not free at once, and while the disk is slow.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable

import apsw

from groundplane.backends.sqlite.commit import Call, GroupCommit, check_result, fail, resolve
from groundplane.backends.sqlite.errors import translate
from groundplane.backends.sqlite.transaction import Transaction
from groundplane.core.errors import Closed, ResourceExhausted

_INLINE_SYNC_MAX_S = 0.001
"""Syncs that take longer, as a moving mean, are not done in the loop."""
_INLINE_PAUSE_S = 0.002
"""Syncs that come closer together are not done in the loop either: while it is busy it has better things to do."""


class WriterThread:
    """Takes whatever has come, commits it, and so on. Calls are run in the order of `submit`."""

    def __init__(self, commit: GroupCommit, queue_max: int) -> None:
        self._commit = commit
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._queue_max = queue_max
        self._carried: list[Call] = []
        self._lock = threading.Lock()
        self._outstanding = 0
        self._thread = threading.Thread(target=self._work, name="groundplane-writer", daemon=True)
        self._thread.start()

    @property
    def outstanding(self) -> int:
        """Calls that were submitted and have no outcome yet."""
        return self._outstanding

    def submit(self, call: Call) -> None:
        """`resource_exhausted` (`queue_full`) where too many wait."""
        if self._queue.qsize() >= self._queue_max:
            raise too_many_writes(self._queue_max)
        with self._lock:
            self._outstanding += 1
        self._queue.put(call)

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread after what was submitted before. Returns whether it has ended in time."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (calls := self._next()) is not None:
            rest: list[Call] = []
            try:
                rest = self._commit.run(calls) or []
            except BaseException as error:  # noqa: BLE001 (it is the outcome of the call)
                fail(calls, error)
                resolve(calls)
            self._carried = rest
            with self._lock:
                self._outstanding -= len(calls) - len(rest)

    def _next(self) -> list[Call] | None:
        calls = self._carried
        try:
            while True:
                call = self._queue.get(block=not calls)
                if call is None:
                    if not calls:
                        return None
                    self._queue.put(None)
                    break
                calls.append(call)
        except queue.Empty:
            pass
        return calls


class InlineWriter:
    """Commits in the loop whatever was submitted in one of its rounds, where that needs no waiting."""

    def __init__(
        self, commit: GroupCommit, thread: WriterThread, loop: asyncio.AbstractEventLoop, queue_max: int
    ) -> None:
        self._commit = commit
        self._queue_max = queue_max
        self._thread = thread
        self._loop = loop
        self._calls: list[Call] = []
        self._synced_at = -math.inf
        self.handed_over = 0

    def submit(self, call: Call) -> None:
        if call.loop is not self._loop:
            self._thread.submit(call)
            return
        if len(self._calls) >= self._queue_max:
            raise too_many_writes(self._queue_max)
        if not self._calls:
            self._loop.call_soon(self._flush)
        self._calls.append(call)

    def _flush(self) -> None:
        calls, self._calls = self._calls, []
        rest: list[Call] | None = calls
        if not self._thread.outstanding and self._commit.sync_s < _INLINE_SYNC_MAX_S and not self._syncs_often(calls):
            rest = self._commit.run(calls, wait=False)
            rest = calls if rest is None else rest
        for call in rest or ():
            self._hand_over(call)

    def _syncs_often(self, calls: list[Call]) -> bool:
        if not any(call.durable for call in calls):
            return False
        now = time.monotonic()
        before, self._synced_at = self._synced_at, now
        return now - before < _INLINE_PAUSE_S

    def _hand_over(self, call: Call) -> None:
        self.handed_over += 1
        try:
            self._thread.submit(call)
        except ResourceExhausted as error:
            fail([call], error)
            resolve([call])


class Snapshots:
    """Runs reads on one connection, each in a transaction of its own."""

    def __init__(self, connection: apsw.Connection, path: str) -> None:
        self.connection = connection
        self._cursor = connection.cursor()
        self._path = path

    def run(self, call: Call) -> None:
        """Runs one read and notes its outcome."""
        transaction = Transaction(self.connection, self._cursor, self._path, writable=False)
        try:
            self._cursor.execute("BEGIN")
            try:
                call.value = check_result(call.work(transaction))
            finally:
                if self.connection.in_transaction:
                    self._cursor.execute("ROLLBACK")
        except apsw.Error as error:
            fail([call], translate(error, self._path), error)
        except Exception as error:  # noqa: BLE001 (it is the outcome of the call)
            call.error = error
        finally:
            transaction.end()


class ReaderThreads:
    """A few threads with a connection each, started when they are needed."""

    def __init__(self, connect: Callable[[], Snapshots], threads: int, queue_max: int) -> None:
        self._connect = connect
        self._threads_max = threads
        self._queue_max = queue_max
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._connections: list[apsw.Connection] = []
        self._lock = threading.Lock()
        self._idle = 0

    @property
    def queued(self) -> int:
        return self._queue.qsize()

    @property
    def connections(self) -> list[apsw.Connection]:
        return list(self._connections)

    def submit(self, call: Call) -> None:
        """`resource_exhausted` (`queue_full`) where too many wait."""
        if self._queue.qsize() >= self._queue_max:
            raise ResourceExhausted(
                f"read_queue_max: {self._queue_max!r} reads wait; read less at once",
                reason="queue_full",
                details={"read_queue_max": self._queue_max},
            )
        with self._lock:
            if self._queue.qsize() >= self._idle and len(self._threads) < self._threads_max:
                name = f"groundplane-reader-{len(self._threads) + 1}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
        self._queue.put(call)

    def stop(self, timeout_s: float) -> bool:
        """Interrupts what runs, fails what waits, ends the threads. Returns whether they have ended in time."""
        until = time.monotonic() + timeout_s
        self._refuse_waiting()
        for connection in self._connections:
            connection.interrupt()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _refuse_waiting(self) -> None:
        refused: list[Call] = []
        while not self._queue.empty():
            call = self._queue.get()
            if call is not None:
                refused.append(call)
        fail(refused, Closed("database: it was closed before the read began"))
        resolve(refused)

    def _work(self) -> None:
        snapshots: Snapshots | None = None
        while (call := self._take()) is not None:
            try:
                if snapshots is None:
                    snapshots = self._connect()
                    self._connections.append(snapshots.connection)
                if not call.future.done():
                    snapshots.run(call)
            except Exception as error:  # noqa: BLE001 (it is the outcome of the call)
                fail([call], error)
            resolve([call])
        if snapshots is not None:
            self._connections.remove(snapshots.connection)
            snapshots.connection.close()

    def _take(self) -> Call | None:
        with self._lock:
            self._idle += 1
        try:
            return self._queue.get()
        finally:
            with self._lock:
                self._idle -= 1


def too_many_writes(queue_max: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"write_queue_max: {queue_max!r} writes wait for their commit; write less, or in fewer calls",
        reason="queue_full",
        details={"write_queue_max": queue_max},
    )
