"""What every request passes first: who it is meant for, how big it may be, that faults become 500 and are counted.

A page of another site can make a browser send requests to 127.0.0.1 (DNS rebinding), so `Host` must name the loopback
or an allowed host, and `Origin`, where there is one, too. Nothing is ever allowed by CORS.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundplane.gateway.metrics import GatewayMetrics
from groundplane.gateway.problems import HTTPProblem, unexpected
from groundplane.gateway.settings import GatewaySettings, is_loopback
from groundplane.telemetry.logs import get_logger

_log = get_logger("gateway")


class Guard:
    """ASGI middleware around the whole gateway."""

    def __init__(
        self, app: ASGIApp, settings: GatewaySettings, metrics: GatewayMetrics, route_of: Callable[[Scope], str]
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._route_of = route_of
        self._allowed = frozenset(host.lower() for host in settings.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._settings.body_bytes_max)
        began = time.perf_counter()
        try:
            self._admit(scope)
            await self._app(scope, exchange.receive, exchange.send)
        except HTTPProblem as problem:
            await exchange.fail(problem.response(), scope)
        except Exception as error:  # noqa: BLE001 - the last barrier: the caller gets 500, the log the cause
            text = "".join(traceback.format_exception(error))
            _log.error("request_failed", method=scope["method"], path=scope["path"], traceback=text)
            await exchange.fail(unexpected(), scope)
        finally:
            seconds = None if exchange.streamed else time.perf_counter() - began
            self._metrics.request(_known_method(scope["method"]), self._route_of(scope), exchange.status, seconds)

    def _admit(self, scope: Scope) -> None:
        size, host, origin, length, encoding = 0, None, None, None, b"identity"
        for name, value in scope["headers"]:
            size += len(name) + len(value) + 4
            if name == b"host":
                if host is not None:
                    raise HTTPProblem(400, "host: is there twice")
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"content-length":
                length = value
            elif name == b"content-encoding":
                encoding = value
        limit = self._settings.header_bytes_max
        if size > limit:
            raise HTTPProblem(431, f"headers: have {size} bytes; at most {limit} are taken", details={"limit": limit})
        self._check_host((host or b"").decode("latin-1"))
        if origin is not None:
            self._check_origin(origin.decode("latin-1"))
        if encoding.lower() != b"identity":
            shown = encoding.decode("latin-1")[:100]
            raise HTTPProblem(
                415,
                f"content-encoding: {shown!r}; send the body as it is",
                details={"field": "content-encoding"},
                headers={"Accept-Encoding": "identity"},
            )
        body_limit = self._settings.body_bytes_max
        if length is not None and length.isdigit() and int(length) > body_limit:
            raise too_large(body_limit)

    def _check_host(self, host: str) -> None:
        if not self._is_allowed(_hostname("//" + host)):
            raise HTTPProblem(
                421, f"host: {host[:200]!r} is not served here; call 127.0.0.1 or localhost", details={"field": "host"}
            )

    def _check_origin(self, origin: str) -> None:
        if not self._is_allowed(_hostname(origin)):
            raise HTTPProblem(403, f"origin: {origin[:200]!r} may not call this gateway", details={"field": "origin"})

    def _is_allowed(self, name: str) -> bool:
        return bool(name) and (name in self._allowed or is_loopback(name))


def too_large(limit: int) -> HTTPProblem:
    """The body is over the limit."""
    return HTTPProblem(
        413, f"body: is over the limit of {limit} bytes", reason="payload_too_large", details={"limit": limit}
    )


class _Exchange:
    """Counts what comes in, and knows whether an answer has begun."""

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self._receive = receive
        self._send = send
        self._limit = limit
        self._taken = 0
        self.status = 0
        self.streamed = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._taken += len(message.get("body", b""))
            if self._taken > self._limit:
                raise too_large(self._limit)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.streamed = any(
                name == b"content-type" and value.startswith(b"text/event-stream") for name, value in message["headers"]
            )
        await self._send(message)

    async def fail(self, response: ASGIApp, scope: Scope) -> None:
        """Answer with `response` unless an answer has begun; then the broken stream is what tells."""
        if self.status == 0:
            await response(scope, self._receive, self.send)


def _hostname(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _known_method(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS") else "other"
