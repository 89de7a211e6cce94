"""Just enough of some protocols to ask a server whether it works, without its client library."""

from __future__ import annotations

import hashlib
import hmac
import socket
import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from urllib.parse import quote, unquote, urlsplit

from groundplane.core.errors import Unavailable
from groundplane.testing.servers.contract import NotReady

TIMEOUT_S = 2.0
HOST = "127.0.0.1"


def http(
    method: str,
    port: int,
    path: str,
    *,
    host: str = HOST,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    user: tuple[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[int, bytes]:
    """One HTTP request; status and body. Raises OSError or NotReady where there is no answer."""
    sent = dict(headers or {})
    if user is not None:
        sent["Authorization"] = "Basic " + b64encode(":".join(user).encode()).decode()
    connection = HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request(method, path, body=body or None, headers=sent)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except HTTPException as error:
        raise NotReady(f"{method} {path}: {error!r}") from error
    finally:
        connection.close()


def expect(status: int, port: int, path: str, *, user: tuple[str, str] | None = None) -> bytes:
    """The body of a GET that must answer with this status; NotReady otherwise."""
    got, body = http("GET", port, path, user=user)
    if got != status:
        raise NotReady(f"GET {path}: {got} {body[:200]!r}")
    return body


def dial(port: int, host: str = HOST, timeout_s: float = TIMEOUT_S) -> socket.socket:
    """A connection whose every wait is bounded."""
    return socket.create_connection((host, port), timeout=timeout_s)


def exactly(connection: socket.socket, count: int) -> bytes:
    """So many bytes; NotReady where the other side closes before."""
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise NotReady(f"the connection was closed after {len(data)} of {count} bytes")
        data += chunk
    return data


class Postgres:
    """PostgreSQL's protocol 3.0 as user `postgres` without a password: simple queries whose results nobody reads."""

    def __init__(self, port: int, database: str = "postgres", *, host: str = HOST, timeout_s: float = 10.0) -> None:
        self._connection = dial(port, host, timeout_s)
        words = b"".join(w.encode() + b"\0" for w in ("user", "postgres", "database", database)) + b"\0"
        try:
            self._connection.sendall(struct.pack("!II", len(words) + 8, 196_608) + words)
            self._until_ready()
        except BaseException:
            self._connection.close()
            raise

    def execute(self, sql: str) -> None:
        """Run it; `unavailable` with the server's words where it fails."""
        data = sql.encode() + b"\0"
        self._connection.sendall(b"Q" + struct.pack("!I", len(data) + 4) + data)
        self._until_ready()

    def close(self) -> None:
        self._connection.close()

    def _until_ready(self) -> None:
        failed: bytes | None = None
        while True:
            kind, length = struct.unpack("!cI", exactly(self._connection, 5))
            body = exactly(self._connection, length - 4)
            if kind == b"E":
                failed = body
            if kind == b"R" and body[:4] != b"\0\0\0\0":
                raise Unavailable("PostgreSQL asks for a password; this needs psycopg (groundplane[postgres])")
            if kind == b"Z" or (kind == b"E" and body.startswith(b"SFATAL")):
                break
        if failed is not None:
            fields = {f[:1]: f[1:].decode(errors="replace") for f in failed.split(b"\0") if f}
            error = f"PostgreSQL: {fields.get(b'M', '')} ({fields.get(b'C', '')})"
            raise NotReady(error) if fields.get(b"C") == "57P03" else Unavailable(error)


def redis(port: int, *commands: Sequence[str], url: str = "") -> bytes:
    """Commands of Redis on one connection, with host and password of `url`; the first line of the last answer, which
    must be a simple one. NotReady where one is refused.
    """
    parts = urlsplit(url)
    login = [word for word in ("AUTH", parts.username, unquote(parts.password)) if word] if parts.password else []
    line = b""
    with dial(port, parts.hostname or HOST) as connection, connection.makefile("rb") as stream:
        for words in (login, *commands):
            if words:
                sent = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
                connection.sendall(f"*{len(words)}\r\n{sent}".encode())
                line = stream.readline().strip()
                if not line or line.startswith(b"-"):
                    raise NotReady(f"{words[0]}: {line!r}")
    return line


def s3(
    method: str,
    port: int,
    path: str,
    *,
    keys: tuple[str, str],
    host: str = HOST,
    region: str = "us-east-1",
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> tuple[int, bytes]:
    """One request of S3, signed with AWS's signature version 4."""
    moment = datetime.now(UTC)
    stamp, day = moment.strftime("%Y%m%dT%H%M%SZ"), moment.strftime("%Y%m%d")
    digest = hashlib.sha256(body).hexdigest()
    sent = {
        **{name.lower(): value for name, value in (headers or {}).items()},
        "host": f"{host}:{port}", "x-amz-date": stamp, "x-amz-content-sha256": digest,
    }  # fmt: skip
    names = ";".join(sorted(sent))
    lines = "".join(f"{name}:{sent[name]}\n" for name in sorted(sent))
    words = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted((query or {}).items()))
    canonical = f"{method}\n{quote(path)}\n{words}\n{lines}\n{names}\n{digest}"
    scope = f"{day}/{region}/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{keys[1]}".encode()
    for word in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, word.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    sent["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys[0]}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return http(method, port, f"{quote(path)}?{words}", host=host, body=body, headers=sent, timeout_s=10.0)
