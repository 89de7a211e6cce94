"""What the lanes of the gateway share: the ports, the tools, the feed, and the one way in which a job is started."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from starlette.datastructures import Headers

from groundplane.blobs import Blobs
from groundplane.core import codec
from groundplane.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from groundplane.core.trace_context import TraceContext
from groundplane.gateway.access import Access, resource_of_job
from groundplane.gateway.answers import checked_answer
from groundplane.gateway.catalogue import Catalogue
from groundplane.gateway.draining import Stopping
from groundplane.gateway.feed import Feed
from groundplane.gateway.limits import Limiter
from groundplane.gateway.metrics import GatewayMetrics
from groundplane.gateway.settings import GatewaySettings
from groundplane.gateway.tools import Tool, ToolTable
from groundplane.gateway.tracing import first_sent, started, told_of
from groundplane.jobs import Jobs
from groundplane.jobs.port import AnswerAction, Created, Job
from groundplane.mesh.claims import Claims
from groundplane.mesh.start import arguments_hash, start_job
from groundplane.queues import Queues
from groundplane.security.access import Action, Caller

if TYPE_CHECKING:
    from groundplane.gateway.mcp.session_records import SessionRecords

Secrets = Callable[[str], Awaitable[bytes]]

IDEMPOTENCY_KEY_MAX = 255
SECRET_BYTES = 32


def own_secrets() -> Secrets:
    """Random bytes by name that this process alone knows: where no store shares them between replicas."""
    made: dict[str, bytes] = {}

    async def secret(name: str) -> bytes:
        return made.setdefault(name, secrets.token_bytes(SECRET_BYTES))

    return secret


@dataclass(kw_only=True)
class Services:
    """One gateway's parts. `secret` gives the random bytes of a name that replicas share. Who may do what is decided by
    `access`; a job belongs to the principal that started it.
    """

    jobs: Jobs
    queues: Queues
    blobs: Blobs | None
    tools: ToolTable
    feed: Feed
    settings: GatewaySettings
    metrics: GatewayMetrics
    limiter: Limiter
    catalogue: Catalogue = field(default_factory=Catalogue)
    secret: Secrets = field(default_factory=own_secrets)
    access: Access = field(default_factory=Access)
    sessions: SessionRecords | None = None
    stopping: Stopping = field(default_factory=Stopping, init=False)

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken any more."""
        return self.stopping.refusing

    async def start(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        caller: Caller,
        lane: str,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
        job_id: str | None = None,
    ) -> Created:
        """Create the job durably with its first envelope, in the trace of the present request. `arguments` have been
        checked by `tool.arguments`.

        A `job_id` makes the call repeatable: the same work under it is the job that is there. Where other work has it,
        the job gets an id of its own.
        """
        resource = f"tool:{tool.spec.name}"
        self.access.check(caller, Action.CALL_TOOL, tool=tool.spec.name, resource=resource)
        if timeout_s is not None and timeout_s > tool.spec.timeout_s:
            raise InvalidArgument(
                f"timeout: {timeout_s!r} is longer than the tool's {tool.spec.timeout_s:g} seconds",
                details={"field": "timeout"},
            )
        try:
            with self.access.changing(caller, Action.CALL_TOOL, resource) as change:
                with first_sent(tool.spec.route[0]) as span:
                    trace = span.context
                    created = await self._create(caller, tool, arguments, idempotency_key, trace, timeout_s, job_id)
                    told_of(span, created)
                change.detail = resource_of_job(created.job.job_id)
        except ResourceExhausted as error:
            if error.reason == "live_jobs":
                self.metrics.refused("live_jobs")
            raise
        started(created.job)
        if created.created:
            self.metrics.accepted(tool.spec.name, lane)
        return created

    async def _create(
        self,
        caller: Caller,
        tool: Tool,
        arguments: dict[str, Any],
        idempotency_key: str | None,
        trace: TraceContext | None,
        timeout_s: float | None,
        job_id: str | None,
    ) -> Created:
        start = partial(
            start_job,
            self.jobs,
            tool.spec,
            arguments,
            owner=caller.principal,
            idempotency_key=check_idempotency_key(idempotency_key),
            headers=trace.headers() if trace is not None else {},
            timeout_s=timeout_s,
            claims=Claims(self.blobs) if self.blobs is not None else None,
            live_max=self.limiter.limits.live_jobs,
        )
        try:
            return await start(job_id=job_id)
        except AlreadyExists:
            assert job_id is not None  # ids that are made here are new
            found = await self.jobs.get(job_id)
            work = (caller.principal, arguments_hash(tool.spec.name, arguments))
            same = (found.owner, arguments_hash(found.tool, found.arguments)) == work
            return Created(found, False) if same else await start()

    async def job(self, caller: Caller, job_id: str, action: Action = Action.READ_JOB) -> Job:
        """The job as it is, with its open questions, where the caller may do `action` to it. Every lane looks up here
        the jobs that a request names. Raises `not_found` alike where there is none and where the caller may not know of
        it, `permission_denied`.
        """
        job = await self.jobs.get(job_id)
        self.access.check(caller, action, owner=job.owner, job=job_id, resource=resource_of_job(job_id))
        return job

    async def control(self, caller: Caller, job_id: str, action: Literal["cancel", "pause", "resume"], why: str) -> Job:
        """Cancel, pause or resume a job. Raises as `job` and as the store does."""
        await self.job(caller, job_id, Action.CONTROL_JOB)
        act = {"cancel": self.jobs.cancel, "pause": self.jobs.pause, "resume": self.jobs.resume}[action]
        with self.access.changing(caller, Action.CONTROL_JOB, resource_of_job(job_id)) as change:
            change.detail = action
            return await act(job_id, why)

    async def end(self, caller: Caller, job_id: str, why: str) -> None:
        """Cancel a job that has not ended, for a client that awaits no answer. Raises as `control`, but not because
        the job has ended.
        """
        job = await self.job(caller, job_id, Action.CONTROL_JOB)
        if not job.state.terminal:
            try:
                await self.control(caller, job_id, "cancel", why)
            except FailedPrecondition as error:
                if error.reason != "job_terminal":  # ended meanwhile: as good
                    raise

    async def answer(
        self, caller: Caller, job_id: str, question_id: str, content: Any = None, *, action: AnswerAction = "accept"
    ) -> Job:
        """Answer a question of a job, whichever lane the answer comes from: checked against what was asked, once and
        for all. The job as it is then; the same answer again is no error.

        Raises `NotFound` (`job_not_found`, `question_not_found`), `InvalidArgument` that names the field of the
        content, `FailedPrecondition` (`question_answered`, `job_terminal`).
        """
        await self.job(caller, job_id, Action.ANSWER_QUESTION)
        found = await self.jobs.questions(job_id, [question_id])
        if not found:
            raise NotFound(
                f"question_id: job {job_id!r} has no question {question_id!r}; look at the job's questions",
                reason="question_not_found",
            )
        checked = checked_answer(found[0], content, action)
        with self.access.changing(caller, Action.ANSWER_QUESTION, resource_of_job(job_id)) as change:
            change.detail = f"{action} {question_id}"
            return await self.jobs.answer(job_id, question_id, checked, action=action, by=caller.principal)

    async def whole(self, job: Job) -> Job:
        """The job with its result also where that was too large for the record, which then names the blob."""
        key = job.result.get("$blob") if isinstance(job.result, dict) else None
        if self.blobs is None or key is None or key != job.result_key:
            return job
        document = codec.decode(await self.blobs.get(key))
        return msgspec.structs.replace(job, result=document["payload"])


def idempotency_key_of(headers: Headers) -> str | None:
    """The key that a request's headers carry, or None. `invalid_argument` for several: nobody knows which is meant."""
    given = headers.getlist("idempotency-key")
    if len(given) > 1:
        raise InvalidArgument(
            f"idempotency-key: is there {len(given)} times; give it once", details={"field": "idempotency-key"}
        )
    return given[0] if given else None


def check_idempotency_key(key: str | None) -> str | None:
    """The key when it is 1 to 255 printable characters, or None."""
    if key is None:
        return None
    if not 1 <= len(key) <= IDEMPOTENCY_KEY_MAX or not key.isprintable():
        raise InvalidArgument(
            f"idempotency-key: {key[:100]!r} is not 1 to {IDEMPOTENCY_KEY_MAX} printable characters",
            details={"field": "idempotency-key"},
        )
    return key


__all__ = ["Services", "check_idempotency_key", "idempotency_key_of"]
