"""Connections to one database, shared by all handles of a loop: the pool, the bound of each call, the bells."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from groundplane.backends.postgres import bells, lists, probe
from groundplane.backends.postgres import settings as urls
from groundplane.backends.postgres.cutting import Bound, CutOff, bounded, shut_down
from groundplane.backends.postgres.errors import said, timed_out, translate
from groundplane.backends.postgres.migrations import migrate
from groundplane.backends.postgres.pipelining import Pipelining
from groundplane.backends.postgres.transaction import Connection, Row, Statement, Transaction, carrying_s, send
from groundplane.core.errors import Closed, FailedPrecondition, PermissionDenied
from groundplane.core.migrations import MigrationSet
from groundplane.core.pools import PoolState, announce

T = TypeVar("T")

VERSION_MIN = 13
_CHECKS_ITS_CLIENT = 140000
_IDLE_MS = 2000
"""A process that is frozen within a transaction gives back what it has locked, before the others' calls end."""
_CLOSE_S = 2.0
_RECONNECT_S = 5.0
_FRESH_S = 1.0
_SERVER_GRACE_S = 1.0
_MIGRATE_S = 120.0


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the database was opened, and the connections of the pool."""

    transactions: int
    queries: int
    failures: int
    connections: int
    notified: int
    deaf: bool


class Engine:
    """One pool. Every call ends within `call_timeout_s`, also where the server is frozen and still acknowledges."""

    def __init__(self, settings: urls.Settings) -> None:
        self.settings = settings
        self.failure = ""
        self.transactions = self.queries = self.failures = 0
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._used: dict[int, float] = {}
        self._busy: dict[asyncio.Task[Any] | None, Connection] = {}
        self.bells = bells.Bells(settings, self.connect, self._ring)

    async def open(self) -> None:
        """Fill the pool. What it would log is raised by the calls that it concerns."""
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)
        self._pool = AsyncConnectionPool(
            kwargs=self._keywords(),
            connection_class=_recording(self),
            min_size=self.settings.pool_min,
            max_size=self.settings.pool_max,
            open=False,
            timeout=self.settings.call_timeout_s,
            reconnect_timeout=_RECONNECT_S,
            configure=self._configure,
            check=self._check,
            name="groundplane",
        )
        await self._pool.open()
        announce(self)

    async def migrate(self, components: Sequence[MigrationSet], *, upgrade: bool) -> None:
        """Bring the tables of `components` to their version, by a connection of its own."""
        async with self.beside() as connection:
            await check_server(connection, self.settings)
            await migrate(connection, components, self.settings, upgrade=upgrade)
            await check_rights(connection, self.settings)

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[Connection]:
        """A connection beside the pool, for a while."""
        async with self._explained():
            connection = await self.connect()
            try:
                async with bounded(connection, _MIGRATE_S):
                    yield connection
            finally:
                await connection.close()

    async def connect(self) -> Connection:
        """A connection beside the pool. Raises what psycopg raises, or the named error where it can be found out."""
        try:
            return await AsyncConnection.connect(**self._keywords())
        except psycopg.OperationalError as error:
            silent = isinstance(error, psycopg.errors.ConnectionTimeout)
            state = "" if silent else await asyncio.to_thread(probe.state_of, self.settings)
            raise translate(error, self.settings.shown, state) from error

    async def write(self, work: Callable[[Transaction], Awaitable[T]], *, durable: bool, more_s: float = 0.0) -> T:
        """`work` in a transaction; its bells are rung after the commit."""
        self.transactions += 1
        async with self._connection(more_s) as (connection, bound):
            try:
                async with connection.pipeline() as pipeline:
                    tx = Transaction(connection, pipeline, _begin(durable), bound.allow)
                    value = await work(tx)
                    await tx.commit()
            except BaseException:
                await _roll_back(connection)
                raise
        for topic in tx.rung:
            self.bells.ring(topic)
        return value

    async def query(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Statements as one transaction in one round trip; the rows of each."""
        self.queries += 1
        async with self._connection() as (connection, bound):
            bound.allow(carrying_s(statements))
            return await send(connection, statements)

    async def aclose(self) -> None:
        """Close the bells and the pool, ≤ 5 s."""
        await self.bells.aclose()
        if self._pool is not None:
            await self._pool.close(_CLOSE_S)

    def cut_off(self, task: asyncio.Task[Any]) -> None:
        """End a call: its connection, where it has one."""
        connection = self._busy.get(task)
        if connection is None:
            task.cancel()
        else:
            shut_down(connection)

    def pools(self) -> list[PoolState]:
        """See `core.pools`."""
        if self._pool is None or self._pool.closed:
            return []
        found = self._pool.get_stats()
        size, idle = found.get("pool_size", 0), found.get("pool_available", 0)
        waiting = found.get("requests_waiting", 0)
        return [
            PoolState(
                backend="postgresql",
                in_use=max(0, size - idle),
                idle=idle,
                waiting=waiting,
                size_max=self.settings.pool_max,
            )
        ]

    def statistics(self) -> Statistics:
        """Counters."""
        held = self._pool.get_stats().get("pool_size", 0) if self._pool is not None else 0
        return Statistics(
            transactions=self.transactions,
            queries=self.queries,
            failures=self.failures,
            connections=held,
            notified=self.bells.heard,
            deaf=self.bells.deaf,
        )

    @asynccontextmanager
    async def _connection(self, more_s: float = 0.0) -> AsyncIterator[tuple[Connection, Bound]]:
        """A connection for one call, which is cut off at its deadline."""
        pool = self._pool
        assert pool is not None
        loop = asyncio.get_running_loop()
        until = loop.time() + self.settings.call_timeout_s
        async with self._explained():
            connection = await pool.getconn(timeout=self.settings.call_timeout_s)
            task = asyncio.current_task()
            self._busy[task] = connection
            try:
                async with bounded(connection, max(0.05, until - loop.time()) + more_s) as bound:
                    yield connection, bound
                self._used[id(connection)] = loop.time()
                self.failure = ""
            finally:
                del self._busy[task]
                if connection.closed:
                    self._used.pop(id(connection), None)
                await pool.putconn(connection)

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        shown, seconds = self.settings.shown, self.settings.call_timeout_s
        try:
            yield
        except PoolTimeout as error:
            self.failures += 1
            raise timed_out(shown, seconds, self.failure) from error
        except PoolClosed as error:
            raise Closed(f"database: {shown!r} was closed; open it again") from error
        except CutOff as error:
            self.failures += 1
            raise timed_out(shown, error.seconds) from error.__cause__
        except psycopg.Error as error:
            self.failures += 1
            raise translate(error, shown) from error

    async def _ring(self, statements: Sequence[Statement]) -> None:
        await self.query(statements)

    async def _check(self, connection: Connection) -> None:
        """A connection that was idle for a while is asked whether it is there."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._used.get(id(connection), 0.0) > _FRESH_S:
            async with bounded(connection, self.settings.call_timeout_s):
                await connection.execute("")

    async def _configure(self, connection: Connection) -> None:
        if self.settings.prepare_threshold is None:
            return  # behind PgBouncer the settings of a session are not ours
        most_ms = round((self.settings.call_timeout_s + _SERVER_GRACE_S) * 1000)
        bounds = {"statement_timeout": most_ms, "idle_in_transaction_session_timeout": _IDLE_MS}
        if connection.info.server_version >= _CHECKS_ITS_CLIENT:
            bounds["client_connection_check_interval"] = 1000  # who was cut off holds no lock for long
        chosen = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in bounds.items())
        await connection.execute(f"SELECT {chosen}")

    def _keywords(self) -> dict[str, Any]:
        return {
            **self.settings.conninfo,
            "autocommit": True,
            "prepare_threshold": self.settings.prepare_threshold,
            "context": lists.Context(),
        }


async def check_server(connection: Connection, settings: urls.Settings) -> None:
    """`failed_precondition` for a server that is too old, or that takes no writes."""
    version = connection.info.server_version // 10000
    if version < VERSION_MIN:
        raise FailedPrecondition(
            f"database: {settings.shown!r} is PostgreSQL {version}, {VERSION_MIN} or newer is needed; upgrade it",
            reason="server_too_old",
            details={"found": version, "needed": VERSION_MIN},
        )
    found = await connection.execute("SELECT current_setting('transaction_read_only'), pg_is_in_recovery()")
    row = await found.fetchone()
    if row is not None and row[0] == "on":
        why = "it is a standby" if row[1] else "default_transaction_read_only is on"
        raise FailedPrecondition(
            f"database: {settings.shown!r} takes no writes ({why}); use the primary "
            "(`target_session_attrs=read-write`)",
            reason="read_only",
        )


async def check_rights(connection: Connection, settings: urls.Settings) -> None:
    """`permission_denied` for a role that may not write our tables."""
    found = await connection.execute(
        """SELECT current_user, relname FROM pg_class
           WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s) AND relkind = 'r'
             AND relname <> 'groundplane_schema' AND NOT (has_table_privilege(oid, 'SELECT')
             AND has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE')
             AND has_table_privilege(oid, 'DELETE')) LIMIT 1""",
        [settings.schema],
    )
    row = await found.fetchone()
    if row is not None:
        raise PermissionDenied(
            f"database: role {row[0]!r} may not read and write table {settings.schema}.{row[1]}; GRANT SELECT, INSERT, "
            f"UPDATE, DELETE ON ALL TABLES IN SCHEMA {settings.schema}, or use the role that owns it",
            details={"role": row[0], "table": row[1]},
        )


async def _roll_back(connection: Connection) -> None:
    if connection.closed:
        return
    if connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        return
    with contextlib.suppress(psycopg.Error):
        await connection.rollback()


def _begin(durable: bool) -> list[Statement]:
    if durable:
        return [("BEGIN", ())]
    return [("BEGIN", ()), ("SET LOCAL synchronous_commit TO off", ())]


def _recording(engine: Engine) -> type[Pipelining]:
    """A class of connections that remembers why the last one could not be made."""

    class Recording(Pipelining):
        @classmethod
        async def connect(cls, *args: Any, **keywords: Any) -> Any:
            try:
                return await super().connect(*args, **keywords)
            except psycopg.Error as error:
                engine.failure = said(error)
            raise psycopg.OperationalError(engine.failure)  # without the frames that hold the socket

    return Recording
