"""Lane (iv): jobs, dead letters and tools over plain HTTP."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from groundplane.core import codec
from groundplane.core.dead_letters import DeadLetter
from groundplane.core.envelope import Envelope
from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.gateway.access import lists_tool
from groundplane.gateway.endpoints import JSON, Call
from groundplane.gateway.problems import HTTPProblem
from groundplane.gateway.services import Services, idempotency_key_of
from groundplane.gateway.shapes import dead_json, job_json, question_json, tool_json
from groundplane.gateway.streams import job_stream
from groundplane.gateway.tracing import about
from groundplane.jobs.port import Created, Job, JobQuery, JobState
from groundplane.security.access import Action, sees_owner

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
        self._services.access.check(call.caller, Action.CALL_TOOL, tool=name, resource=f"tool:{name}")
        tool = self._services.tools.get(name)
        return await self._services.start(
            tool,
            tool.arguments(call.body.get("arguments")),
            caller=call.caller,
            lane=lane,
            idempotency_key=idempotency_key_of(call.request.headers),
            timeout_s=timeout_s,
        )

    async def list_jobs(self, call: Call) -> ASGIApp:
        """A page of jobs, newest first, without results: the caller's own, and everybody's for who may read all. For
        others than its owner a job is not there, so that a page of somebody else's is empty.
        """
        seen, wanted = sees_owner(call.caller), call.query.get("owner")
        if seen is not None and wanted not in (None, seen):
            return reply({"jobs": [], "cursor": None})
        owner = wanted if seen is None else seen
        query = JobQuery(
            states=[JobState(state) for state in call.query.get("state", [])],
            tool=call.query.get("tool"),
            owner=owner,
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

    async def _control(self, call: Call, action: Literal["cancel", "pause", "resume"]) -> ASGIApp:
        why = str(call.body.get("reason", ""))
        return reply(job_json(await self._services.control(call.caller, call.path("job_id"), action, why)))

    async def questions(self, call: Call) -> ASGIApp:
        """The questions of the job, answered ones too."""
        found = await self._services.jobs.questions((await self._job(call)).job_id)
        return reply({"questions": [question_json(question) for question in found]})

    async def answer(self, call: Call) -> ASGIApp:
        """Answers a question, once and for all; with the last answer the job goes on."""
        job = await self._job(call)
        content, action = call.body.get("content"), call.body["action"]
        return reply(
            job_json(
                await self._services.answer(call.caller, job.job_id, call.path("question_id"), content, action=action)
            )
        )

    async def tools(self, call: Call) -> ASGIApp:
        """The tools that the caller may call, with their schemas; all of them for who may read all."""
        tools = [tool.spec for tool in self._services.tools if lists_tool(call.caller, tool.spec.name)]
        return reply({"tools": [tool_json(spec) for spec in tools]})

    async def _job(self, call: Call) -> Job:
        job = await self._services.job(call.caller, call.path("job_id"))
        about(job.trace)
        return job


class DeadApi:
    """`/v1/dead`: what is not tried again, putting it back, and deleting it."""

    def __init__(self, services: Services) -> None:
        self._queues = services.queues
        self._access = services.access

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
        with self._access.changing(call.caller, Action.REDRIVE_DEAD, f"dead:{call.path('dead_id')}") as change:
            letter = await self._queues.get_dead(call.path("dead_id"))
            about(letter.trace)
            edited = _edited(letter, call.body["payload"]) if "payload" in call.body else None
            change.detail = f"queue {letter.queue}" + ("" if edited is None else ", with another payload")
            await self._queues.redrive(letter.id, payload=edited)
        return reply({"id": letter.id, "queue": letter.queue, "message_id": letter.message_id, "redriven": True})

    async def purge(self, call: Call) -> ASGIApp:
        """Deletes it for good."""
        with self._access.changing(call.caller, Action.PURGE_DEAD, f"dead:{call.path('dead_id')}") as change:
            letter = await self._queues.get_dead(call.path("dead_id"))
            change.detail = f"queue {letter.queue}"
            purged = await self._queues.purge(letter.id)
        return reply({"queue": letter.queue, "purged": purged})

    async def purge_all(self, call: Call) -> ASGIApp:
        """Deletes all of a queue for good, or the oldest of them."""
        queue = call.body["queue"]
        with self._access.changing(call.caller, Action.PURGE_DEAD, f"queue:{queue}") as change:
            purged = await self._queues.purge_all(queue, limit=call.body.get("limit"))
            change.detail = f"{purged} dead letters"
        return reply({"queue": queue, "purged": purged})


def _edited(letter: DeadLetter, payload: Any) -> bytes:
    """The letter's envelope around another payload."""
    try:
        envelope = Envelope.from_bytes(letter.payload)
    except InvalidArgument as error:
        raise FailedPrecondition(
            f"dead letter: {letter.id!r} holds no envelope, so its payload cannot be edited here; redrive it unchanged"
        ) from error
    return codec.encode(msgspec.structs.replace(envelope, payload=payload, claim=None))
