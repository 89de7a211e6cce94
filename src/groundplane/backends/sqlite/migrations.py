"""Running migrations on a SQLite file, and saying which ones a file still needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import apsw

from groundplane.backends.sqlite.errors import translate
from groundplane.core.errors import FailedPrecondition, Internal
from groundplane.core.migrations import AppliedMigration, Migration, MigrationSet, pending

_TABLE = """
CREATE TABLE IF NOT EXISTS groundplane_schema (
    component  TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    checksum   TEXT    NOT NULL,
    applied_at INTEGER NOT NULL,
    PRIMARY KEY (component, version)
) STRICT, WITHOUT ROWID
"""


def missing(connection: apsw.Connection, components: Sequence[MigrationSet]) -> tuple[Migration, ...]:
    """What `migrate` would run, changing nothing. Errors: `core.migrations.pending`."""
    applied = _applied(connection)
    return tuple(one for component in components for one in pending(component.load(), applied))


def migrate(connection: apsw.Connection, components: Sequence[MigrationSet], path: str, *, upgrade: bool) -> int:
    """Brings all components to their latest version in one exclusive transaction; returns how many were run.

    A component without any tables here is created in any case. An older one is changed only with `upgrade`;
    otherwise `failed_precondition` (`schema_old`) names the command.
    """
    if not missing(connection, components):
        return 0
    connection.execute("BEGIN EXCLUSIVE").fetchall()
    try:
        connection.execute(_TABLE).fetchall()
        wanted = missing(connection, components)
        if not upgrade:
            _refuse_older(connection, wanted, path)
        for one in wanted:
            _run(connection, one, path)
        connection.execute("COMMIT").fetchall()
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK").fetchall()
        raise
    return len(wanted)


def _applied(connection: apsw.Connection) -> list[AppliedMigration]:
    if not connection.table_exists("main", "groundplane_schema"):
        return []
    rows: list[tuple[Any, ...]] = connection.execute(
        "SELECT component, version, name, checksum FROM groundplane_schema"
    ).fetchall()
    return [AppliedMigration(component=c, version=v, name=n, checksum=s) for c, v, n, s in rows]


def _refuse_older(connection: apsw.Connection, wanted: Sequence[Migration], path: str) -> None:
    present: dict[str, int] = {}
    for done in _applied(connection):
        present[done.component] = max(done.version, present.get(done.component, 0))
    older = [one for one in wanted if one.component in present]
    if older:
        one = older[-1]
        raise FailedPrecondition(
            f"database: {path!r} has version {present[one.component]} of {one.component!r}, version {one.version} is "
            "needed; run `groundplane db upgrade`",
            reason="schema_old",
            details={"component": one.component, "found": present[one.component], "needed": one.version},
        )


def _run(connection: apsw.Connection, one: Migration, path: str) -> None:
    try:
        connection.execute(one.sql).fetchall()
    except apsw.SQLError as error:
        raise Internal(f"migration: {one.version:04d}_{one.name} of {one.component!r} failed: {error}") from error
    except apsw.Error as error:
        raise translate(error, path) from error
    if not connection.in_transaction:
        raise Internal(f"migration: {one.version:04d}_{one.name} of {one.component!r} ended the transaction")
    connection.execute(
        "INSERT INTO groundplane_schema VALUES (?, ?, ?, ?, ?)",
        (one.component, one.version, one.name, one.checksum, time.time_ns() // 1_000_000),
    ).fetchall()
