"""The database that features use: one pool for all handles of a loop to one URL."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from groundplane.backends.postgres.bells import Listener
from groundplane.backends.postgres.engine import Engine, Statistics, check_server
from groundplane.backends.postgres.migrations import missing
from groundplane.backends.postgres.settings import Settings, parse_url
from groundplane.backends.postgres.transaction import Bindings, Row, Statement, Transaction
from groundplane.core.errors import Closed, Unavailable
from groundplane.core.migrations import Migration, MigrationSet

T = TypeVar("T")

_FINISH_S = 4.5


class Database:
    """One user's handle to a database; all handles of a loop to the same URL share its connections.

    Guarantees: `write` returns when its rows are durable and all of its statements took effect, or raises; where it
    raises `unavailable`, its outcome is not known. Every call ends within the call timeout (4 s) of the URL, also where
    the server is frozen. Everything may be called concurrently in the loop that opened it. Nothing is retried here.
    """

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._engine = shared.engine
        self._calls: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, components: Sequence[MigrationSet] = (), *, upgrade: bool = False, field: str = "database"
    ) -> AsyncIterator[Database]:
        """Connect and bring the tables of `components` to their version; `field` begins the messages about the URL.

        An older component is upgraded only with `upgrade` (else `failed_precondition`, `schema_old`); a new one is
        created always. Other errors, each within the connect timeout (3 s): `invalid_argument` (URL),
        `permission_denied` (role, password), `failed_precondition` (database missing, `read_only`, `server_too_old`,
        `schema_newer`, `schema_changed`), `unavailable`.
        """
        database = await cls._attach(parse_url(field, url), components, upgrade=upgrade)
        try:
            yield database
        finally:
            await database.aclose()

    @staticmethod
    async def check(url: str, components: Sequence[MigrationSet]) -> tuple[Migration, ...]:
        """The migrations that `open(upgrade=True)` would run, changing nothing. Errors: `schema_newer`,
        `schema_changed`, and those of `open`.
        """
        settings = parse_url("database", url)
        engine = Engine(settings)
        async with engine.beside() as connection:
            await check_server(connection, settings)
            return await missing(connection, components, settings)

    @property
    def schema(self) -> str:
        """The schema of the tables: write `{schema}.table`, nothing else is looked up by itself."""
        return self._engine.settings.schema

    @property
    def shown(self) -> str:
        """The URL for people, without its password."""
        return self._engine.settings.shown

    async def write(
        self, work: Callable[[Transaction], Awaitable[T]], *, durable: bool = True, more_s: float = 0.0
    ) -> T:
        """Run `work` in a transaction of its own and return its value once that is durable. `more_s` is allowed beyond
        the call timeout, for much work.

        An exception of `work` rolls it back and is raised here. With `durable=False` it returns after the commit: a
        crash of the server may take the last 0.6 s of such writes. Cancelling the call ends the connection: the outcome
        is not known.
        """
        return await self._call(self._engine.write(work, durable=durable, more_s=more_s))

    async def query(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """One statement, a transaction by itself, in one round trip; its rows. It may write."""
        return (await self._call(self._engine.query([(sql, bindings)])))[0]

    async def query_all(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Statements as one transaction in one round trip; the rows of each. Later ones may see later commits."""
        return await self._call(self._engine.query(statements))

    def ring(self, topic: str) -> None:
        """Ring a bell, in this process at once, in others a moment later (≤ 10 ms and a NOTIFY)."""
        self._check()
        self._engine.bells.ring(topic)

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[Listener]:
        """A listener that is rung after commits that rang the topic, in any process; and by a poll: every second, every
        0.25 s while notifications do not come. Look once after this returns, for what was there before.
        """
        self._check()
        listener = self._engine.bells.listen(topic)
        try:
            yield listener
        finally:
            self._engine.bells.leave(listener)

    def statistics(self) -> Statistics:
        """Counters of the pool in this loop."""
        return self._engine.statistics()

    async def aclose(self) -> None:
        """Let calls under way end (4.5 s), then cut them off. The last handle closes the pool. Idempotent, ≤ 10 s."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="groundplane-database-close")
        await asyncio.shield(self._closing)

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{len(self._calls)} calls"
        return f"<Database {self.shown} {state}>"

    @classmethod
    async def _attach(cls, settings: Settings, components: Sequence[MigrationSet], *, upgrade: bool) -> Database:
        shared = _shared(settings)
        shared.users += 1
        try:
            async with shared.setup:
                await shared.prepare(components, upgrade=upgrade)
        except BaseException:
            await shared.release()
            raise
        return cls(shared)

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """In a task of its own: psycopg answers a cancellation by asking the server, which may be frozen; cutting the
        connection off ends it at once.
        """
        try:
            self._check()
        except Closed:
            work.close()
            raise
        task = asyncio.get_running_loop().create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            return await asyncio.shield(task)
        except Unavailable as error:
            if self._closing is None:
                raise
            raise Closed(
                f"database: this handle to {self.shown!r} was closed during the call; its outcome is not known"
            ) from error
        except asyncio.CancelledError:
            if not task.done():
                self._engine.cut_off(task)
                await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
            raise

    def _check(self) -> None:
        if self._closing is not None:
            raise Closed(f"database: this handle to {self.shown!r} was closed; open it again")

    async def _close(self) -> None:
        if self._calls:
            await asyncio.wait(self._calls, timeout=_FINISH_S)
        for task in list(self._calls):
            self._engine.cut_off(task)
        if self._calls:
            await asyncio.wait(self._calls, timeout=1.0)
        await self._shared.release()


class _Shared:
    """An engine and the number of its users in this loop."""

    def __init__(self, engines: dict[Any, _Shared], settings: Settings) -> None:
        self.engine = Engine(settings)
        self.users = 0
        self.setup = asyncio.Lock()
        self._engines = engines
        self._open = False

    async def prepare(self, components: Sequence[MigrationSet], *, upgrade: bool) -> None:
        """Open the pool, or bring the tables of further components to their version."""
        await self.engine.migrate(components, upgrade=upgrade)
        if not self._open:
            await self.engine.open()
            self._open = True

    async def release(self) -> None:
        """Give up one use; the last one closes the pool."""
        self.users -= 1
        if self.users:
            return
        if self._engines.get(self.engine.settings.key) is self:
            del self._engines[self.engine.settings.key]
        await self.engine.aclose()


_LOOPS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, _Shared]] = weakref.WeakKeyDictionary()


def _shared(settings: Settings) -> _Shared:
    engines = _LOOPS.setdefault(asyncio.get_running_loop(), {})
    return engines.setdefault(settings.key, _Shared(engines, settings))
