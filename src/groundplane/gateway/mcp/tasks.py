"""The extension `io.modelcontextprotocol/tasks` (SEP-2663) of revision 2026-07-28: a job is a task, its id the task's.

A handle is given out only for a job that is durable, so that any replica answers `tasks/get` at once. What happened to
the work is never told twice in different words: `completed` carries what `tools/call` would have answered, an error of
the tool included; `failed` is for work that never came to an answer.
"""

from __future__ import annotations

from typing import Any

from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    RequestParams,
)

from groundplane.core.clock import iso_z
from groundplane.core.errors import NotFound
from groundplane.gateway.mcp.context import TASKS, Context, caller, header, is_modern, takes_tasks
from groundplane.gateway.mcp.errors import MissingCapability, job_error
from groundplane.gateway.mcp.questions import Questions
from groundplane.gateway.mcp.results import outcome
from groundplane.gateway.services import Services
from groundplane.jobs.port import Job, JobState, Retention
from groundplane.jobs.words import MCP_TASK
from groundplane.security.access import Action

POLL_INTERVAL_MS = 500
TOOL_ERRORS = frozenset({"processing_error", "max_retries_exhausted", "non_retryable"})
"""Reasons of a failure that is the tool's own answer."""
_ACKNOWLEDGED: dict[str, Any] = {"resultType": "complete"}


class GetTask(RequestParams):
    """`tasks/get`."""

    task_id: str


class CancelTask(RequestParams):
    """`tasks/cancel`."""

    task_id: str


class UpdateTask(RequestParams):
    """`tasks/update`: answers to what the task asks."""

    task_id: str
    input_responses: dict[str, Any]


class Tasks:
    """Answers `tasks/get`, `tasks/update` and `tasks/cancel`."""

    def __init__(self, services: Services, questions: Questions) -> None:
        self._services = services
        self._questions = questions

    def register(self, server: Server[Any]) -> None:
        """Serve the methods and say so."""
        server.extensions[TASKS] = {}
        server.add_request_handler("tasks/get", GetTask, self._get)
        server.add_request_handler("tasks/update", UpdateTask, self._update)
        server.add_request_handler("tasks/cancel", CancelTask, self._cancel)

    async def read(self, ctx: Context, task_id: str, action: Action = Action.READ_JOB) -> Job:
        """The job of the task, where the caller may do `action` to it. Raises the protocol's error where the caller may
        not see one.
        """
        try:
            return await self._services.job(caller(ctx), task_id, action)
        except NotFound as error:
            raise MCPError(INVALID_PARAMS, f"taskId: {task_id[:100]!r} is no task") from error

    def detailed(self, ctx: Context, job: Job) -> dict[str, Any]:
        """The task as `tasks/get` and the notifications tell it."""
        shown = task(job, self._services.jobs.retention)
        status = shown["status"]
        if status == "input_required":
            shown["inputRequests"] = self._questions.requests(ctx, job)
        elif status == "completed":
            shown["result"] = outcome(job, self._services.tools.find(job.tool))
        elif status == "failed":
            error = job_error(job)
            shown["error"] = {"code": error.error.code, "message": error.error.message, "data": error.error.data}
        return shown

    async def _get(self, ctx: Context, params: GetTask) -> dict[str, Any]:
        _check(ctx, params.task_id)
        job = await self._services.whole(await self.read(ctx, params.task_id))
        return {"resultType": "complete", **self.detailed(ctx, job)}

    async def _update(self, ctx: Context, params: UpdateTask) -> dict[str, Any]:
        """Known keys are answered, others are passed over: answered before, or never asked."""
        _check(ctx, params.task_id)
        job = await self.read(ctx, params.task_id, Action.ANSWER_QUESTION)
        await self._questions.answer(caller(ctx), job, dict(params.input_responses))
        return dict(_ACKNOWLEDGED)

    async def _cancel(self, ctx: Context, params: CancelTask) -> dict[str, Any]:
        _check(ctx, params.task_id)
        job = await self.read(ctx, params.task_id, Action.CONTROL_JOB)
        await self._services.end(caller(ctx), job.job_id, "the client cancelled the task")
        return dict(_ACKNOWLEDGED)


def status_of(job: Job) -> str:
    """The task's status: `input_required` while something is asked, `completed` where the tool itself failed."""
    if job.state is JobState.PAUSED and not job.questions:
        return "working"
    if job.state is JobState.FAILED and job.error is not None and job.error.reason in TOOL_ERRORS:
        return "completed"
    return MCP_TASK[job.state]


def task(job: Job, kept: Retention) -> dict[str, Any]:
    """The fields that every form of a task has. It can be read for its time to live at least: retention counts from the
    job's end.
    """
    shown: dict[str, Any] = {
        "taskId": job.job_id,
        "status": status_of(job),
        "createdAt": iso_z(job.created_at),
        "lastUpdatedAt": iso_z(job.updated_at),
        "ttlMs": round(kept.jobs_s * 1000),
        "pollIntervalMs": POLL_INTERVAL_MS,
    }
    if job.message:
        shown["statusMessage"] = job.message
    return shown


def missing_tasks() -> MCPError:
    """The error for a client that does not take tasks."""
    return MissingCapability(f"the client does not declare the extension {TASKS}", extensions={TASKS: {}})


def handle(job: Job, kept: Retention) -> dict[str, Any]:
    """What `tools/call` answers with a task."""
    return {"resultType": "task", **task(job, kept)}


def _check(ctx: Context, task_id: str) -> None:
    """Refuse what the extension does not allow before anything is read."""
    if not is_modern(ctx):
        raise MCPError(METHOD_NOT_FOUND, "Method not found", ctx.method)
    if not takes_tasks(ctx):
        raise missing_tasks()
    if ctx.request is not None and (named := header(ctx, "mcp-name")) != task_id:
        said = "is missing" if named is None else f"is {named[:100]!r}"
        raise MCPError(HEADER_MISMATCH, f"mcp-name: {said}, and params.taskId is {task_id[:100]!r}")


__all__ = ["Tasks", "handle", "missing_tasks", "status_of", "task"]
