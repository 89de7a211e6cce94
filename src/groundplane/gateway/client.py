"""A client of the gateway's REST lane: start, follow without losing an event, read the result later.

    async with Client("http://127.0.0.1:8080") as client:
        job = await client.start("pipeline", {"value": 10})
        async for event in client.follow(job["job_id"]):
            print(event.data["progress"])
        job = await client.result(job["job_id"])

Errors are those of `groundplane.core.errors`, made from the gateway's problem details; an unreachable gateway is
`Unavailable`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec

from groundplane.core import codec
from groundplane.core.errors import Closed, DeadlineExceeded, GroundplaneError, InvalidArgument, Unavailable
from groundplane.core.ids import new_id
from groundplane.gateway.problems import to_error

RETRIES_MAX = 5
RETRY_AFTER_S_MAX = 30.0
_WAIT_S = 50.0
_READ_TIMEOUT_S = 45.0
_TERMINAL = frozenset({"succeeded", "failed", "cancelled", "timed_out"})


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One server-sent event: `status` (the job as it was on connecting) or `update`. `id` 0: it had none."""

    kind: str
    id: int
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        """Whether the job has ended with it; its data is then the whole job."""
        return bool(self.data.get("final")) or (self.kind == "status" and self.data.get("state") in _TERMINAL)


class Client:
    """One gateway. Calls may be made concurrently. Requests that can be repeated safely are, with jittered backoff and
    as `Retry-After` says; `start` is made safe by an idempotency key of its own. A `url` that is none of HTTP's raises
    `InvalidArgument`.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, headers: Mapping[str, str] | None = None) -> None:
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise InvalidArgument(f"url: {url!r} is no URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidArgument(f"url: {url!r} is not an http:// or https:// URL; write http://127.0.0.1:8080")
        self._http = httpx2.AsyncClient(base_url=url.rstrip("/"), timeout=timeout_s, headers=dict(headers or {}))
        self._closed = False

    def __repr__(self) -> str:
        return f"<Client {self._http.base_url} {'closed' if self._closed else 'open'}>"

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        self._closed = True
        await self._http.aclose()

    async def start(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> dict[str, Any]:
        """The new job, durable. Repeated by itself on a lost connection, under one idempotency key."""
        body: dict[str, Any] = {"tool": tool, "arguments": dict(arguments or {})}
        if timeout_s is not None:
            if not 0 < timeout_s < math.inf:
                raise InvalidArgument(f"timeout: {timeout_s!r} is not a positive number of seconds")
            body["timeout"] = timeout_s
        headers = {"Idempotency-Key": idempotency_key or new_id()}
        if traceparent is not None:
            headers["traceparent"] = traceparent
        return await self._call("POST", "/v1/jobs", body=body, headers=headers)

    async def get(self, job_id: str) -> dict[str, Any]:
        """The job as it is."""
        return await self._call("GET", _path(job_id))

    async def list_jobs(
        self, *, states: tuple[str, ...] = (), tool: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> dict[str, Any]:
        """A page: `jobs` newest first, and the `cursor` of the next page or None."""
        query = {"state": ",".join(states) or None, "tool": tool, "cursor": cursor, "limit": str(limit)}
        return await self._call("GET", "/v1/jobs", query={k: v for k, v in query.items() if v is not None})

    async def result(self, job_id: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The ended job, waiting for it without end or for `timeout_s`; then `DeadlineExceeded`, the job goes on."""
        loop = asyncio.get_running_loop()
        until = None if timeout_s is None else loop.time() + timeout_s
        while True:
            wait = _WAIT_S if until is None else max(0.0, min(_WAIT_S, until - loop.time()))
            job = await self._call(
                "GET", _path(job_id, "/result"), query={"wait": f"{wait:.3f}"}, timeout_s=wait + _READ_TIMEOUT_S
            )
            if job["state"] in _TERMINAL:
                return job
            if until is not None and loop.time() >= until:
                raise DeadlineExceeded(
                    f"timeout: job {job_id!r} has not ended within {timeout_s!r} seconds", details={"job": job}
                )

    async def follow(self, job_id: str, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """The job's events after the id `after`, to the final one. A broken stream is resumed where it broke."""
        position, failures, retry_s, resumed = after, 0, 1.0, False
        while True:
            try:
                async with aclosing(self._stream(job_id, position)) as stream:
                    async for event, retry in stream:
                        failures = 0
                        retry_s = retry if retry is not None else retry_s
                        if event is None or (event.kind == "status" and resumed):
                            continue
                        resumed, position = True, max(position, event.id)
                        yield event
                        if event.final and event.kind == "update":
                            return
            except Unavailable:
                failures += 1
                if failures > RETRIES_MAX:
                    raise
            await asyncio.sleep(min(RETRY_AFTER_S_MAX, retry_s * 2 ** max(0, failures - 1)) * random.uniform(0.5, 1.0))

    async def cancel(self, job_id: str, reason: str = "") -> dict[str, Any]:
        """End the job as cancelled. Raises `FailedPrecondition` when it has ended."""
        return await self._call("POST", _path(job_id, "/cancel"), body={"reason": reason})

    async def pause(self, job_id: str, reason: str = "") -> dict[str, Any]:
        """Hold the job before its next hop."""
        return await self._call("POST", _path(job_id, "/pause"), body={"reason": reason})

    async def resume(self, job_id: str, reason: str = "") -> dict[str, Any]:
        """Let a paused job go on."""
        return await self._call("POST", _path(job_id, "/resume"), body={"reason": reason})

    async def tools(self) -> list[dict[str, Any]]:
        """All tools with their schemas."""
        listed: list[dict[str, Any]] = (await self._call("GET", "/v1/tools"))["tools"]
        return listed

    async def dead(self, *, queue: str | None = None, cursor: str | None = None, limit: int = 50) -> dict[str, Any]:
        """A page: `dead` oldest first, and the `cursor` of the next page or None."""
        query = {"queue": queue, "cursor": cursor, "limit": str(limit)}
        return await self._call("GET", "/v1/dead", query={k: v for k, v in query.items() if v is not None})

    async def redrive(self, dead_id: str, **edited: Any) -> dict[str, Any]:
        """Put a dead letter back; `payload=` replaces what it carried."""
        return await self._call("POST", f"/v1/dead/{_quoted(dead_id)}/redrive", body=edited, repeat=False)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        repeat: bool = True,
    ) -> dict[str, Any]:
        safe = repeat and (method == "GET" or "Idempotency-Key" in (headers or {}))
        for failures in range(RETRIES_MAX + 1):
            try:
                return await self._once(method, path, query, body, headers, timeout_s)
            except GroundplaneError as error:
                if not (error.retryable and safe) or failures == RETRIES_MAX:
                    raise
                pause = error.details.get("retry_after_s") or 0.1 * 2**failures * random.uniform(0.5, 1.0)
                await asyncio.sleep(min(RETRY_AFTER_S_MAX, pause))
        raise AssertionError("unreachable")

    async def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> dict[str, Any]:
        self._check_open()
        sent = dict(headers or {})
        content = None
        if body is not None:
            content, sent["Content-Type"] = codec.encode(dict(body), "json"), "application/json"
        extra: dict[str, Any] = {} if timeout_s is None else {"timeout": timeout_s}
        try:
            response = await self._http.request(method, path, params=query, content=content, headers=sent, **extra)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code >= 400:
            raise _error(response, response.content)
        decoded: dict[str, Any] = codec.decode(response.content)
        return decoded

    async def _stream(self, job_id: str, after: int) -> AsyncGenerator[tuple[Event | None, float | None], None]:
        self._check_open()
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {})}
        timeout = httpx2.Timeout(10.0, read=_READ_TIMEOUT_S)
        try:
            async with self._http.stream("GET", _path(job_id, "/events"), headers=headers, timeout=timeout) as response:
                if response.status_code >= 400:
                    raise _error(response, await response.aread())
                async for parsed in _events(response.aiter_bytes()):
                    yield parsed
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"gateway: {self._http.base_url} does not answer: {type(error).__name__}; is `groundplane dev` running?"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("client: is closed; open another one")


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[Event | None, float | None]]:
    """Server-sent events from bytes, each with the retry hint that stood before it. Only line feeds end a line: text
    may hold every other separator that Unicode knows.
    """
    buffered = b""
    async for chunk in chunks:
        *frames, buffered = (buffered + chunk).split(b"\n\n")
        for one in frames:
            pairs = (line.partition(":") for line in one.decode("utf-8").split("\n"))
            fields = {name: value.removeprefix(" ") for name, _, value in pairs if name}
            retry = float(fields["retry"]) / 1000 if fields.get("retry", "").isdigit() else None
            event = None
            if "data" in fields:
                data = codec.decode(fields["data"].encode())
                event = Event(kind=fields.get("event", "message"), id=int(fields.get("id") or 0), data=data)
            if event is not None or retry is not None:
                yield event, retry


def _error(response: httpx2.Response, content: bytes) -> GroundplaneError:
    try:
        document = codec.decode(content)
    except GroundplaneError:
        document = None
    error = to_error(response.status_code, document)
    after = response.headers.get("retry-after", "")
    if after.isdigit():
        error.details["retry_after_s"] = float(after)
    return error


def _path(job_id: str, rest: str = "") -> str:
    return f"/v1/jobs/{_quoted(job_id)}{rest}"


def _quoted(part: str) -> str:
    return quote(part, safe="")
