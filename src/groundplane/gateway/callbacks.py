"""What actors of other makes call back with: `/jobs/{id}/active`, `heartbeat`, `progress`, `final`.

Every change carries the job's own token, from the header `groundplane-job-token` of its envelope; the store keeps the
token's SHA-256 alone. Reads speak the older words with ours beside them. Unknown members of a body are ignored here,
because handlers that were written for another gateway send their own.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from starlette.types import ASGIApp

from groundplane.core.errors import CODES, ErrorRecord, InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.gateway.access import resource_of_job
from groundplane.gateway.endpoints import Call
from groundplane.gateway.problems import HTTPProblem
from groundplane.gateway.rest import reply
from groundplane.gateway.services import Services
from groundplane.gateway.shapes import asya_json
from groundplane.gateway.streams import job_stream
from groundplane.jobs.port import Change, Finish, Job, Progress
from groundplane.jobs.progress import COMPLETED, PROCESSING, RECEIVED, inside_handler
from groundplane.jobs.words import ASYA
from groundplane.security.access import Action, Caller

TOKEN_HEADER = "x-groundplane-job-token"
WEIGHTS = {"picked_up": RECEIVED, "processing": PROCESSING, "completed": COMPLETED}
STATUSES = (*WEIGHTS, "error")
SUCCEEDED = ("succeeded", "Succeeded", "success", "completed")
FAILED = ("failed", "Failed", "error")
TEXT_CHARS_MAX = 10_000
NAME_CHARS_MAX = 200


class ActorApi:
    """`/jobs/{id}` and what lies under it."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def get(self, call: Call) -> ASGIApp:
        """The job in the older words, ours beside them."""
        return reply(asya_json(await self._job(call)))

    async def stream(self, call: Call) -> ASGIApp:
        """The job's events in the older words."""
        return await job_stream(self._services, call.request, await self._job(call), older_words=True)

    async def active(self, call: Call) -> ASGIApp:
        """200 while work on the job makes sense, 410 once it has ended. The job's own token is enough."""
        job = await (self._authorized(call, Action.CHECK_JOB) if self._has_token(call) else self._job(call))
        if job.state.terminal:
            raise _gone(job)
        return reply({"active": True, "job_id": job.job_id, "state": job.state.value, "status": ASYA[job.state]})

    async def heartbeat(self, call: Call) -> ASGIApp:
        """`picked_up`, `processing`, `completed` raise the progress; `error` fails the job."""
        job = await self._authorized(call)
        status = call.body.get("status")
        if status not in STATUSES:
            near = did_you_mean(str(status), STATUSES)
            raise HTTPProblem(
                400,
                f"status: {str(status)[:100]!r} is not one of {', '.join(STATUSES)}{near}",
                details={"field": "status"},
            )
        if status == "error":
            return await self._apply(job, _finish(job, call.body, failed=True))
        percent = call.body.get("progress")
        weight = inside_handler(percent) if percent is not None and status == "processing" else WEIGHTS[status]
        return await self._apply(job, _progress(job, call.body, weight, str(status)))

    async def progress(self, call: Call) -> ASGIApp:
        """How far the present hop is, in percent."""
        job = await self._authorized(call)
        return await self._apply(job, _progress(job, call.body, inside_handler(call.body["progress"]), "processing"))

    async def final(self, call: Call) -> ASGIApp:
        """The outcome: `succeeded` with a result, or `failed` with an error."""
        job = await self._authorized(call)
        status = call.body["status"]
        if status not in SUCCEEDED + FAILED:
            raise HTTPProblem(
                400, f"status: {status[:100]!r} is not 'succeeded' or 'failed'", details={"field": "status"}
            )
        return await self._apply(job, _finish(job, call.body, failed=status in FAILED))

    async def _apply(self, job: Job, change: Change) -> ASGIApp:
        if isinstance(change, Finish):
            return await self._finish(job, change)
        return await self._told(job, change)

    async def _finish(self, job: Job, change: Finish) -> ASGIApp:
        """The audit log has what ends a job; of what is on the way the job's own log tells."""
        holder, resource = _holder(job), resource_of_job(job.job_id)
        with self._services.access.changing(holder, Action.REPORT_JOB, resource) as told:
            told.detail = "succeeded" if change.error is None else "failed"
            return await self._told(job, change)

    async def _told(self, job: Job, change: Change) -> ASGIApp:
        (outcome,) = await self._services.jobs.apply(change)
        if outcome.state is not None and outcome.state.terminal and not outcome.applied:
            raise _gone(await self._services.jobs.get(job.job_id))
        return reply(asya_json(await self._services.jobs.get(job.job_id)))

    async def _job(self, call: Call) -> Job:
        return await self._services.job(call.caller, call.path("job_id"))

    def _has_token(self, call: Call) -> bool:
        """Whether the request carries a job's token rather than a caller's key."""
        return call.header(TOKEN_HEADER) is not None or call.stranger

    async def _authorized(self, call: Call, action: Action = Action.REPORT_JOB) -> Job:
        """The job, when the request carries its token; compared in constant time."""
        token = _token(call)
        if not token:
            raise HTTPProblem(
                401,
                f"token: is missing; send the envelope's groundplane-job-token as {TOKEN_HEADER} or as a bearer token",
                reason="bad_token",
                headers={"WWW-Authenticate": 'Bearer realm="groundplane job"'},
            )
        job = await self._services.jobs.get(call.path("job_id"))
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        resource = resource_of_job(job.job_id)
        if not hmac.compare_digest(digest, job.token_hash):
            self._services.access.record(None, action, "refused", resource=resource, detail="bad_token")
            raise HTTPProblem(403, "token: is not the token of this job", reason="bad_token")
        self._services.access.check(_holder(job), action, job=job.job_id, resource=resource)
        if job.state.terminal:
            raise _gone(job)
        return job


def _holder(job: Job) -> Caller:
    """Whoever has the job's own token."""
    return Caller(principal=resource_of_job(job.job_id), name=job.job_id, kind="job")


def _token(call: Call) -> str:
    direct = call.header(TOKEN_HEADER)
    if direct:
        return direct.strip()
    scheme, _, rest = (call.header("authorization") or "").partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else ""


def _gone(job: Job) -> HTTPProblem:
    return HTTPProblem(
        410,
        f"job: {job.job_id!r} has ended as {job.state.value}",
        reason="job_terminal",
        details={"state": job.state.value, "status": ASYA[job.state]},
    )


def _progress(job: Job, body: Any, weight: float, status: str) -> Progress:
    actor, hop = _place(job, body)
    return Progress(
        job_id=job.job_id,
        envelope_id=str(body.get("envelope_id") or job.job_id),
        hop=hop,
        hops=len(job.route),
        actor=actor,
        weight=weight,
        message=str(body.get("message") or "")[:TEXT_CHARS_MAX],
        status=status,
    )


def _place(job: Job, body: Any) -> tuple[str, int]:
    """Actor and hop that report: by `hop`, else by the actor's name, else where the job is now."""
    actor = str(body.get("actor") or "")
    hop = body.get("hop")
    if hop is None and actor:
        if actor not in job.route:
            near = did_you_mean(actor, job.route)
            raise InvalidArgument(f"actor: {actor[:100]!r} is not on the job's route{near}", details={"field": "actor"})
        hop = job.route.index(actor)
    elif hop is None:
        hop = min(job.steps_completed, len(job.route) - 1)
    if hop >= len(job.route):
        raise InvalidArgument(f"hop: {hop!r} is beyond the route of {len(job.route)}", details={"field": "hop"})
    return actor or job.route[hop], hop


def _finish(job: Job, body: Any, *, failed: bool) -> Finish:
    return Finish(
        job_id=job.job_id,
        envelope_id=str(body.get("envelope_id") or job.job_id),
        result=None if failed else body.get("result"),
        error=_error(body) if failed else None,
    )


def _error(body: Any) -> ErrorRecord:
    """The reported error: a text, or a record of which every member is optional."""
    given = body.get("error") or body.get("message") or "the actor reported an error"
    record = given if isinstance(given, dict) else {"message": given}
    code, details = record.get("code"), record.get("details")
    shown = dict(details) if isinstance(details, dict) else {}
    if body.get("actor"):
        shown.setdefault("actor", body["actor"])
    return ErrorRecord(
        code=code if code in CODES else "internal",
        message=str(record.get("message") or "the actor reported an error")[:TEXT_CHARS_MAX],
        reason=str(record.get("reason") or "processing_error")[:NAME_CHARS_MAX],
        details=shown,
        type=str(record.get("type") or "")[:NAME_CHARS_MAX],
        traceback=str(record.get("traceback") or "")[:TEXT_CHARS_MAX],
    )
