"""Opening connections, and telling a database of ours from any other file."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from groundplane.backends.sqlite.errors import foreign
from groundplane.core.errors import FailedPrecondition

APPLICATION_ID = int.from_bytes(b"GPLN", "big")
"""Says in the header of the file whose it is (`PRAGMA application_id`)."""

FORMAT_VERSION = 1
"""The layout that this module reads and writes (`PRAGMA user_version`); tables have versions of their own."""

SQLITE_LEAST = (3, 51, 3)
"""Before it a WAL could be corrupted by two connections (https://sqlite.org/wal.html, "the WAL-reset bug")."""

_SETTINGS = """
PRAGMA synchronous = NORMAL;
PRAGMA wal_autocheckpoint = 1000;
PRAGMA journal_size_limit = 8388608;
PRAGMA foreign_keys = ON;
PRAGMA trusted_schema = OFF;
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -4096;
"""


def check_library(found: str | None = None) -> None:
    """`failed_precondition` with both versions where SQLite is older than the least version."""
    version = found or apsw.sqlite_lib_version()
    if tuple(int(part) for part in version.split(".")[:3]) < SQLITE_LEAST:
        least = ".".join(map(str, SQLITE_LEAST))
        raise FailedPrecondition(
            f"sqlite: version {version} is older than {least}, before which a write-ahead log could be corrupted; "
            "upgrade apsw",
            reason="server_too_old",
            details={"found": version, "least": least},
        )


def connect(path: str, *, busy_timeout_s: float, vfs: str = "", query_only: bool = False) -> apsw.Connection:
    """A connection with our settings to a file that `prepare_file` has seen."""
    connection = _bare(path, apsw.SQLITE_OPEN_READWRITE, vfs)
    try:
        connection.set_busy_timeout(int(busy_timeout_s * 1000))
        connection.execute(_SETTINGS).fetchall()
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
        connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
        if query_only:
            connection.execute("PRAGMA query_only = ON").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def prepare_file(path: str, *, busy_timeout_s: float, vfs: str = "") -> None:
    """Creates the file or checks whose it is. The caller holds the lock file; nothing foreign is changed."""
    connection = _bare(path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE, vfs)
    try:
        connection.set_busy_timeout(int(busy_timeout_s * 1000))
        if check_identity(connection, path):
            connection.execute(
                f"PRAGMA auto_vacuum = INCREMENTAL; BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; "
                f"PRAGMA user_version = {FORMAT_VERSION}; COMMIT"
            ).fetchall()
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
    finally:
        connection.close()


def connect_read_only(path: str) -> apsw.Connection | None:
    """A connection that changes nothing, or None where there is no file yet."""
    if not Path(path).exists():
        return None
    connection = _bare(path, apsw.SQLITE_OPEN_READWRITE, "")
    try:
        connection.execute("PRAGMA query_only = ON").fetchall()
        check_identity(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def check_identity(connection: apsw.Connection, path: str) -> bool:
    """Whether the file is new and empty. `failed_precondition` for a foreign file or a newer format."""
    application = connection.pragma("application_id")
    version = connection.pragma("user_version")
    if application == APPLICATION_ID:
        if version > FORMAT_VERSION:
            raise FailedPrecondition(
                f"database: {path!r} has format {version}, this Groundplane knows {FORMAT_VERSION} at most; "
                "upgrade Groundplane, or use the version that wrote the data",
                reason="schema_newer",
                details={"path": path, "found": version, "supported": FORMAT_VERSION},
            )
        return False
    if application or version or connection.pragma("page_count"):
        raise foreign(path, f"its application id is {application}, not {APPLICATION_ID}")
    return True


def _bare(path: str, flags: int, vfs: str) -> apsw.Connection:
    return apsw.Connection(os.fspath(path), flags=flags, vfs=vfs or None)
