"""Running migrations on a schema of PostgreSQL, and saying which ones it still needs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import psycopg

from groundplane.backends.postgres.errors import translate
from groundplane.backends.postgres.settings import Settings
from groundplane.backends.postgres.transaction import Connection
from groundplane.core.errors import FailedPrecondition, Internal, PermissionDenied
from groundplane.core.migrations import AppliedMigration, Migration, MigrationSet, pending

TABLE = "groundplane_schema"


async def missing(
    connection: Connection, components: Sequence[MigrationSet], settings: Settings
) -> tuple[Migration, ...]:
    """What `migrate` would run, changing nothing. Errors: `core.migrations.pending`."""
    applied = await _applied(connection, settings)
    return tuple(one for component in components for one in pending(component.load(), applied))


async def migrate(
    connection: Connection, components: Sequence[MigrationSet], settings: Settings, *, upgrade: bool
) -> int:
    """Bring all components to their latest version in one transaction, one process at a time; how many were run.

    A component without any tables here is created in any case. An older one is changed only with `upgrade`;
    otherwise `failed_precondition` (`schema_old`) names the command.
    """
    if not await missing(connection, components, settings):
        return 0
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [zlib.crc32(f"gp {settings.schema}".encode())])
        wanted = await missing(connection, components, settings)
        if not wanted:
            return 0
        await refuse_what_cannot_be(connection, wanted, settings, upgrade=upgrade)
        await _prepare(connection, settings)
        for one in wanted:
            await _run(connection, one, settings)
    return len(wanted)


async def _applied(connection: Connection, settings: Settings) -> list[AppliedMigration]:
    # not by to_regclass: what it did not find before it waited for the lock, a session does not look for again
    found = await connection.execute(
        "SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE nspname = %s AND relname = %s",
        [settings.schema, TABLE],
    )
    if await found.fetchone() is None:
        return []
    done = await connection.execute(f"SELECT component, version, name, checksum FROM {settings.schema}.{TABLE}")
    return [AppliedMigration(component=c, version=v, name=n, checksum=s) for c, v, n, s in await done.fetchall()]


async def refuse_what_cannot_be(
    connection: Connection, wanted: Sequence[Migration], settings: Settings, *, upgrade: bool
) -> None:
    """`failed_precondition` (`schema_old`) where a component that is there is older, unless it is to be upgraded."""
    present: dict[str, int] = {}
    for done in await _applied(connection, settings):
        present[done.component] = max(done.version, present.get(done.component, 0))
    older = [one for one in wanted if one.component in present]
    if older and not upgrade:
        one = older[-1]
        raise FailedPrecondition(
            f"database: schema {settings.schema!r} of {settings.shown!r} has version {present[one.component]} of "
            f"{one.component!r}, version {one.version} is needed; run `groundplane db upgrade`",
            reason="schema_old",
            details={"component": one.component, "found": present[one.component], "needed": one.version},
        )


async def _prepare(connection: Connection, settings: Settings) -> None:
    """The schema and the table of migrations; what follows in the transaction is made in the schema."""
    known = await connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [settings.schema])
    try:
        if await known.fetchone() is None:
            await connection.execute(f"CREATE SCHEMA {settings.schema}")
        await connection.execute(f"SET LOCAL search_path TO {settings.schema}")
        await connection.execute(
            f"""CREATE TABLE IF NOT EXISTS {TABLE} (
                component text NOT NULL, version integer NOT NULL, name text NOT NULL, checksum text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (component, version))"""
        )
    except psycopg.errors.InsufficientPrivilege as error:
        raise PermissionDenied(
            f"database: the role of {settings.shown!r} may not make tables in schema {settings.schema!r}; run "
            "`groundplane db upgrade` as the owner, or GRANT CREATE",
            details={"sqlstate": error.sqlstate, "schema": settings.schema},
        ) from error


async def _run(connection: Connection, one: Migration, settings: Settings) -> None:
    try:
        await connection.execute(one.sql.encode())
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.IntegrityError) as error:
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise translate(error, settings.shown) from error
        raise Internal(f"migration: {one.version:04d}_{one.name} of {one.component!r} failed: {error}") from error
    await connection.execute(
        f"INSERT INTO {TABLE} (component, version, name, checksum) VALUES (%s, %s, %s, %s)",
        [one.component, one.version, one.name, one.checksum],
    )
