"""A request over MCP as a durable job: started, followed to its end or to a question, and left to itself when the
caller goes away.

Who follows a job is given its events, and `Telling` turns them into notifications; nothing but `attend` knows how they
travel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcp_types import (
    LOG_LEVEL_META_KEY,
    LoggingMessageNotification,
    LoggingMessageNotificationParams,
    ProgressNotification,
    ProgressNotificationParams,
    ProgressToken,
    ServerNotification,
)

from groundplane.core.errors import GroundplaneError
from groundplane.core.lifecycle import Lifecycle
from groundplane.gateway.mcp.context import (
    Context,
    call_of,
    caller,
    cancel_requested,
    is_modern,
    takes_tasks,
    text,
)
from groundplane.gateway.mcp.errors import MissingCapability
from groundplane.gateway.mcp.questions import Asking, Questions, RequestStates
from groundplane.gateway.mcp.tasks import handle, missing_tasks
from groundplane.gateway.services import Services, idempotency_key_of
from groundplane.gateway.streams import is_final
from groundplane.gateway.tools import Tool
from groundplane.jobs.port import Created, Job, JobEvent
from groundplane.mesh.start import arguments_hash
from groundplane.security.access import Action, Caller
from groundplane.telemetry.logs import get_logger

IDEMPOTENCY_META = "io.groundplane/idempotency_key"
LOG_LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
DEFAULT_LOG_LEVEL = "info"
STATE_SECRET = "mcp-request-state"
EVENT_META = "io.groundplane/event_id"
_log = get_logger("gateway")

Tell = Callable[[JobEvent], Awaitable[None]]
Asked = Callable[[Job], Awaitable[bool]]


class Telling:
    """What the client of one call is told on the way: progress that rises, where it gave a token for it, and what
    handlers log from the level `log_level` on (None: nothing).
    """

    def __init__(self, token: ProgressToken | None, *, log_level: str | None = None, reported: float = -1.0) -> None:
        self._token = token
        self._reported = reported
        self._levels = LOG_LEVELS[LOG_LEVELS.index(log_level) :] if log_level in LOG_LEVELS else ()

    def notifications(self, event: JobEvent) -> list[ServerNotification]:
        """What the event is to the client; nothing where it tells nothing new."""
        if event.kind == "log":
            return self._logged(event)
        progress = event.data.get("progress")
        if self._token is None or not isinstance(progress, int | float) or progress <= self._reported:
            return []
        self._reported = float(progress)
        message = text(event.data.get("message")) or None
        params = ProgressNotificationParams(
            progress_token=self._token,
            progress=self._reported,
            total=100.0,
            message=message,
            _meta={EVENT_META: event.id},
        )
        return [ProgressNotification(params=params)]

    def _logged(self, event: JobEvent) -> list[ServerNotification]:
        level = event.data.get("level")
        if level not in self._levels:
            return []
        more = event.data.get("data")
        message = event.data.get("message", "")
        data = {"message": message, **more} if isinstance(more, Mapping) and more else message
        logger = text(event.data.get("actor"))
        params = LoggingMessageNotificationParams(level=level, data=data, logger=logger, _meta={EVENT_META: event.id})
        return [LoggingMessageNotification(params=params)]


class Calls:
    """Starts and follows the jobs of one gateway's MCP side."""

    def __init__(self, services: Services, lifecycle: Lifecycle, questions: Questions) -> None:
        self._services = services
        self._lifecycle = lifecycle
        self._questions = questions
        self._states: RequestStates | None = None
        self.log_level = DEFAULT_LOG_LEVEL
        """What the one client on standard input set with `logging/setLevel`."""

    async def perform(self, ctx: Context, tool: Tool, arguments: dict[str, Any], params: Any) -> Job | dict[str, Any]:
        """The job of the request, ended; or what the client gets meanwhile: a task, or what it is asked.

        `params` are the request's; those of the newer revision may continue a job (`requestState`, `inputResponses`).
        """
        takes = takes_tasks(ctx) and tool.spec.task != "never"
        if tool.spec.task == "required" and not takes:
            raise missing_tasks()
        given = (ctx.params or {}).get("inputResponses") if is_modern(ctx) else None
        responses: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
        state = getattr(params, "request_state", None) if is_modern(ctx) else None
        call = f"{ctx.method} {arguments_hash(tool.spec.name, arguments)}"
        if state is None:
            job = (await self.start(ctx, tool, arguments)).job
        else:
            job = await self._continued(ctx, state, call, responses)
            if takes and not job.questions and not job.state.terminal:
                return handle(job, self._services.jobs.retention)
        found = await self.attend(ctx, tool, job, responses, wait_s=tool.spec.task_after_s if takes else None)
        if found.state.terminal:
            return await self._services.whole(found)
        requests = self._questions.requests(ctx, found, named=True) if is_modern(ctx) else {}
        if requests:
            sealed = await self._seal(ctx, found, call)
            return {"resultType": "input_required", "inputRequests": requests, "requestState": sealed}
        if is_modern(ctx) and not takes and self._services.draining:  # to be repeated at once, where somebody serves
            return {"resultType": "input_required", "requestState": await self._seal(ctx, found, call)}
        return handle(found, self._services.jobs.retention) if takes else found

    async def start(self, ctx: Context, tool: Tool, arguments: dict[str, Any]) -> Created:
        """The job of a call, durable. `_meta` or the headers carry its idempotency key."""
        meta: Mapping[str, Any] = ctx.meta or {}
        call = call_of(ctx)
        of_header = idempotency_key_of(ctx.request.headers) if ctx.request is not None else None
        created = await self._services.start(
            tool,
            arguments,
            caller=caller(ctx),
            lane="mcp",
            job_id=call.job_id if call is not None and call.lasting else None,
            idempotency_key=text(meta.get(IDEMPOTENCY_META)) or of_header,
        )
        if call is not None:
            call.job_id = created.job.job_id
        return created

    async def attend(
        self, ctx: Context, tool: Tool, job: Job, responses: dict[str, Any], *, wait_s: float | None = None
    ) -> Job:
        """The job when it has ended; in the newer revision also when it asks what `responses` do not answer, and after
        `wait_s` seconds. The session is told its progress and log. A caller that goes leaves the job as it wanted.
        """
        if wait_s == 0:
            return job
        telling, asking = self.telling(ctx, tool), Asking(self._questions, ctx)
        call = call_of(ctx)
        comes_back = ctx.close_sse_stream is not None and call is not None and call.lasting

        async def tell(event: JobEvent) -> None:
            for one in telling.notifications(event):
                await ctx.session.send_notification(one, related_request_id=ctx.request_id)

        async def asked(waiting: Job) -> bool:
            waiting = await self._questions.answer(caller(ctx), waiting, responses)
            if not waiting.questions:
                return False
            if wait_s is None:  # else it becomes a task, which others may answer
                self._questions.check(ctx, waiting)
            if not is_modern(ctx):
                asking.put(waiting)
            return is_modern(ctx)

        limit = asyncio.timeout(wait_s)
        try:
            async with asking, limit:
                job = await self.follow(job, tell, asked=asked, resumable=comes_back)
        except TimeoutError:
            if not limit.expired():
                raise
        except asyncio.CancelledError:
            self.leave(ctx, tool, job)
            raise
        except MissingCapability:
            self._end(caller(ctx), job.job_id, "the client cannot answer what the tool asks")
            raise
        if not job.state.terminal:
            job = await self._services.jobs.get(job.job_id)
        if not job.state.terminal and comes_back and ctx.close_sse_stream is not None:
            await ctx.close_sse_stream()  # what is returned here is not sent
        return job

    def telling(self, ctx: Context, tool: Tool) -> Telling:
        """What this request's client wants to be told."""
        meta: Mapping[str, Any] = ctx.meta or {}
        if is_modern(ctx):
            level = text(meta.get(LOG_LEVEL_META_KEY))
        else:
            call = call_of(ctx)
            level = call.log_level if call is not None else self.log_level
        return Telling(meta.get("progress_token") if tool.spec.progress else None, log_level=level)

    async def follow(
        self,
        job: Job,
        tell: Tell | None = None,
        *,
        asked: Asked | None = None,
        after: int | None = None,
        resumable: bool = False,
    ) -> Job:
        """The job once it has ended, with each of its events after the id `after` (from now on, by default) given to
        `tell`. While it has open questions `asked` is given it, and says whether to stop following. A drain ends the
        wait, not the job: at once where the client can resume it elsewhere, as does the limit of a stream; else at the
        end of the grace.
        """
        position = job.last_event_id if after is None else after
        limit_s = self._services.settings.stream_s if resumable else None
        with self._services.feed.subscribe(job, position, patient=not resumable, limit_s=limit_s) as events:
            if job.questions and asked is not None and await asked(job):
                return job
            while not job.state.terminal and not events.ended:
                waits = False
                for event in await events.batch():
                    if is_final(event):
                        return await self._services.jobs.get(job.job_id)
                    waits = waits or event.kind == "asked"
                    if tell is not None:
                        await tell(event)
                if waits and asked is not None:
                    job = await self._services.jobs.get(job.job_id)
                    if job.questions and await asked(job):
                        return job
        return job

    def leave(self, ctx: Context, tool: Tool, job: Job) -> None:
        """The caller is gone. The job goes on, unless the tool or the caller wants it ended."""
        asked = cancel_requested(ctx)
        if self._services.draining or not (asked or tool.spec.on_disconnect == "cancel"):
            self._services.metrics.called("detached")
            return
        self._services.metrics.called("cancelled")
        call = call_of(ctx)
        if asked and call is not None and call.names_job:
            return  # the manager of sessions ends it, on whichever replica the notification came in
        self._end(caller(ctx), job.job_id, "the client cancelled the call" if asked else "the client disconnected")

    def _end(self, caller: Caller, job_id: str, why: str) -> None:
        self._lifecycle.spawn(self._cancel(caller, job_id, why), name=f"cancel:{job_id}")

    async def _cancel(self, caller: Caller, job_id: str, why: str) -> None:
        try:
            await self._services.end(caller, job_id, why)
        except GroundplaneError as error:
            _log.info("cancel_not_applied", job_id=job_id, code=error.code, reason=error.reason)

    async def _continued(self, ctx: Context, state: str, call: str, responses: dict[str, Any]) -> Job:
        """The job that a repeated call goes on with, its questions answered as far as `responses` go."""
        job_id = (await self._sealer()).open(state, call, caller(ctx).principal)
        job = await self._services.job(caller(ctx), job_id, Action.ANSWER_QUESTION)
        return await self._questions.answer(caller(ctx), job, responses)

    async def _seal(self, ctx: Context, job: Job, call: str) -> str:
        return (await self._sealer()).seal(job.job_id, call, caller(ctx).principal)

    async def _sealer(self) -> RequestStates:
        if self._states is None:
            self._states = RequestStates(await self._services.secret(STATE_SECRET))
        return self._states
