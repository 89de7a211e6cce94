"""The order in which a gateway stops, so that a proxy in front of several loses no request.

Readiness turns red; after the delay that proxies need to see it, new requests are answered 503 with `Retry-After` and
`Connection: close` while the port still listens, which a proxy takes as "ask the next one"; what was begun is finished.
Event streams end at once with a retry hint, calls whose clients cannot come back for the rest late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundplane.gateway.problems import HTTPProblem

HINT_S = 2.0
"""What is left of the grace, in seconds, to tell those who cannot wait any longer, and to close."""
PROBES = frozenset({"/livez", "/readyz", "/healthz", "/startupz"})
_CLOSE = (b"connection", b"close")


class Stopping:
    """How far a gateway is on its way out, and how many requests it still answers."""

    def __init__(self) -> None:
        self.leaving = False
        self.refusing = False
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        state = "refusing" if self.refusing else "leaving" if self.leaving else "serving"
        return f"<Stopping {state}, {self._open} requests>"

    async def check(self) -> str | None:
        """For readiness."""
        return "the gateway is shutting down" if self.leaving else None

    def began(self) -> None:
        """A request came in."""
        self._open += 1
        self._idle.clear()

    def ended(self) -> None:
        """A request was answered, or its client has left."""
        self._open -= 1
        if not self._open:
            self._idle.set()

    async def idle(self, timeout_s: float) -> bool:
        """Whether nothing is being answered any more, after at most `timeout_s` seconds."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


async def stop_in_order(
    stopping: Stopping, *, drain: Callable[[], None], end: Callable[[], None], delay_s: float, grace_s: float
) -> float:
    """Leave, refuse, finish; the seconds that are left of the grace. `drain` is called when nothing new is taken any
    more, `end` when what waits must not wait longer.
    """
    clock = asyncio.get_running_loop().time
    ends_at = clock() + grace_s
    stopping.leaving = True
    if delay_s > 0:
        await asyncio.sleep(delay_s)
    drain()
    if not await stopping.idle(ends_at - clock() - min(HINT_S, grace_s / 2)):
        end()
        await stopping.idle(ends_at - clock() - min(HINT_S, grace_s / 2) / 2)
    return max(0.0, ends_at - clock())


class Doorkeeper:
    """ASGI middleware around the guard: counts what is answered, and refuses while the gateway drains."""

    def __init__(self, app: ASGIApp, stopping: Stopping) -> None:
        self._app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stopping = self._stopping
        if stopping.refusing and scope["path"] not in PROBES:
            await _refusal().response()(scope, receive, send)
            return

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and stopping.leaving:
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
            await send(message)

        stopping.began()
        try:
            await self._app(scope, receive, send_closing)
        finally:
            stopping.ended()


def _refusal() -> HTTPProblem:
    return HTTPProblem(503, "gateway: is shutting down; send the request again", headers={"Connection": "close"})
