"""The client's requests: made again where that is safe, and all that goes wrong made an error of ours.

A request that cannot do harm twice is repeated after every failure that passes; one that can, only where it is certain
that nobody has handled it: the connection was refused, or the gateway refused it for its rate (429).
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx2
import msgspec

from groundplane.core import codec
from groundplane.core.errors import Closed, GroundplaneError, InvalidArgument, Unavailable
from groundplane.gateway.client_events import Event, read_events
from groundplane.gateway.statuses import to_error
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces

RETRIES_MAX = 5
RETRY_AFTER_S_MAX = 30.0
READ_TIMEOUT_S = 45.0
"""Longer than a stream is silent (its keep-alives come every 15 seconds)."""
_CONNECT_TIMEOUT_S = 10.0
_BACKOFF_S = 0.1


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request. `repeatable`: doing it twice is the same as once. `read_timeout_s` None: the client's."""

    method: str
    path: str
    query: Mapping[str, str] = {}
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = {}
    read_timeout_s: float | None = None
    repeatable: bool = True


class Transport:
    """The connections to one gateway."""

    def __init__(self, url: str, *, timeout_s: float, headers: Mapping[str, str]) -> None:
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise InvalidArgument(f"url: {url!r} is no URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidArgument(f"url: {url!r} is not an http:// or https:// URL; write http://127.0.0.1:8080")
        self._http = httpx2.AsyncClient(base_url=url.rstrip("/"), timeout=timeout_s, headers=dict(headers))
        self._timeout_s = timeout_s
        self._closed = False

    def __repr__(self) -> str:
        return f"{self._http.base_url} {'closed' if self._closed else 'open'}"

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        self._closed = True
        await self._http.aclose()

    async def call(self, request: Request) -> dict[str, Any]:
        """The decoded answer. The details of what is raised tell under `repeats` how often the request was repeated."""
        repeats = 0
        while True:
            try:
                return await self._once(request)
            except GroundplaneError as error:
                again = error.retryable if request.repeatable else _is_unhandled(error)
                if not again or repeats == RETRIES_MAX:
                    error.details["repeats"] = repeats
                    raise
                await asyncio.sleep(_pause_s(error, repeats))
            repeats += 1

    async def stream(self, path: str, after: int) -> AsyncGenerator[tuple[Event | None, float | None], None]:
        """The events of a stream after an id, and the retry hints in seconds."""
        self._check_open()
        span = self._span("GET", path)
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {}), **_context(span)}
        timeout = httpx2.Timeout(_CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
        try:
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                span.set({names.HTTP_STATUS: response.status_code})
                if response.status_code >= 400:
                    raise _refused(response, await response.aread())
                async for parsed in read_events(response.aiter_bytes()):
                    yield parsed
        except httpx2.HTTPError as error:
            span.fail("unavailable", type(error).__name__)
            raise self._unreachable(error) from error
        finally:
            span.end()

    async def _once(self, request: Request) -> dict[str, Any]:
        with self._span(request.method, request.path) as span:
            return await self._answered(request, span)

    def _span(self, method: str, path: str) -> traces.Span:
        """The span of one request, under the current one or that of the program's own OpenTelemetry."""
        span = traces.start_under(traces.outgoing(), names.request(method), names.CLIENT)
        if span.recording:
            url = self._http.base_url
            span.set({names.HTTP_METHOD: method, names.URL_PATH: path, names.URL_SCHEME: url.scheme})
            span.set({names.SERVER_ADDRESS: url.host, names.SERVER_PORT: url.port})
        return span

    async def _answered(self, request: Request, span: traces.Span) -> dict[str, Any]:
        self._check_open()
        headers, content = {**_context(span), **request.headers}, None
        if request.body is not None:
            content, headers["Content-Type"] = codec.encode(dict(request.body), "json"), "application/json"
        timeout = httpx2.Timeout(self._timeout_s, read=request.read_timeout_s or self._timeout_s)
        try:
            response = await self._http.request(
                request.method,
                request.path,
                params=dict(request.query) or None,
                content=content,
                headers=headers,
                timeout=timeout,
            )
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        span.set({names.HTTP_STATUS: response.status_code})
        if response.status_code >= 400:
            raise _refused(response, response.content)
        decoded: dict[str, Any] = codec.decode(response.content)
        return decoded

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"gateway: {self._http.base_url} does not answer: {type(error).__name__}; is `groundplane dev` running?"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("client: is closed; open another one")


def _context(span: traces.Span) -> dict[str, str]:
    return span.context.headers() if span.context is not None else {}


def _refused(response: httpx2.Response, content: bytes) -> GroundplaneError:
    try:
        document = codec.decode(content)
    except GroundplaneError:
        document = None
    error = to_error(response.status_code, document)
    after = _retry_after_s(response.headers.get("retry-after", ""))
    if after is not None:
        error.details["retry_after_s"] = after
    return error


def _is_unhandled(error: GroundplaneError) -> bool:
    """Whether it is certain that nobody has begun to handle the request."""
    refused = error.details.get("status") == 429
    return refused or isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)


def _retry_after_s(text: str) -> float | None:
    """RFC 9110, section 10.2.3: seconds, or a date."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _pause_s(error: GroundplaneError, repeats: int) -> float:
    told = error.details.get("retry_after_s")
    if told is not None:
        return min(RETRY_AFTER_S_MAX, float(told) * random.uniform(1.0, 1.1))  # not all at one moment
    return min(RETRY_AFTER_S_MAX, _BACKOFF_S * 2.0**repeats) * random.uniform(0.5, 1.0)
