"""The error table: what an SQLSTATE means to a caller.

Decided by SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), never by words. Before a session
is there libpq tells no SQLSTATE: `probe` finds it out. What remains is `unavailable`. The cause is always kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import psycopg

from groundplane.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    GroundplaneError,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)
from groundplane.core.secrets import mask_urls


class _Row(NamedTuple):
    make: Callable[..., GroundplaneError]
    advice: str
    reason: str = ""


_BY_STATE: dict[str, _Row] = {
    "28P01": _Row(PermissionDenied, "mend the user or the password in the URL"),
    "28000": _Row(PermissionDenied, "mend the user in the URL, or pg_hba.conf of the server"),
    "42501": _Row(PermissionDenied, "grant the role what it lacks, or use the role that owns the schema"),
    "3D000": _Row(FailedPrecondition, "create the database, or mend its name in the URL"),
    "3F000": _Row(FailedPrecondition, "run `groundplane db upgrade`", "schema_old"),
    "42P01": _Row(FailedPrecondition, "a table is gone; run `groundplane db upgrade`, or restore it", "schema_old"),
    "25006": _Row(FailedPrecondition, "use the primary (`target_session_attrs=read-write`)", "read_only"),
    "53100": _Row(ResourceExhausted, "free space on the server; nothing acknowledged is lost", "disk_full"),
    "53300": _Row(ResourceExhausted, "raise max_connections, or lower pool_max in the URL", "server_exhausted"),
    "55P03": _Row(Unavailable, "somebody holds a lock for too long; look at pg_stat_activity", "database_busy"),
    "57014": _Row(DeadlineExceeded, "the server cancelled it: statement_timeout, or an administrator"),
    "40001": _Row(Unavailable, "it lost against another transaction and changed nothing; try again", "database_busy"),
    "40P01": _Row(Unavailable, "it lost against another transaction and changed nothing; try again", "database_busy"),
    "23505": _Row(AlreadyExists, "a row with this key is there already"),
    "0A000": _Row(Unsupported, "the server does not support it"),
    "22021": _Row(InvalidArgument, "text must not have NUL characters"),
    "22P05": _Row(InvalidArgument, "text must not have NUL characters"),
    "XX001": _Row(FailedPrecondition, "the data of the server is damaged; restore a backup", "database_corrupt"),
    "XX002": _Row(FailedPrecondition, "an index of the server is damaged; REINDEX", "database_corrupt"),
    "58030": _Row(Unavailable, "the server could not read or write; look at its disk", "io_error"),
}
_BY_CLASS: dict[str, _Row] = {
    "08": _Row(Unavailable, "look at the server and the network"),
    "57": _Row(Unavailable, "the server stops, starts or recovers; it is tried again"),
    "53": _Row(ResourceExhausted, "the server has too little memory or other resources", "server_exhausted"),
    "28": _Row(PermissionDenied, "mend user and password in the URL"),
    "22": _Row(InvalidArgument, "the value cannot be stored"),
}
_AWAY = _Row(Unavailable, "look at the server and the network")


def translate(error: psycopg.Error, shown: str, state: str = "") -> GroundplaneError:
    """The error of ours for one of PostgreSQL's or libpq's. Raise it `from` the original. `shown` names the server,
    `state` is the SQLSTATE where it is known otherwise.
    """
    state = error.sqlstate or state
    row = _BY_STATE.get(state) or _BY_CLASS.get(state[:2])
    if row is None and not state and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        row = _AWAY
    text = said(error)
    if row is None:
        return Internal(f"database: {shown!r}: {text}", details={"sqlstate": state})
    return row.make(
        f"database: {shown!r}: {text}; {row.advice}",
        reason=row.reason,
        details={"sqlstate": state},
    )


def timed_out(shown: str, seconds: float, why: str = "") -> Unavailable:
    """No answer in time: whether a write took effect is not known."""
    cause = f" ({why})" if why else ""
    return Unavailable(
        f"database: {shown!r} did not answer within {seconds:g} s{cause}; look at the server and the network",
        details={"waited_s": seconds},
    )


def said(error: BaseException) -> str:
    """The server's words in one line, without passwords."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = primary or str(error) or type(error).__name__
    return mask_urls(" ".join(text.split()))[:500]
