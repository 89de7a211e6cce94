"""A look at a PostgreSQL server, on a connection beside the pool: nothing is made that stays."""

from __future__ import annotations

from collections.abc import Sequence

from groundplane.backends.postgres.engine import Engine, check_rights, check_server
from groundplane.backends.postgres.migrations import missing, refuse_what_cannot_be
from groundplane.backends.postgres.settings import Settings, parse_url
from groundplane.backends.postgres.transaction import Connection
from groundplane.core.diagnosis import Diagnosis, Stopwatch
from groundplane.core.errors import PermissionDenied
from groundplane.core.migrations import MigrationSet

_PROBE_BYTES = 256 * 1024


async def look(url: str, components: Sequence[MigrationSet], *, field: str) -> Diagnosis:
    """What opening with these components would meet. Errors: those of `Database.open`, `disk_full`, and
    `permission_denied` for a role that may not make the tables which are missing.
    """
    settings = parse_url(field, url)
    async with Engine(settings).beside() as connection:
        await check_server(connection, settings)
        await check_rights(connection, settings)
        wanted = await missing(connection, components, settings)
        if wanted:
            await refuse_what_cannot_be(connection, wanted, settings, upgrade=False)
            await _check_creating(connection, settings)
        await _check_disk(connection)
        watch = Stopwatch()
        row = await _row(connection, "SELECT extract(epoch FROM clock_timestamp())::float8 * 1000")
        ahead, error = watch.ahead(float(str(row[0])))
        server = f"PostgreSQL {connection.info.parameter_status('server_version')}"
    return Diagnosis(server=server, stored=not wanted, clock_ahead_ms=ahead, clock_error_ms=error)


async def _check_creating(connection: Connection, settings: Settings) -> None:
    """The role may make what is missing."""
    allowed = await _row(
        connection,
        "SELECT current_user, CASE WHEN to_regnamespace(%s) IS NULL THEN has_database_privilege(current_database(), "
        "'CREATE') ELSE has_schema_privilege(%s, 'CREATE') END",
        [settings.schema, settings.schema],
    )
    if not allowed[1]:
        raise PermissionDenied(
            f"database: role {allowed[0]!r} may not make tables in schema {settings.schema!r} of {settings.shown!r}; "
            "run `groundplane db upgrade` as the owner, or GRANT CREATE",
            details={"schema": settings.schema, "role": allowed[0]},
        )


async def _check_disk(connection: Connection) -> None:
    """Write a table of this connection's own, and take it back: a full disk says so."""
    may = await _row(connection, "SELECT has_database_privilege(current_database(), 'TEMPORARY')")
    if not may[0]:
        return
    async with connection.transaction(force_rollback=True):
        await connection.execute("CREATE TEMPORARY TABLE groundplane_doctor (data text) ON COMMIT DROP")
        await connection.execute("ALTER TABLE groundplane_doctor ALTER COLUMN data SET STORAGE EXTERNAL")
        await connection.execute("INSERT INTO groundplane_doctor VALUES (repeat('x', %s))", [_PROBE_BYTES])


async def _row(connection: Connection, sql: str, bindings: Sequence[object] = ()) -> tuple[object, ...]:
    found = await connection.execute(sql, bindings)
    row = await found.fetchone()
    return row if row is not None else ()
