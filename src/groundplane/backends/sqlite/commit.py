"""Group commit: one transaction, one sync, for all writes that came during the previous one.

The order is the promise: lock, BEGIN IMMEDIATE, each work in a savepoint, COMMIT (`synchronous=NORMAL`), unlock, early
bells, sync of the log, then the results, then the other bells. So the dear sync is outside the lock, and no caller is
told of a write that a loss of power could undo. Other processes may read the rows a moment earlier, and early bells
call them to it; what they promise on top of them waits for their own sync of the same log.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import Any, TypeVar

import apsw

from groundplane.backends.sqlite.errors import busy, disk_full, is_full, translate
from groundplane.backends.sqlite.files import Ballast, WriteAheadLog
from groundplane.backends.sqlite.lock_file import LockFile
from groundplane.backends.sqlite.loops import post
from groundplane.backends.sqlite.options import Options
from groundplane.backends.sqlite.transaction import Transaction
from groundplane.backends.sqlite.wake import WakeHub
from groundplane.core.errors import GroundplaneError, Internal, InvalidArgument, Unavailable, from_record

T = TypeVar("T")


class Call:
    """One write or read on its way: what to run, who waits, and how it ended."""

    __slots__ = ("durable", "error", "essential", "future", "loop", "since", "topics", "value", "work")

    def __init__(
        self,
        work: Callable[[Transaction], Any],
        future: asyncio.Future[Any],
        *,
        durable: bool = True,
        essential: bool = False,
    ) -> None:
        self.work = work
        self.future = future
        self.loop = future.get_loop()
        self.durable = durable
        self.essential = essential
        self.since = time.monotonic()
        self.value: Any = None
        self.error: BaseException | None = None
        self.topics: dict[str, bool] | None = None

    def resolve(self) -> None:
        """Hands the outcome to the waiter, if it still waits. Call it in the waiter's loop."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.value)
        elif isinstance(self.error, StopIteration):
            self.future.set_exception(RuntimeError(f"the work raised {self.error!r}"))
        else:
            self.future.set_exception(self.error)


class GroupCommit:
    """The writer of one file in this process. Threads take turns in `run`."""

    def __init__(
        self,
        connection: apsw.Connection,
        path: str,
        options: Options,
        *,
        lock: LockFile,
        log: WriteAheadLog,
        ballast: Ballast,
        hub: WakeHub,
    ) -> None:
        self.connection = connection
        self._cursor = connection.cursor()
        self._path = path
        self._options = options
        self._lock = lock
        self._log = log
        self._ballast = ballast
        self._hub = hub
        self._turn = threading.Lock()
        self._broken: GroundplaneError | None = None
        self.commits = self.writes = self.syncs = self.failed = 0
        self.longest_batch = 0
        self.sync_s = 0.0

    def run(self, calls: list[Call], *, wait: bool = True) -> list[Call] | None:
        """Commits as many calls as fit, resolves them, and returns the rest.

        Without `wait` it returns None, with nothing done, where a lock is not free at once.
        """
        if not self._turn.acquire(blocking=wait):
            return None
        try:
            return self._run_batch(calls, wait=wait)
        finally:
            self._turn.release()

    def exclusively(self, function: Callable[[apsw.Connection], T]) -> T:
        """Runs a function with the connection and the lock, outside any transaction, and makes it durable."""
        with self._turn:
            timeout_s = self._options.busy_timeout_s
            if not self._lock.acquire(time.monotonic() + timeout_s):
                raise busy(self._path, timeout_s, self._lock.holder())
            try:
                self.connection.set_busy_timeout(int(timeout_s * 1000))
                value = function(self.connection)
            finally:
                self._lock.release()
            self._log.sync()
            return value

    def _run_batch(self, calls: list[Call], *, wait: bool) -> list[Call] | None:
        calls = [call for call in calls if not call.future.done()]
        if not calls:
            return []
        if not (
            self._lock.acquire(calls[0].since + self._options.busy_timeout_s) if wait else self._lock.try_acquire()
        ):
            return self._refuse_late(calls) if wait else None
        try:
            done = self._commit(calls, wait=wait)
        except apsw.BusyError:
            if not wait:
                return None
            raise
        finally:
            self._lock.release()
        self._finish(done)
        return calls[len(done) :]

    def _commit(self, calls: list[Call], *, wait: bool) -> list[Call]:
        """Runs calls and commits them; every outcome is in the calls that are returned."""
        if self._broken is not None or not self._ballast.restore():
            self._one_by_one(self._refuse(calls))
            return calls
        taken = calls[: self._options.batch_works_max]
        self.connection.set_busy_timeout(int(self._options.busy_timeout_s * 1000) if wait else 0)
        try:
            return self._transact(taken)
        except apsw.BusyError as error:
            if not wait:
                raise
            fail(taken, translate(error, self._path), error)
        except Exception as error:  # noqa: BLE001 (it is the outcome of the call)
            if is_full(error):
                self._one_by_one(taken)
            else:
                fail(taken, _ours(error, self._path), error)
        return taken

    def _one_by_one(self, calls: list[Call]) -> None:
        """With a full disk each call gets a transaction of its own: a small one may still fit."""
        for call in calls:
            call.error = call.topics = None
            try:
                self._transact([call])
            except Exception as error:  # noqa: BLE001 (it is the outcome of the call)
                self._last_resort(call, error)

    def _last_resort(self, call: Call, error: Exception) -> None:
        if is_full(error):
            self._ballast.look()
        if is_full(error) and call.essential and self._make_room():
            call.error = call.topics = None
            try:
                self._transact([call])
                return
            except Exception as last:  # noqa: BLE001 (it is the outcome of the call)
                error = last
        fail([call], _ours(error, self._path), error)

    def _make_room(self) -> bool:
        """Moves the log into the file, so that the log's space is used again; gives up the ballast for that."""
        if self._checkpoint():
            return True
        return self._ballast.release() and self._checkpoint()

    def _checkpoint(self) -> bool:
        try:
            self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        except apsw.Error:
            return False
        return True

    def _transact(self, calls: list[Call]) -> list[Call]:
        """One transaction. Returns the calls that were run before the time was over; raises with all rolled back."""
        execute = self._cursor.execute
        execute("BEGIN IMMEDIATE")
        try:
            until = time.monotonic() + self._options.batch_hold_s
            done = 0
            for call in calls:
                if done and time.monotonic() > until:
                    break
                self._run(call)
                done += 1
            execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                execute("ROLLBACK")
            raise
        self.commits += 1
        self.longest_batch = max(self.longest_batch, done)
        return calls[:done]

    def _run(self, call: Call) -> None:
        """Runs one work in its savepoint. Raises only where the whole transaction was lost with it."""
        execute = self._cursor.execute
        transaction = Transaction(self.connection, self._cursor, self._path, writable=True)
        execute("SAVEPOINT work")
        try:
            call.value = check_result(call.work(transaction))
            call.topics = transaction.topics
            if not self.connection.in_transaction:
                raise Internal("work: it ended the transaction; leave BEGIN, COMMIT and ROLLBACK to the engine")
        except Exception as error:
            if is_full(error) or not self.connection.in_transaction:
                raise
            call.error, call.topics = error, None
            execute("ROLLBACK TO work")
        finally:
            transaction.end()
        execute("RELEASE work")

    def _finish(self, calls: list[Call]) -> None:
        """After the commit: early bells, quick results, sync, durable results, bells."""
        quick = [call for call in calls if not call.durable or call.error is not None]
        durable = [call for call in calls if call.durable and call.error is None]
        self.writes += len(calls)
        self.failed += sum(call.error is not None for call in quick)
        self._ring(calls, early=True)
        resolve(quick)
        self._ring(quick, early=False)
        if durable:
            self._sync(durable)
            resolve(durable)
            self._ring(durable, early=False)

    def _sync(self, calls: list[Call]) -> None:
        """After a failed sync the kernel may call lost pages clean: nothing can be promised until a new start."""
        began = time.monotonic()
        try:
            self._log.sync()
            self._log.check()
            self.syncs += 1
            self.sync_s += (time.monotonic() - began - self.sync_s) / 8
        except OSError as error:
            self._broken = Unavailable(
                f"database: the log of {self._path!r} could not be synced ({error}); it is not known whether the "
                "write survives; look at the disk, then restart this process",
                reason="io_error",
                details={"path": self._path},
                retryable=False,
            )
            fail(calls, self._broken, error)
        except GroundplaneError as error:
            self._broken = error
            fail(calls, error)

    def _ring(self, calls: Sequence[Call], *, early: bool) -> None:
        rung = (call.topics.items() for call in calls if call.topics)
        topics = dict.fromkeys(topic for items in rung for topic, is_early in items if is_early is early)
        if topics:
            self._hub.ring(topics)

    def _refuse(self, calls: list[Call]) -> list[Call]:
        """Fails what cannot be done now; returns the essential calls, for which space is held back."""
        if self._broken is not None:
            fail(calls, self._broken)
            return []
        allowed = [call for call in calls if call.essential]
        fail([call for call in calls if not call.essential], disk_full(self._path))
        return allowed

    def _refuse_late(self, calls: list[Call]) -> list[Call]:
        """The lock was not had: fails the calls whose time is over, returns the others."""
        now = time.monotonic()
        limit = self._options.busy_timeout_s
        late = [call for call in calls if now - call.since >= limit] or calls
        fail(late, busy(self._path, limit, self._lock.holder()))
        self.failed += len(late)
        resolve(late)
        return [call for call in calls if call.error is None]


def check_result(value: Any) -> Any:
    """The value of a work. `invalid_argument` where the work is an async function: it would never run."""
    if isinstance(value, CoroutineType):
        value.close()
        raise InvalidArgument("work: it is an async function; give a plain function that uses the transaction only")
    return value


def resolve(calls: Sequence[Call]) -> None:
    """Hands out outcomes, each in the loop that waits for it."""
    here = asyncio._get_running_loop()
    by_loop: dict[asyncio.AbstractEventLoop, list[Call]] = {}
    for call in calls:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, members in by_loop.items():
        if loop is here:
            _resolve_all(members)
        else:
            post(loop, _resolve_all, members)


def _resolve_all(calls: Sequence[Call]) -> None:
    for call in calls:
        call.resolve()


def fail(calls: Sequence[Call], error: BaseException, cause: BaseException | None = None) -> None:
    """Notes an error as the outcome of each call, to each its own copy of ours."""
    for call in calls:
        own = from_record(error.to_record()) if isinstance(error, GroundplaneError) else error
        if own is not cause:
            own.__cause__ = cause or error.__cause__
        call.error, call.topics = own, None


def _ours(error: Exception, path: str) -> Exception:
    return translate(error, path) if isinstance(error, apsw.Error) else error
