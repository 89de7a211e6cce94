"""The database that features use: one file, one writer for each process, any number of processes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from groundplane.backends.sqlite.commit import Call
from groundplane.backends.sqlite.connection import check_library, connect_read_only
from groundplane.backends.sqlite.engine import Engine, Statistics, check_not_forked, explained, give_up_ballast
from groundplane.backends.sqlite.loops import in_thread, in_thread_within
from groundplane.backends.sqlite.migrations import missing
from groundplane.backends.sqlite.options import Options, check_options
from groundplane.backends.sqlite.transaction import Transaction
from groundplane.backends.sqlite.wake import Listener
from groundplane.core.errors import Closed, InvalidArgument, ResourceExhausted
from groundplane.core.migrations import Migration, MigrationSet

T = TypeVar("T")

_FINISH_S = 4.0
_RELEASE_S = 5.0


class Database:
    """One user's handle to a file; all handles of a process share its connections and its writer.

    Guarantees: `write` returns when its rows are durable and all of its statements took effect, or raises and
    none did. Writes of one handle take effect in the order of the calls. Everything may be called concurrently in
    the loop that opened it. Nothing is retried here.
    """

    def __init__(self, engine: Engine, release: Callable[[], None]) -> None:
        self._engine = engine
        self._release = release
        self._calls: set[asyncio.Future[Any]] = set()
        self._listeners: set[Listener] = set()
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: str | os.PathLike[str],
        components: Sequence[MigrationSet] = (),
        *,
        upgrade: bool = False,
        inline: bool = False,
        options: Options | None = None,
    ) -> AsyncIterator[Database]:
        """Opens or creates the file and brings the tables of `components` to their version.

        An older component is upgraded only with `upgrade` (else `failed_precondition`, `schema_old`); a new one is
        created always. Other errors: `foreign_database`, `schema_newer`, `schema_changed`, `server_too_old`,
        `database_busy`, `read_only`, `disk_full`, `forked`. `inline` runs calls in the loop instead of a thread,
        where that needs no waiting. `options` and `inline` of the first opener in a process hold for all.
        """
        database = await cls._attach(path, components, upgrade=upgrade, inline=inline, options=options)
        try:
            yield database
        finally:
            await database.aclose()

    @staticmethod
    async def check(path: str | os.PathLike[str], components: Sequence[MigrationSet]) -> tuple[Migration, ...]:
        """The migrations that `open(upgrade=True)` would run, changing nothing; all of them where there is no file.

        Errors: `foreign_database`, `schema_newer`, `schema_changed`.
        """
        return await in_thread(lambda: _check(os.path.realpath(path), components))

    async def write(self, work: Callable[[Transaction], T], *, durable: bool = True, essential: bool = False) -> T:
        """Runs `work` in the next commit and returns its value once the commit is durable.

        `work` runs in another thread (or in the loop), must have effects only through its transaction and must
        not wait: other writes, of other processes too, wait for it. It may be run twice, the first run being rolled
        back. An exception rolls back this work alone and is raised here. With `durable=False` the call returns after
        the commit: the rows survive the death of every process, not a loss of power. `essential` writes (settling,
        deleting) may use the space held back for a full disk.

        Cancelling the call before its commit begins undoes it; later it takes effect. Errors: `database_busy` after
        `busy_timeout_s`, `queue_full`, `disk_full`, `io_error`, `database_replaced`, `closed`.
        """
        return await self.submit(work, durable=durable, essential=essential)

    def submit(
        self, work: Callable[[Transaction], T], *, durable: bool = True, essential: bool = False
    ) -> asyncio.Future[T]:
        """`write` without waiting: its value to come."""
        return self._outcome(self._engine.write, Call(work, self._future(), durable=durable, essential=essential))

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a snapshot that sees every commit before it; it cannot write.

        `work` runs in a reader thread (or in the loop) and should be short: an open snapshot lets the log grow.
        """
        value: T = await self._outcome(self._engine.read, Call(work, self._future()))
        return value

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[Listener]:
        """A listener that is rung after each write which called `transaction.wake(topic)`, in any process.

        Rings are hints: also look once after this returns, for what was there before.
        """
        self._check()
        listener = self._engine.listen(topic)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._unlisten(listener)

    async def compact(self, *, pages_per_write: int = 256) -> int:
        """Gives unused pages back to the disk, in small writes between those of others; returns how many.

        Deleted rows leave pages that later rows use again. Call this after something large went for good.
        """

        def step(tx: Transaction) -> tuple[int, int]:
            before = tx.execute("PRAGMA page_count")[0][0]
            tx.execute(f"PRAGMA incremental_vacuum({int(pages_per_write)})")
            return before - tx.execute("PRAGMA page_count")[0][0], tx.execute("PRAGMA freelist_count")[0][0]

        freed = 0
        while True:
            gone, unused = await self.write(step)
            freed += gone
            if not unused or not gone:
                return freed

    def same_file(self, other: Database) -> bool:
        """Whether both write through one writer to one file: then one transaction may have rows of both."""
        return self._engine is other._engine

    def statistics(self) -> Statistics:
        """Counters of the file in this process."""
        self._check()
        return self._engine.statistics()

    async def aclose(self) -> None:
        """Lets calls end for 4 s, then fails them with `closed`. Takes at most 10 s. Idempotent; may be called twice
        at once. The last handle of the process commits what is under way and closes the file."""
        if self._engine.pid != os.getpid():
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="groundplane-database-close")
        await asyncio.shield(self._closing)

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{len(self._calls)} calls, {len(self._listeners)} listeners"
        return f"<Database {self._engine.path!r} {state}>"

    @classmethod
    async def _attach(
        cls,
        path: str | os.PathLike[str],
        components: Sequence[MigrationSet],
        *,
        upgrade: bool,
        inline: bool,
        options: Options | None,
    ) -> Database:
        check_library()
        chosen = check_options(options or Options())
        real = os.path.realpath(path)  # noqa: ASYNC240 (a few look-ups of names, once)
        check_not_forked(real)
        loop = asyncio.get_running_loop() if inline else None
        shared = await in_thread(
            lambda: _attach(real, chosen, loop, components, upgrade=upgrade), undo=lambda one: one.release()
        )
        assert shared.engine is not None
        return cls(shared.engine, shared.release)

    def _future(self) -> asyncio.Future[Any]:
        self._check()
        return asyncio.get_running_loop().create_future()

    def _outcome(self, submit: Callable[[Call], None], call: Call) -> asyncio.Future[Any]:
        submit(call)
        self._calls.add(call.future)
        call.future.add_done_callback(self._calls.discard)
        return call.future

    def _check(self) -> None:
        check_not_forked(self._engine.path, self._engine.pid)
        if self._closing is not None:
            raise Closed(f"database: this handle to {self._engine.path!r} was closed; open it again")

    def _unlisten(self, listener: Listener) -> None:
        if listener in self._listeners and self._engine.pid == os.getpid():
            self._listeners.discard(listener)
            self._engine.unlisten(listener)

    async def _close(self) -> None:
        for listener in list(self._listeners):
            self._unlisten(listener)
        if self._calls:
            await asyncio.wait(self._calls, timeout=_FINISH_S)
        for future in list(self._calls):
            if not future.done():
                future.set_exception(Closed("database: it was closed during the call; its outcome is not known"))
        await in_thread_within(self._release, _RELEASE_S)


class _Shared:
    """An engine and the number of its users in this process."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.users = 0
        self.setup = threading.Lock()
        self.engine: Engine | None = None

    def release(self) -> None:
        """Gives up one use; the last one closes the engine."""
        with self.setup:
            with _SHARED_LOCK:
                self.users -= 1
                last = not self.users
                if last:
                    del _SHARED[self.path]
            if last and self.engine is not None:
                self.engine.close(_RELEASE_S - 1)


_SHARED: dict[str, _Shared] = {}
_SHARED_LOCK = threading.Lock()


def _attach(
    path: str,
    options: Options,
    inline_loop: asyncio.AbstractEventLoop | None,
    components: Sequence[MigrationSet],
    *,
    upgrade: bool,
) -> _Shared:
    with _SHARED_LOCK:
        shared = _SHARED.setdefault(path, _Shared(path))
        shared.users += 1
    try:
        with shared.setup:
            if shared.engine is None:
                _make_folder(path)
                shared.engine = _start(path, options, inline_loop)
            shared.engine.migrate(components, upgrade=upgrade)
    except BaseException:
        shared.release()
        raise
    return shared


def _start(path: str, options: Options, inline_loop: asyncio.AbstractEventLoop | None) -> Engine:
    """Starts also on a full disk, with the space held back for it."""
    try:
        return Engine(path, options, inline_loop)
    except ResourceExhausted:
        if not give_up_ballast(path):
            raise
        return Engine(path, options, inline_loop)


def _make_folder(path: str) -> None:
    if os.path.isdir(path):
        raise InvalidArgument(f"path: {path!r} is a folder; give the name of a file in it")
    with explained(path):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)


def _check(path: str, components: Sequence[MigrationSet]) -> tuple[Migration, ...]:
    with explained(path):
        connection = connect_read_only(path)
        if connection is None:
            return tuple(one for component in components for one in component.load())
        try:
            return missing(connection, components)
        finally:
            connection.close()


def _after_fork() -> None:
    global _SHARED_LOCK
    _SHARED_LOCK = threading.Lock()
    _SHARED.clear()


os.register_at_fork(after_in_child=_after_fork)
