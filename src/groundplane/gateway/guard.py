"""What every request passes first: who it is meant for, how big it may be, that faults become 500 and are counted.

A page of another site can make a browser send requests to 127.0.0.1 (DNS rebinding), so `Host` must name the loopback
or an allowed host, and `Origin`, where there is one, too. Nothing is ever allowed by CORS.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from urllib.parse import unquote

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundplane.gateway.metrics import GatewayMetrics
from groundplane.gateway.problems import HTTPProblem, unexpected
from groundplane.gateway.settings import GatewaySettings, is_loopback
from groundplane.telemetry.logs import get_logger

CLIENT_LEFT = 499
"""What is counted as the status of a request whose client left before its answer."""
_NAME = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?"
_HOST = re.compile(_NAME)
_ORIGIN = re.compile(f"https?://{_NAME}", re.IGNORECASE)
_ABSOLUTE = re.compile(r"https?://([^/?#]*)(/.*)?", re.IGNORECASE)
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
        self._allowed = settings.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._settings.body_bytes_max)
        began = time.perf_counter()
        self._metrics.active.inc()
        try:
            self._admit(scope)
            await self._app(scope, exchange.receive, exchange.send)
        except HTTPProblem as problem:
            await exchange.fail(problem.response(), scope)
        except ClientDisconnect:
            exchange.status = exchange.status or CLIENT_LEFT
        except Exception as error:  # noqa: BLE001 - the last barrier: the caller gets 500, the log the cause
            text = "".join(traceback.format_exception(error))
            _log.error("request_failed", method=scope["method"], path=scope["path"], traceback=text)
            await exchange.fail(unexpected(), scope)
        finally:
            self._metrics.active.dec()
            seconds = None if exchange.streamed else time.perf_counter() - began
            self._metrics.request(_known_method(scope["method"]), self._route_of(scope), exchange.status, seconds)

    def _admit(self, scope: Scope) -> None:
        size, encoding, length = 0, b"identity", None
        hosts: list[bytes] = []
        origins: list[bytes] = []
        for name, value in scope["headers"]:
            size += len(name) + len(value) + 4
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origins.append(value)
            elif name == b"content-length":
                length = value
            elif name == b"content-encoding":
                encoding = value
            elif name == b"transfer-encoding":
                _check_framing(scope)
        if scope["http_version"] not in ("1.0", "1.1"):
            raise HTTPProblem(505, f"version: {scope['http_version']!r} is not spoken here; use HTTP/1.1")
        self._check_size(size, scope)
        if len(hosts) > 1:
            raise HTTPProblem(400, "host: is there twice")
        self._check_host(b"".join(hosts).decode("latin-1"))
        for origin in origins:
            self._check_origin(origin.decode("latin-1"))
        if not scope["path"].startswith("/"):
            self._take_absolute(scope)
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

    def _check_size(self, size: int, scope: Scope) -> None:
        limit = self._settings.header_bytes_max
        if size > limit:
            raise HTTPProblem(431, f"headers: have {size} bytes; at most {limit} are taken", details={"limit": limit})
        size, limit = len(scope["raw_path"]) + len(scope["query_string"]), self._settings.target_bytes_max
        if size > limit:
            raise HTTPProblem(414, f"target: has {size} bytes; at most {limit} are taken", details={"limit": limit})

    def _take_absolute(self, scope: Scope) -> None:
        """A target with scheme and host, as proxies are sent them: that host counts too (RFC 9112, 3.2.2)."""
        target = scope["raw_path"].decode("latin-1")
        found = _ABSOLUTE.fullmatch(target)
        if found is None:
            raise HTTPProblem(400, f"target: {target[:200]!r} is not a path", details={"field": "target"})
        self._check_host(found[1])
        path = found[2] or "/"
        scope["path"], scope["raw_path"] = unquote(path), path.encode("latin-1")

    def _check_host(self, host: str) -> None:
        found = _HOST.fullmatch(host)
        if found is None or not self._is_allowed(found[1].strip("[]").lower()):
            raise HTTPProblem(
                421,
                f"host: {host[:200]!r} is not served here; call 127.0.0.1 or localhost, or list it in allowed_hosts",
                details={"field": "host"},
            )

    def _check_origin(self, origin: str) -> None:
        found = _ORIGIN.fullmatch(origin)
        if found is None or not self._is_allowed(found[1].strip("[]").lower()):
            raise HTTPProblem(403, f"origin: {origin[:200]!r} may not call this gateway", details={"field": "origin"})

    def _is_allowed(self, name: str) -> bool:
        return name in self._allowed or is_loopback(name)


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
        self._asked = False
        self.status = 0
        self.streamed = False

    async def receive(self) -> Message:
        self._asked = True
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

    async def fail(self, response: Response, scope: Scope) -> None:
        """Answer with `response` unless an answer has begun; then the broken stream is what tells.

        A client that waits for leave to send its body (`Expect: 100-continue`) and does not get it may send another
        request instead, which would be taken for the body: the connection ends.
        """
        if self.status != 0:
            return
        if not self._asked and any(name == b"expect" for name, _ in scope["headers"]):
            response.headers["Connection"] = "close"
        await response(scope, self._receive, self.send)


def _check_framing(scope: Scope) -> None:
    """A body of which the length is told in two ways, or in one that HTTP/1.0 does not have: another server on the way
    may have read it differently (request smuggling; RFC 9112, 6.1 and 6.3).
    """
    if scope["http_version"] == "1.0" or any(name == b"content-length" for name, _ in scope["headers"]):
        raise HTTPProblem(
            400,
            "transfer-encoding: stands beside content-length or in HTTP/1.0; tell the body's length in one way",
            details={"field": "transfer-encoding"},
            headers={"Connection": "close"},
        )


def _known_method(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS") else "other"
