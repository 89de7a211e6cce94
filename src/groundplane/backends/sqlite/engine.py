"""The parts of one open file in this process, put together and taken apart. `database.py` counts its users."""

from __future__ import annotations

import asyncio
import errno
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import apsw
import msgspec

from groundplane.backends.sqlite import connection as connections
from groundplane.backends.sqlite.commit import Call, GroupCommit, resolve
from groundplane.backends.sqlite.errors import busy, disk_full, translate
from groundplane.backends.sqlite.files import Ballast, WriteAheadLog
from groundplane.backends.sqlite.lock_file import LockFile
from groundplane.backends.sqlite.migrations import migrate
from groundplane.backends.sqlite.options import Options
from groundplane.backends.sqlite.poll import DataVersion, SafetyPoll
from groundplane.backends.sqlite.wake import Listener, WakeHub
from groundplane.backends.sqlite.workers import InlineWriter, ReaderThreads, Snapshots, WriterThread
from groundplane.core.errors import FailedPrecondition, PermissionDenied, Unavailable
from groundplane.core.migrations import MigrationSet
from groundplane.core.pools import PoolState, announce


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the file was opened in this process, and what is under way now."""

    path: str
    inline: bool
    writes: int
    writes_failed: int
    commits: int
    syncs: int
    batch_longest: int
    sync_mean_s: float
    inline_handed_over: int
    writes_waiting: int
    reads_waiting: int
    wal_bytes: int
    lock_contended: int
    rings_local: int
    rings_sent: int
    rings_undelivered: int
    polls_that_rang: int
    ballast_spent: bool


class Engine:
    """Created and closed by a thread that may block; `write`, `read` and `listen` are called in event loops."""

    def __init__(self, path: str, options: Options, inline_loop: asyncio.AbstractEventLoop | None) -> None:
        self.path = path
        self.pid = os.getpid()
        self.inline = inline_loop is not None
        self._options = options
        self._polls: dict[asyncio.AbstractEventLoop, SafetyPoll] = {}
        with ExitStack() as undo, explained(path):
            self._lock = LockFile(path + "-lock")
            undo.callback(self._lock.close)
            self._create_file()
            connection = self._connect()
            undo.callback(connection.close)
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            self._log = WriteAheadLog(path, options.sync)
            undo.callback(self._log.close)
            self._ballast = Ballast(path + "-ballast", options.ballast_bytes)
            self._hub = WakeHub(path)
            undo.callback(self._hub.close)
            self._version = DataVersion(self._connect(busy_timeout_s=0, query_only=True))
            undo.callback(self._version.connection.close)
            inline_reader = self._snapshots() if self.inline else None
            self._commit = GroupCommit(
                connection,
                path,
                options,
                lock=self._lock,
                log=self._log,
                ballast=self._ballast,
                hub=self._hub,
            )
            undo.pop_all()
        self._writer = WriterThread(self._commit, options.write_queue_max)
        self._readers = ReaderThreads(self._snapshots, options.readers, options.read_queue_max)
        self._inline_loop = inline_loop
        self._inline_reader = inline_reader
        self._inline_writer = (
            InlineWriter(self._commit, self._writer, inline_loop, options.write_queue_max) if inline_loop else None
        )
        _ENGINES.add(self)
        announce(self)

    def migrate(self, components: Sequence[MigrationSet], *, upgrade: bool) -> int:
        """Runs what `migrations.migrate` runs, in turn with the writes; returns how many were run."""
        with explained(self.path):
            return self._commit.exclusively(lambda c: migrate(c, components, self.path, upgrade=upgrade))

    def write(self, call: Call) -> None:
        if self._inline_writer is not None:
            self._inline_writer.submit(call)
        else:
            self._writer.submit(call)

    def read(self, call: Call) -> None:
        if self._inline_reader is not None and call.loop is self._inline_loop:
            self._inline_reader.run(call)
            resolve([call])
        else:
            self._readers.submit(call)

    def listen(self, topic: str) -> Listener:
        """A listener in the running loop."""
        with explained(self.path):
            listener = self._hub.listen(topic)
        poll = self._polls.get(listener.loop)
        if poll is None:
            poll = SafetyPoll(self._hub, self._version, listener.loop, self._options.poll_s)
            self._polls[listener.loop] = poll
        poll.start()
        return listener

    def unlisten(self, listener: Listener) -> None:
        self._hub.unlisten(listener)
        if not self._hub.listening(listener.loop) and listener.loop in self._polls:
            self._polls.pop(listener.loop).stop()

    def pools(self) -> list[PoolState]:
        """The one connection that writes, and the calls before it and before the readers. See `core.pools`."""
        if self not in _ENGINES:
            return []
        writing = self._writer.outstanding
        busy = min(1, writing)
        waiting = writing - busy + self._readers.queued
        return [PoolState(backend="sqlite", in_use=busy, idle=1 - busy, waiting=waiting, size_max=1)]

    def statistics(self) -> Statistics:
        return Statistics(
            path=self.path,
            inline=self.inline,
            writes=self._commit.writes,
            writes_failed=self._commit.failed,
            commits=self._commit.commits,
            syncs=self._commit.syncs,
            batch_longest=self._commit.longest_batch,
            sync_mean_s=self._commit.sync_s,
            inline_handed_over=self._inline_writer.handed_over if self._inline_writer else 0,
            writes_waiting=self._writer.outstanding,
            reads_waiting=self._readers.queued,
            wal_bytes=self._log.size(),
            lock_contended=self._lock.contended,
            rings_local=self._hub.rung,
            rings_sent=self._hub.sent,
            rings_undelivered=self._hub.undelivered,
            polls_that_rang=sum(poll.rings for poll in self._polls.values()),
            ballast_spent=self._ballast.spent,
        )

    def close(self, timeout_s: float) -> bool:
        """Commits what was submitted, then frees everything; what still blocks at half of the time is given up.

        Returns False where a thread did not end: it, and what it uses, are left behind.
        """
        until = time.monotonic() + timeout_s
        ended = self._writer.stop(timeout_s / 2)
        if not ended:
            self._lock.abort()
            self._commit.connection.interrupt()
            ended = self._writer.stop(timeout_s / 4)
        ended = self._readers.stop(max(0.1, until - time.monotonic())) and ended
        _ENGINES.discard(self)
        if ended:
            self._free()
        return ended

    def forget_in_child(self) -> None:
        """In a forked child: closes what must not be shared, and keeps the connections from ever being closed."""
        import ctypes

        _FORKED.add(self.path)
        self._lock.forget()
        self._hub.forget()
        for one in self._connections():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))

    def _free(self) -> None:
        held = self._lock.acquire(time.monotonic() + 0.5)
        with ExitStack() as undo:
            undo.callback(self._lock.close)
            if held:
                undo.callback(self._lock.release)
            undo.callback(self._log.close)
            undo.callback(self._hub.close)
            for one in self._connections():
                undo.callback(one.close)

    def _connections(self) -> list[apsw.Connection]:
        inline = [self._inline_reader.connection] if self._inline_reader else []
        return [self._commit.connection, self._version.connection, *inline, *self._readers.connections]

    def _create_file(self) -> None:
        timeout_s = self._options.busy_timeout_s
        if not self._lock.acquire(time.monotonic() + timeout_s):
            raise busy(self.path, timeout_s, self._lock.holder())
        try:
            connections.prepare_file(self.path, busy_timeout_s=timeout_s, vfs=self._options.vfs)
        finally:
            self._lock.release()

    def _connect(self, *, busy_timeout_s: float | None = None, query_only: bool = False) -> apsw.Connection:
        timeout_s = self._options.busy_timeout_s if busy_timeout_s is None else busy_timeout_s
        return connections.connect(self.path, busy_timeout_s=timeout_s, vfs=self._options.vfs, query_only=query_only)

    def _snapshots(self) -> Snapshots:
        with explained(self.path):
            return Snapshots(self._connect(query_only=True), self.path)


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()
_FORKED: set[str] = set()


def check_not_forked(path: str, pid: int | None = None) -> None:
    """`failed_precondition` (`forked`) where the file was open in the parent before this process was forked.

    SQLite keeps its locks per process but its knowledge of them in memory: a child that used the file after a fork
    would commit without any lock, and its commits were seen to vanish.
    """
    if path in _FORKED or (pid is not None and pid != os.getpid()):
        raise FailedPrecondition(
            f"database: {path!r} was open when this process was forked, and cannot be used in it; fork before it is "
            "opened, or start the child with spawn",
            reason="forked",
            details={"path": path},
        )


def give_up_ballast(path: str) -> bool:
    """Frees the space held back beside a file that is not open; whether there was any."""
    return Ballast(path + "-ballast", 1).release()


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turns errors of SQLite and of the system into ours."""
    try:
        yield
    except apsw.Error as error:
        raise translate(error, path) from error
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise disk_full(path) from error
        if error.errno not in _FORBIDDEN:
            raise Unavailable(
                f"database: {path!r}: {error}", reason="io_error", details={"path": path}, retryable=False
            ) from error
        raise PermissionDenied(
            f"database: {path!r} cannot be opened or written ({error}); mend the permissions of file and folder",
            reason="read_only",
            details={"path": path},
        ) from error


_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def _forget_engines() -> None:
    for engine in list(_ENGINES):
        with suppress(OSError):
            engine.forget_in_child()
    _ENGINES.clear()


os.register_at_fork(after_in_child=_forget_engines)
