"""The admin server: `/metrics`, `/livez`, `/readyz` over a very small HTTP/1.1, GET and HEAD, one request each.

A check returns None when it is fine and the reason when it is not; `/readyz?verbose` lists all of them. `/livez` is
answered by the process's own event loop: a loop that is stuck does not answer it.
Everything here only reads. A process may add pages of its own, each for the paths that begin with its prefix.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias

from groundplane.core.errors import FailedPrecondition
from groundplane.telemetry.metrics import CollectorRegistry, render

Check: TypeAlias = Callable[[], Awaitable[str | None]]
Page: TypeAlias = Callable[[str], Awaitable[tuple[int, bytes]]]
"""Called with what follows its prefix in the path, still quoted; answers a status and JSON."""

REQUEST_TIMEOUT_S = 5.0
HEAD_BYTES_MAX = 16 * 1024
_WORDS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@asynccontextmanager
async def serve_admin(
    host: str,
    port: int,
    registry: CollectorRegistry,
    checks: Mapping[str, Check],
    pages: Mapping[str, Page] | None = None,
) -> AsyncIterator[int]:
    """Serve while the context is open; yields the port that was bound (`port` 0 takes a free one).

    `checks` may change meanwhile. Raises `failed_precondition` when the port cannot be bound.
    """
    open_connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_connections.add(task)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await _serve(reader, writer, registry, checks, pages or {})
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that is slow, gone or talks nonsense gets no answer
        finally:
            open_connections.discard(task)
            writer.close()

    try:
        server = await asyncio.start_server(connected, host, port, limit=HEAD_BYTES_MAX)
    except OSError as error:
        raise FailedPrecondition(
            f"admin_port: {port!r} on {host} cannot be bound: {error.strerror}; stop what listens there, "
            "or choose another port",
            details={"host": host, "port": port},
        ) from error
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(open_connections):
            task.cancel()
        await asyncio.gather(*open_connections, return_exceptions=True)
        await server.wait_closed()


async def _serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    registry: CollectorRegistry,
    checks: Mapping[str, Check],
    pages: Mapping[str, Page],
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
    target = rest.partition(" ")[0]
    if method not in ("GET", "HEAD"):
        status, kind, body = 405, _TEXT, b"only GET\n"
    else:
        status, kind, body = await answer(target, registry, checks, pages)
    lines = f"HTTP/1.1 {status} {_WORDS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    writer.write(lines.encode() + b"Connection: close\r\n\r\n" + (body if method != "HEAD" else b""))
    await writer.drain()


async def answer(
    target: str, registry: CollectorRegistry, checks: Mapping[str, Check], pages: Mapping[str, Page] | None = None
) -> tuple[int, str, bytes]:
    """Status, content type and body for one target."""
    path, _, query = target.partition("?")
    for prefix, page in (pages or {}).items():
        if path.startswith(prefix):
            status, body = await page(path.removeprefix(prefix))
            return status, _JSON, body
    if path == "/metrics":
        return 200, _PROMETHEUS, render(registry)
    if path == "/livez":
        return 200, _TEXT, b"ok\n"
    if path != "/readyz":
        others = "".join(f", {prefix}…" for prefix in pages or {})
        return 404, _TEXT, f"try /metrics, /livez, /readyz{others}\n".encode()
    found = {name: await check() for name, check in list(checks.items())}
    bad = {name: reason for name, reason in found.items() if reason is not None}
    shown = found if "verbose" in query or bad else {}
    lines = [f"{name}: {reason or 'ok'}" for name, reason in shown.items()] or ["ok"]
    return 503 if bad else 200, _TEXT, ("\n".join(lines) + "\n").encode()


__all__ = ["Check", "Page", "answer", "serve_admin"]
