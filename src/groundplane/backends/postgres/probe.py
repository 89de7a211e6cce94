"""Why a connection was refused, by SQLSTATE: libpq tells words alone before a session is there.

A second, bare connection says who it is and for which database, and reads the answer: an error carries its SQLSTATE; a
question for a password means that what libpq answered was refused, or that only the database is missing, which another
database of the server tells. Nothing secret is sent by it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
from typing import Any, BinaryIO

import psycopg

from groundplane.backends.postgres.settings import Settings

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_PROTOCOL = 196608
_STATE = re.compile(rb"\x00C([0-9A-Z]{5})\x00")
_ASKS = "password"
_OTHERS = ("postgres", "template1")


def state_of(settings: Settings) -> str:
    """The SQLSTATE of the refusal, or '' where the server could not be asked. Blocks, for each host at most the
    connect timeout.
    """
    info = settings.conninfo
    hosts = str(info.get("host") or "").split(",")
    ports = str(info.get("port") or "5432").split(",")
    for at, host in enumerate(hosts):
        port = ports[at] if at < len(ports) else ports[0]
        with contextlib.suppress(OSError, ValueError):
            state = _answer(host, int(port or 5432), info)
            if state == _ASKS:
                return "3D000" if _database_is_missing(settings) else "28P01"
            return state
    return ""


def _answer(host: str, port: int, info: dict[str, Any]) -> str:
    timeout_s = float(info["connect_timeout"])
    if host.startswith("/") or not host:
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(timeout_s)
        raw.connect(f"{host or '/var/run/postgresql'}/.s.PGSQL.{port}")
        encrypted = False
    else:
        raw = socket.create_connection((host, port), timeout_s)
        encrypted = info.get("sslmode") != "disable"
    with contextlib.ExitStack() as stack:
        stack.callback(raw.close)
        if encrypted:
            raw.sendall(_SSL_REQUEST)
            if raw.recv(1) == b"S":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing secret is told
                raw = stack.enter_context(context.wrap_socket(raw))
        raw.sendall(_startup(info))
        with raw.makefile("rb") as answer:
            return _state_in(answer)


def _state_in(answer: BinaryIO) -> str:
    """The SQLSTATE of the error that comes; `_ASKS` where a password is asked for; '' where a session begins."""
    while len(head := answer.read(5)) == 5:
        kind, length = struct.unpack("!ci", head)
        body = answer.read(length - 4)
        if kind == b"E":
            found = _STATE.search(body)
            return found[1].decode() if found else ""
        if kind == b"R" and body[:4] != b"\0\0\0\0":
            return _ASKS
        if kind == b"Z":
            break
    return ""


def _startup(info: dict[str, Any]) -> bytes:
    user = str(info.get("user") or psycopg.conninfo.conninfo_to_dict("").get("user") or "")
    named = {"user": user, "database": str(info.get("dbname") or user)}
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in named.items()) + b"\0"
    return struct.pack("!ii", len(body) + 8, _PROTOCOL) + body


def _database_is_missing(settings: Settings) -> bool:
    wanted = settings.conninfo.get("dbname") or settings.conninfo.get("user")
    for other in _OTHERS:
        with contextlib.suppress(psycopg.Error):
            with psycopg.connect(**{**settings.conninfo, "dbname": other}) as connection:
                return connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [wanted]).fetchone() is None
    return False
