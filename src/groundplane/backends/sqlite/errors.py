"""The error table: what a result code of SQLite means to a caller.

Decided by result code (https://sqlite.org/rescode.html), never by words. The cause is always kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import apsw

from groundplane.core.errors import (
    AlreadyExists,
    Closed,
    FailedPrecondition,
    GroundplaneError,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

_UNIQUE = frozenset({apsw.SQLITE_CONSTRAINT_UNIQUE, apsw.SQLITE_CONSTRAINT_PRIMARYKEY, apsw.SQLITE_CONSTRAINT_ROWID})


def translate(error: apsw.Error, path: str) -> GroundplaneError:
    """The error of ours for one of SQLite's. Raise it `from` the original."""
    code = getattr(error, "result", apsw.SQLITE_ERROR) & 0xFF
    extended = getattr(error, "extendedresult", code)
    if isinstance(error, apsw.ConnectionClosedError):
        return Closed(f"database: {path!r} was closed; open it again")
    if code == apsw.SQLITE_CONSTRAINT:
        return _constraint(error, extended)
    if code in (apsw.SQLITE_CANTOPEN, apsw.SQLITE_IOERR) and _disk_is_full(path):
        code = apsw.SQLITE_FULL
    make = _TABLE.get(code)
    return make(path, error) if make else Internal(f"database: {path!r}: {type(error).__name__}: {error}")


def is_full(error: BaseException) -> bool:
    """Whether SQLite said that the disk is full, be it at once or as the cause of an error of ours."""
    return isinstance(error, apsw.FullError) or isinstance(error.__cause__, apsw.FullError)


def disk_full(path: str) -> ResourceExhausted:
    return ResourceExhausted(
        f"database: no room left on the disk of {path!r}; free space, nothing acknowledged is lost",
        reason="disk_full",
        details={"path": path},
    )


def busy(path: str, waited_s: float, holder: str = "") -> Unavailable:
    """The lock of the file was not had in time; `holder` says who has it, as far as the system tells."""
    who = holder or "another process"
    return Unavailable(
        f"database: {path!r} was locked for {waited_s:.1f} s by {who}; if that is stopped, resume it (kill -CONT) "
        "or end it",
        reason="database_busy",
        details={"path": path, "waited_s": waited_s, "holder": holder},
    )


def _constraint(error: apsw.Error, extended: int) -> GroundplaneError:
    if extended in _UNIQUE:
        return AlreadyExists(f"row: {error}", details={"constraint": str(error)})
    return Internal(f"row: {error}", details={"constraint": str(error)})


def _disk_is_full(path: str) -> bool:
    try:
        room = os.statvfs(os.path.dirname(path) or ".")
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < 65_536


def _busy(path: str, error: apsw.Error) -> GroundplaneError:
    return Unavailable(
        f"database: {path!r} is locked by a process that is not of this plane (a shell or a backup?); end it",
        reason="database_busy",
        details={"path": path},
    )


def _corrupt(path: str, error: apsw.Error) -> GroundplaneError:
    return FailedPrecondition(
        f"database: {path!r} is damaged ({error}); stop the plane and restore a backup",
        reason="database_corrupt",
        details={"path": path},
    )


def _foreign(path: str, error: apsw.Error) -> GroundplaneError:
    return foreign(path, "it is no SQLite file")


def foreign(path: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"database: {path!r} is not a Groundplane database ({why}); choose another state folder, or move the file away",
        reason="foreign_database",
        details={"path": path},
    )


def _forbidden(path: str, error: apsw.Error) -> GroundplaneError:
    return PermissionDenied(
        f"database: {path!r} cannot be opened or written ({error}); mend the permissions of the file and its folder",
        reason="read_only",
        details={"path": path},
    )


def _io(path: str, error: apsw.Error) -> GroundplaneError:
    return Unavailable(
        f"database: input or output failed on {path!r} ({error}); look at the disk and the kernel's log",
        reason="io_error",
        details={"path": path, "code": getattr(error, "extendedresult", 0)},
    )


def _memory(path: str, error: apsw.Error) -> GroundplaneError:
    return ResourceExhausted(f"database: out of memory while using {path!r}", details={"path": path})


def _interrupted(path: str, error: apsw.Error) -> GroundplaneError:
    return Closed(f"database: {path!r} was closed during the call")


def _too_big(path: str, error: apsw.Error) -> GroundplaneError:
    return InvalidArgument(f"bindings: a value is larger than SQLite stores ({error})")


_TABLE: dict[int, Callable[[str, apsw.Error], GroundplaneError]] = {
    apsw.SQLITE_BUSY: _busy,
    apsw.SQLITE_LOCKED: _busy,
    apsw.SQLITE_FULL: lambda path, error: disk_full(path),
    apsw.SQLITE_CORRUPT: _corrupt,
    apsw.SQLITE_NOTADB: _foreign,
    apsw.SQLITE_READONLY: _forbidden,
    apsw.SQLITE_PERM: _forbidden,
    apsw.SQLITE_AUTH: _forbidden,
    apsw.SQLITE_CANTOPEN: _forbidden,
    apsw.SQLITE_IOERR: _io,
    apsw.SQLITE_NOMEM: _memory,
    apsw.SQLITE_INTERRUPT: _interrupted,
    apsw.SQLITE_TOOBIG: _too_big,
}
