"""The admin server: `/metrics`, `/livez`, `/readyz` over a very small HTTP/1.1, GET and HEAD, one request each.

A check returns None when it is fine and the reason when it is not; `/readyz?verbose` lists all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias

from groundplane.telemetry.metrics import CollectorRegistry, render

Check: TypeAlias = Callable[[], Awaitable[str | None]]

REQUEST_TIMEOUT_S = 5.0
HEAD_BYTES_MAX = 16 * 1024
_TEXT = "text/plain; charset=utf-8"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@asynccontextmanager
async def serve_admin(
    host: str, port: int, registry: CollectorRegistry, checks: Mapping[str, Check]
) -> AsyncIterator[int]:
    """Serve while the context is open; yields the port that was bound (`port` 0 takes a free one)."""
    open_connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_connections.add(task)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await _serve(reader, writer, registry, checks)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that is slow, gone or talks nonsense gets no answer
        finally:
            open_connections.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, host, port, limit=HEAD_BYTES_MAX)
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
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
    target = rest.partition(" ")[0]
    if method not in ("GET", "HEAD"):
        status, kind, body = 405, _TEXT, b"only GET\n"
    else:
        status, kind, body = await answer(target, registry, checks)
    words = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
    lines = f"HTTP/1.1 {status} {words[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    writer.write(lines.encode() + b"Connection: close\r\n\r\n" + (body if method != "HEAD" else b""))
    await writer.drain()


async def answer(target: str, registry: CollectorRegistry, checks: Mapping[str, Check]) -> tuple[int, str, bytes]:
    """Status, content type and body for one target."""
    path, _, query = target.partition("?")
    if path == "/metrics":
        return 200, _PROMETHEUS, render(registry)
    if path == "/livez":
        return 200, _TEXT, b"ok\n"
    if path != "/readyz":
        return 404, _TEXT, b"try /metrics, /livez or /readyz\n"
    found = {name: await check() for name, check in checks.items()}
    bad = {name: reason for name, reason in found.items() if reason is not None}
    shown = found if "verbose" in query or bad else {}
    lines = [f"{name}: {reason or 'ok'}" for name, reason in shown.items()] or ["ok"]
    return 503 if bad else 200, _TEXT, ("\n".join(lines) + "\n").encode()


__all__ = ["Check", "answer", "serve_admin"]
