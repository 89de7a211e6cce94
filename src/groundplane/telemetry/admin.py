"""The admin server: `/metrics` and the pages of `telemetry.health` over a very small HTTP/1.1, one request each.

`/livez` is answered by the process's own event loop: a loop that is stuck does not answer it.
Everything here only reads. A process may add pages of its own, each for the paths that begin with its prefix.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias

from groundplane.core.errors import FailedPrecondition
from groundplane.telemetry import health_pages
from groundplane.telemetry.health import Health
from groundplane.telemetry.metrics import CollectorRegistry, render
from groundplane.telemetry.process import HealthCollector

Page: TypeAlias = Callable[[str], Awaitable[tuple[int, bytes]]]
"""Called with what follows its prefix in the path, still quoted; answers a status and JSON."""

Exposition: TypeAlias = Callable[[], Awaitable[bytes]]
"""Makes the text that Prometheus reads."""

REQUEST_TIMEOUT_S = 10.0
HEAD_BYTES_MAX = 16 * 1024
_WORDS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@asynccontextmanager
async def serve_admin(
    host: str,
    port: int,
    registry: CollectorRegistry,
    health: Health,
    pages: Mapping[str, Page] | None = None,
    *,
    exposition: Exposition | None = None,
) -> AsyncIterator[int]:
    """Serve while the context is open; yields the port that was bound (`port` 0 takes a free one).

    `/metrics` shows the registry, or what `exposition` makes. Meanwhile the health checks are run every 15 s, and the
    registry shows what they found. Checks may be added. Raises `failed_precondition` when the port cannot be bound.
    """
    open_connections: set[asyncio.Task[None]] = set()
    shown = HealthCollector(health)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_connections.add(task)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await _serve(reader, writer, exposition or shows(registry), health, pages or {})
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
    registry.register(shown)
    keeping = asyncio.create_task(health.keep(), name="health")
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        registry.unregister(shown)
        ending = [keeping, *open_connections]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await server.wait_closed()


def shows(registry: CollectorRegistry) -> Exposition:
    """The exposition of a registry."""

    async def exposition() -> bytes:
        return render(registry)

    return exposition


async def _serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    exposition: Exposition,
    health: Health,
    pages: Mapping[str, Page],
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
    target = rest.partition(" ")[0]
    if method not in ("GET", "HEAD"):
        status, kind, body = 405, health_pages.TEXT, b"only GET\n"
    else:
        status, kind, body = await answer(target, exposition, health, pages)
    lines = f"HTTP/1.1 {status} {_WORDS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    writer.write(lines.encode() + b"Connection: close\r\n\r\n" + (body if method != "HEAD" else b""))
    await writer.drain()


async def answer(
    target: str, exposition: Exposition, health: Health, pages: Mapping[str, Page] | None = None
) -> tuple[int, str, bytes]:
    """Status, content type and body for one target."""
    path, _, query = target.partition("?")
    for prefix, page in (pages or {}).items():
        if path.startswith(prefix):
            status, body = await page(path.removeprefix(prefix))
            return status, health_pages.JSON, body
    if path == "/metrics":
        return 200, _PROMETHEUS, await exposition()
    if path in health_pages.PATHS:
        return await health_pages.answer(health, path, query)
    others = "".join(f", {prefix}…" for prefix in pages or {})
    return 404, health_pages.TEXT, f"try /metrics, {', '.join(health_pages.PATHS)}{others}\n".encode()


__all__ = ["Exposition", "Page", "answer", "serve_admin", "shows"]
