"""Lane (iv): jobs, dead letters and tools over plain HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from groundplane.core import codec
from groundplane.core.dead_letters import DeadLetter
from groundplane.core.envelope import Envelope
from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.gateway.endpoints import JSON, Call
from groundplane.gateway.problems import HTTPProblem
from groundplane.gateway.services import Services
from groundplane.gateway.shapes import dead_json, job_json, tool_json
from groundplane.gateway.streams import job_stream
from groundplane.jobs.port import Created, Job, JobQuery, JobState

LIMIT_DEFAULT = 50
_ENCODER = msgspec.json.Encoder(enc_hook=str)


def reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON that nobody caches."""
    return Response(_ENCODER.encode(body), status, {"Cache-Control": "no-store", **(headers or {})}, JSON)


class JobsApi:
    """`/v1/jobs`, `/v1/tools` and the compatible `/tools/call`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(self, call: Call) -> ASGIApp:
        """202 with the job, durable; a repeated idempotency key answers with the job that is there."""
        created = await self._start(call, call.body["tool"], call.body.get("timeout"), "rest")
        job = created.job
        replayed = {} if created.created else {"Idempotency-Replayed": "true"}
        return reply(job_json(job), 202, {"Location": f"/v1/jobs/{job.job_id}", **replayed})

    async def tools_call(self, call: Call) -> ASGIApp:
        """The older call: a text with the id, and the id for machines beside it."""
        job = (await self._start(call, call.body["name"], None, "tools_call")).job
        text = f"Job started successfully with ID: {job.job_id}"
        body = {
            "content": [{"type": "text", "text": text}],
            "isError": False,
            "job_id": job.job_id,
            "status_url": f"/jobs/{job.job_id}",
            "stream_url": f"/jobs/{job.job_id}/stream",
        }
        return reply(body, 200, {"Location": f"/v1/jobs/{job.job_id}"})

    async def _start(self, call: Call, name: str, timeout_s: float | None, lane: str) -> Created:
        tool = self._services.tools.get(name)
        return await self._services.start(
            tool,
            tool.arguments(call.body.get("arguments")),
            lane=lane,
            idempotency_key=call.header("idempotency-key"),
            traceparent=call.header("traceparent"),
            timeout_s=timeout_s,
        )

    async def list_jobs(self, call: Call) -> ASGIApp:
        """A page of jobs, newest first, without results."""
        query = JobQuery(
            states=[JobState(state) for state in call.query.get("state", [])],
            tool=call.query.get("tool"),
            owner=self._services.owner,
            cursor=call.query.get("cursor"),
            limit=call.query.get("limit", LIMIT_DEFAULT),
        )
        try:
            page = await self._services.jobs.list_jobs(query)
        except InvalidArgument as error:
            raise HTTPProblem(400, error.message, details=error.details) from error
        return reply({"jobs": [job_json(job) for job in page.items], "cursor": page.cursor})

    async def get(self, call: Call) -> ASGIApp:
        """The job."""
        return reply(job_json(await self._job(call)))

    async def result(self, call: Call) -> ASGIApp:
        """200 with the ended job, or 202 with the job while it runs, after at most `wait` seconds."""
        job = await self._services.feed.wait_finished(await self._job(call), call.query.get("wait", 0.0))
        if job.state.terminal:
            return reply(job_json(await self._services.whole(job)))
        return reply(job_json(job), 202, {"Retry-After": "1", "Location": f"/v1/jobs/{job.job_id}/result"})

    async def events(self, call: Call) -> ASGIApp:
        """The job's events, live."""
        return await job_stream(self._services, call.request, await self._job(call))

    async def cancel(self, call: Call) -> ASGIApp:
        """Ends the job as cancelled."""
        return await self._control(call, "cancel")

    async def pause(self, call: Call) -> ASGIApp:
        """Holds the job before its next hop; its deadline is frozen."""
        return await self._control(call, "pause")

    async def resume(self, call: Call) -> ASGIApp:
        """Lets a paused job go on."""
        return await self._control(call, "resume")

    async def _control(self, call: Call, action: str) -> ASGIApp:
        job_id, jobs = call.path("job_id"), self._services.jobs
        act = {"cancel": jobs.cancel, "pause": jobs.pause, "resume": jobs.resume}[action]
        await act(job_id, str(call.body.get("reason", "")))
        return reply(job_json(await jobs.get(job_id)))

    async def tools(self, call: Call) -> ASGIApp:
        """All tools with their schemas."""
        return reply({"tools": [tool_json(tool.spec) for tool in self._services.tools]})

    async def _job(self, call: Call) -> Job:
        return await self._services.jobs.get(call.path("job_id"))


class DeadApi:
    """`/v1/dead`: what is not tried again, and putting it back."""

    def __init__(self, services: Services) -> None:
        self._queues = services.queues

    async def list_dead(self, call: Call) -> ASGIApp:
        """A page of dead letters, oldest first, without payloads."""
        try:
            page = await self._queues.list_dead(
                call.query.get("queue"), cursor=call.query.get("cursor"), limit=call.query.get("limit", LIMIT_DEFAULT)
            )
        except InvalidArgument as error:
            raise HTTPProblem(400, error.message, details=error.details) from error
        return reply({"dead": [dead_json(letter) for letter in page.items], "cursor": page.cursor})

    async def get(self, call: Call) -> ASGIApp:
        """One dead letter with headers and payload."""
        return reply(dead_json(await self._queues.get_dead(call.path("dead_id")), whole=True))

    async def redrive(self, call: Call) -> ASGIApp:
        """Puts it back at attempt 1, with another payload where the body has one."""
        letter = await self._queues.get_dead(call.path("dead_id"))
        edited = _edited(letter, call.body["payload"]) if "payload" in call.body else None
        await self._queues.redrive(letter.id, payload=edited)
        return reply({"id": letter.id, "queue": letter.queue, "message_id": letter.message_id, "redriven": True})


def _edited(letter: DeadLetter, payload: Any) -> bytes:
    """The letter's envelope around another payload."""
    try:
        envelope = Envelope.from_bytes(letter.payload)
    except InvalidArgument as error:
        raise FailedPrecondition(
            f"dead letter: {letter.id!r} holds no envelope, so its payload cannot be edited here; redrive it unchanged"
        ) from error
    return codec.encode(msgspec.structs.replace(envelope, payload=payload, claim=None))


class Health:
    """`/livez`, `/readyz`, `/healthz`."""

    def __init__(self, services: Services, checks: dict[str, Any]) -> None:
        self._services = services
        self._checks = checks

    async def live(self, call: Call) -> ASGIApp:
        """The process answers."""
        return reply({"status": "ok"})

    async def ready(self, call: Call) -> ASGIApp:
        """Work flows: 200, or 503 with the reasons."""
        names = list(self._checks)
        found = await asyncio.gather(*(self._checks[name]() for name in names))
        failing = {name: reason for name, reason in zip(names, found, strict=True) if reason is not None}
        checks = {name: reason or "ok" for name, reason in zip(names, found, strict=True)}
        if failing:
            raise HTTPProblem(503, "gateway: is not ready: " + "; ".join(failing.values()), details={"checks": checks})
        return reply({"status": "ok", "checks": checks})
