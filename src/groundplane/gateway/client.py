"""A client of the gateway's REST lane: start, follow without losing an event, read the result later.

    async with Client("http://127.0.0.1:8080") as client:
        print(await client.call("pipeline", {"value": 10}))

        job = await client.start("pipeline", {"value": 10})
        async for event in client.follow(job["job_id"]):
            print(event.data["progress"])
        job = await client.result(job["job_id"])

Errors are those of `groundplane.core.errors`, made from the gateway's problem details; an unreachable gateway is
`Unavailable`. It needs the extra `client`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any
from urllib.parse import quote

from groundplane.core.errors import (
    DeadlineExceeded,
    ErrorRecord,
    FailedPrecondition,
    GroundplaneError,
    InvalidArgument,
    from_record,
)
from groundplane.core.ids import new_id
from groundplane.gateway.client_events import TERMINAL, Event
from groundplane.gateway.client_http import READ_TIMEOUT_S, RETRIES_MAX, RETRY_AFTER_S_MAX, Request, Transport

_WAIT_S = 50.0


class Client:
    """One gateway. Calls may be made concurrently.

    Requests are made again by themselves after failures that pass, at most five times, as `Retry-After` says or with
    jittered backoff: all that cannot do harm twice (`start` has an idempotency key of its own), and `redrive` only
    where it is certain that it was not handled. `key` is an API key or an access token. A `url` that is none of HTTP's
    raises `InvalidArgument`. `timeout_s` bounds each request.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout_s: float = 30.0, headers: Mapping[str, str] | None = None
    ) -> None:
        if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
            raise InvalidArgument("key: it holds what no key or token has (spaces, line ends); look how it was read")
        credentials = {"Authorization": f"Bearer {key}"} if key is not None else {}
        self._transport = Transport(url, timeout_s=timeout_s, headers={**credentials, **(headers or {})})

    def __repr__(self) -> str:
        return f"<Client {self._transport!r}>"

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._transport.aclose()

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The result of a new job. What it failed with is raised (see `job_error`); its details name the job."""
        job = await self.start(tool, arguments, idempotency_key=idempotency_key, timeout_s=timeout_s)
        job = await self.result(job["job_id"])
        error = job_error(job)
        if error is not None:
            raise error
        return job["result"]

    async def start(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> dict[str, Any]:
        """The new job, durable. Repeated by itself on a lost connection, under one idempotency key. `traceparent`: the
        trace that it belongs to, by default that of the OpenTelemetry span which the caller is in, if any.
        """
        body: dict[str, Any] = {"tool": tool, "arguments": dict(arguments or {})}
        if timeout_s is not None:
            if not 0 < timeout_s < math.inf:
                raise InvalidArgument(f"timeout: {timeout_s!r} is not a positive number of seconds")
            body["timeout"] = timeout_s
        headers = {"Idempotency-Key": idempotency_key or new_id()}
        if traceparent is not None:
            headers["traceparent"] = traceparent
        return await self._transport.call(Request(method="POST", path="/v1/jobs", body=body, headers=headers))

    async def get(self, job_id: str) -> dict[str, Any]:
        """The job as it is."""
        return await self._transport.call(Request(method="GET", path=_job(job_id)))

    async def list_jobs(
        self,
        *,
        states: tuple[str, ...] = (),
        tool: str | None = None,
        owner: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> dict[str, Any]:
        """A page: `jobs` newest first, and the `cursor` of the next page or None."""
        state = ",".join(states) or None
        return await self._page("/v1/jobs", state=state, tool=tool, owner=owner, cursor=cursor, limit=limit)

    async def result(self, job_id: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The ended job, waiting for it without end or for `timeout_s`; then `DeadlineExceeded`, the job goes on."""
        loop = asyncio.get_running_loop()
        until = None if timeout_s is None else loop.time() + timeout_s
        while True:
            wait = _WAIT_S if until is None else max(0.0, min(_WAIT_S, until - loop.time()))
            query = {"wait": f"{wait:.3f}"}
            path = _job(job_id, "/result")
            job = await self._transport.call(
                Request(method="GET", path=path, query=query, read_timeout_s=wait + READ_TIMEOUT_S)
            )
            if job["state"] in TERMINAL:
                return job
            if until is not None and loop.time() >= until:
                raise DeadlineExceeded(
                    f"timeout: job {job_id!r} has not ended within {timeout_s!r} seconds", details={"job": job}
                )

    async def follow(self, job_id: str, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """The job's events after the id `after`, to the final one. A broken stream is resumed where it broke."""
        position, failures, retry_s, resumed = after, 0, 1.0, False
        while True:
            told_s = None
            try:
                async with aclosing(self._transport.stream(_job(job_id, "/events"), position)) as stream:
                    async for event, retry in stream:
                        failures = 0
                        retry_s = retry if retry is not None else retry_s
                        if event is None or (event.kind == "status" and resumed):
                            continue
                        resumed, position = True, max(position, event.id)
                        yield event
                        if event.final and event.kind == "update":
                            return
            except GroundplaneError as error:
                failures += 1
                if not error.retryable or failures > RETRIES_MAX:
                    raise
                told_s = error.details.get("retry_after_s")
            pause_s = told_s or retry_s * 2 ** max(0, failures - 1) * random.uniform(0.5, 1.0)
            await asyncio.sleep(min(RETRY_AFTER_S_MAX, pause_s))

    async def cancel(self, job_id: str, reason: str = "") -> dict[str, Any]:
        """End the job as cancelled. Raises `FailedPrecondition` when it has ended."""
        return await self._control(job_id, "cancel", reason, "cancelled")

    async def pause(self, job_id: str, reason: str = "") -> dict[str, Any]:
        """Hold the job before its next hop."""
        return await self._control(job_id, "pause", reason, "paused")

    async def resume(self, job_id: str, reason: str = "") -> dict[str, Any]:
        """Let a paused job go on."""
        return await self._control(job_id, "resume", reason, "pending", "running")

    async def questions(self, job_id: str) -> list[dict[str, Any]]:
        """What the job has asked, in that order, with the answers; those without one have the state `open`."""
        path = _job(job_id, "/questions")
        listed: list[dict[str, Any]] = (await self._transport.call(Request(method="GET", path=path)))["questions"]
        return listed

    async def answer(
        self, job_id: str, question_id: str, content: Any = None, *, action: str = "accept"
    ) -> dict[str, Any]:
        """Answer a question of a job, once and for all: `accept` with the content that it asks for, `decline` or
        `cancel` without. The job, which goes on with its last answer.

        Raises `NotFound`, `InvalidArgument` that names the field of the content, `FailedPrecondition`
        (`question_answered`, `job_terminal`); the same answer again is no error.
        """
        path = _job(job_id, f"/questions/{_quoted(question_id)}/answer")
        body = {"action": action} if content is None else {"action": action, "content": content}
        return await self._transport.call(Request(method="POST", path=path, body=body))

    async def tools(self) -> list[dict[str, Any]]:
        """All tools with their schemas."""
        listed: list[dict[str, Any]] = (await self._transport.call(Request(method="GET", path="/v1/tools")))["tools"]
        return listed

    async def dead(self, *, queue: str | None = None, cursor: str | None = None, limit: int = 50) -> dict[str, Any]:
        """A page: `dead` oldest first, and the `cursor` of the next page or None."""
        return await self._page("/v1/dead", queue=queue, cursor=cursor, limit=limit)

    async def redrive(self, dead_id: str, **edited: Any) -> dict[str, Any]:
        """Put a dead letter back; `payload=` replaces what it carried."""
        path = f"/v1/dead/{_quoted(dead_id)}/redrive"
        return await self._transport.call(Request(method="POST", path=path, body=edited, repeatable=False))

    async def purge(self, dead_id: str) -> dict[str, Any]:
        """Delete a dead letter for good."""
        path = f"/v1/dead/{_quoted(dead_id)}"
        return await self._transport.call(Request(method="DELETE", path=path, repeatable=False))

    async def _control(self, job_id: str, action: str, reason: str, *reached: str) -> dict[str, Any]:
        """A control that is found done when it is repeated was done by the first request, whose answer was lost."""
        request = Request(method="POST", path=_job(job_id, f"/{action}"), body={"reason": reason})
        try:
            return await self._transport.call(request)
        except FailedPrecondition as error:
            if not error.details.get("repeats") or error.details.get("state") not in reached:
                raise
        return await self.get(job_id)

    async def _page(self, path: str, *, limit: int, **filters: str | None) -> dict[str, Any]:
        query = {name: value for name, value in filters.items() if value is not None}
        return await self._transport.call(Request(method="GET", path=path, query={**query, "limit": str(limit)}))


def job_error(job: Mapping[str, Any]) -> GroundplaneError | None:
    """What a job that has ended failed with, with its code, reason and details; None where it succeeded.

    A cancelled one is `failed_precondition` (`job_cancelled`), one that ran out of time `deadline_exceeded`.
    """
    state, job_id = job["state"], job["job_id"]
    if state == "succeeded":
        return None
    error = job.get("error") or {}
    details = {**(error.get("details") or {}), "job_id": job_id, "state": state}
    if state == "cancelled":
        why = f": {job['message']}" if job.get("message") else ""
        return FailedPrecondition(f"job: {job_id!r} was cancelled{why}", reason="job_cancelled", details=details)
    if state == "timed_out" and not error:
        return DeadlineExceeded(f"job: {job_id!r} ran out of time", reason="deadline_exceeded", details=details)
    said = [str(details.get("type") or ""), str(error.get("message") or job.get("message") or "")]
    where = f" in actor {details['actor']!r}" if details.get("actor") else ""
    text = f"job: {job_id!r} {state}{where}: {': '.join(filter(None, said)) or 'no reason given'}"
    reason = str(error.get("reason") or details.get("reason") or "")
    return from_record(ErrorRecord(str(error.get("code", "internal")), text, reason, details))


def _job(job_id: str, rest: str = "") -> str:
    return f"/v1/jobs/{_quoted(job_id)}{rest}"


def _quoted(part: str) -> str:
    return quote(part, safe="")


__all__ = ["Client", "Event", "job_error"]
