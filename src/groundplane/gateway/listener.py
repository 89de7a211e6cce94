"""The port of the gateway: bound before anything is said of it, served by uvicorn, checked for slow clients, and closed
in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from groundplane.core.errors import FailedPrecondition
from groundplane.gateway.connection import Bounds, Connection

_HEADER_BUFFER_BYTES = 256 * 1024


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. `failed_precondition` where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # the protocol is named, else asyncio leaves Nagle's algorithm on: 40 ms for each answer in two writes
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise FailedPrecondition(
            f"port: {port!r} on {host} cannot be bound: {error.strerror}; stop what listens there, or use another port",
            details={"host": host, "port": port},
        ) from error
    return listener


class Server(uvicorn.Server):
    """uvicorn, told by us when to stop, and telling us when it starts and before it closes the port. It logs
    nothing and writes no headers of its own.
    """

    def __init__(
        self,
        asgi: ASGIApp,
        bounds: Bounds,
        idle_s: float,
        *,
        ready: Callable[[], None],
        stopping: Callable[[], Awaitable[float]],
    ) -> None:
        config = uvicorn.Config(
            asgi,
            lifespan="on",
            ws="none",
            http=partial(Connection, bounds=bounds),  # type: ignore[arg-type]
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, math.ceil(idle_s)),
            h11_max_incomplete_event_size=_HEADER_BUFFER_BYTES,
        )
        super().__init__(config)
        self._bounds = bounds
        self._check_at = 0.0
        self._stopping = stopping
        self._ready = ready

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + self._bounds.interval_s
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.check(now)
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        left_s = await self._stopping()
        self.config.timeout_graceful_shutdown = max(1, int(left_s))
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to whoever owns the process."""
        yield


async def stop_when(stop: asyncio.Event, server: uvicorn.Server) -> None:
    """Let the server go once `stop` is set."""
    await stop.wait()
    server.should_exit = True
