"""All operations of the gateway over HTTP, but for `/mcp`. The one place where they are listed."""

from __future__ import annotations

from typing import Any

from groundplane.gateway.callbacks import STATUSES, TOKEN_HEADER, ActorApi
from groundplane.gateway.endpoints import Answer, Endpoint, Parameter
from groundplane.gateway.rest import DeadApi, Health, JobsApi
from groundplane.gateway.services import IDEMPOTENCY_KEY_MAX
from groundplane.gateway.settings import WAIT_S_MAX
from groundplane.gateway.sse import MEDIA_TYPE
from groundplane.jobs.port import JobState

_STATES = [state.value for state in JobState]
_CURSOR = Parameter(name="cursor", schema={"type": "string"}, description="`cursor` of the page before.")
_LIMIT = Parameter(name="limit", schema={"type": "integer", "minimum": 1, "maximum": 1000, "default": 50})
_IDEMPOTENCY = Parameter(
    name="Idempotency-Key",
    schema={"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_MAX},
    description="A repeat with the same key and arguments answers with the same job.",
)
_TRACE = Parameter(
    name="traceparent", schema={"type": "string"}, description="W3C trace context, carried into every envelope."
)
_LAST_EVENT = Parameter(
    name="Last-Event-ID", schema={"type": "integer", "minimum": 0}, description="Resume after this event."
)
_REASON = {"type": "object", "properties": {"reason": {"type": "string"}}, "additionalProperties": False}
_ARGUMENTS: dict[str, Any] = {"type": "object", "description": "By name, as the tool's input schema says."}
_JOB = Answer(description="The job.", schema="Job")
_OLD_JOB = Answer(description="The job in the older words, ours beside them.", schema="OlderJob")
_STREAM = Answer(description="Server-sent events: `status` first, then `update`s.", media_type=MEDIA_TYPE)
_REPORT: dict[str, Any] = {
    "actor": {"type": "string"},
    "hop": {"type": "integer", "minimum": 0},
    "envelope_id": {"type": "string", "description": "The branch that reports; the job's first envelope without it."},
    "message": {"type": "string"},
}


def endpoints(jobs: JobsApi, dead: DeadApi, actors: ActorApi, health: Health) -> list[Endpoint]:
    """The table, bound to its handlers."""
    return [
        *_jobs(jobs),
        *_job(jobs),
        *_controls(jobs),
        *_tools(jobs),
        *_dead(dead),
        *_actors(actors),
        *_reports(actors),
        *_health(health),
    ]


def _jobs(api: JobsApi) -> list[Endpoint]:
    return [
        Endpoint(
            method="POST",
            path="/v1/jobs",
            operation="createJob",
            summary="Start a durable job.",
            handler=api.create,
            headers=(_IDEMPOTENCY, _TRACE),
            body=_object(
                {
                    "tool": {"type": "string", "minLength": 1},
                    "arguments": _ARGUMENTS,
                    "timeout": {
                        "type": "number",
                        "exclusiveMinimum": 0,
                        "description": "Seconds; at most the tool's own.",
                    },
                },
                "tool",
            ),
            answers={202: Answer(description="Durable; it will run. Location names it.", schema="Job")},
            problems=(404, 409, 429),
        ),
        Endpoint(
            method="GET",
            path="/v1/jobs",
            operation="listJobs",
            summary="Jobs, newest first.",
            handler=api.list_jobs,
            query=(
                Parameter(
                    name="state", schema={"type": "array", "items": {"type": "string", "enum": _STATES}}, many=True
                ),
                Parameter(name="tool", schema={"type": "string"}),
                _CURSOR,
                _LIMIT,
            ),
            answers={200: Answer(description="A page; results are left out.", schema="JobPage")},
        ),
    ]


def _job(api: JobsApi) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/v1/jobs/{job_id}",
            operation="getJob",
            summary="One job.",
            handler=api.get,
            answers={200: _JOB},
            problems=(404,),
        ),
        Endpoint(
            method="GET",
            path="/v1/jobs/{job_id}/result",
            operation="getResult",
            summary="The outcome, waiting for it if asked.",
            handler=api.result,
            query=(Parameter(name="wait", schema={"type": "number", "minimum": 0, "maximum": WAIT_S_MAX}),),
            answers={
                200: Answer(description="The ended job.", schema="Job"),
                202: Answer(description="The job, which has not ended.", schema="Job"),
            },
            problems=(404,),
        ),
        Endpoint(
            method="GET",
            path="/v1/jobs/{job_id}/events",
            operation="followJob",
            summary="The job's events, live and resumable.",
            handler=api.events,
            headers=(_LAST_EVENT,),
            answers={200: _STREAM},
            problems=(404,),
        ),
    ]


def _controls(api: JobsApi) -> list[Endpoint]:
    actions = {"cancel": api.cancel, "pause": api.pause, "resume": api.resume}
    return [
        Endpoint(
            method="POST",
            path=f"/v1/jobs/{{job_id}}/{action}",
            operation=f"{action}Job",
            summary=(handler.__doc__ or "").strip(),
            handler=handler,
            body=_REASON,
            body_required=False,
            answers={200: _JOB},
            problems=(404, 409),
        )
        for action, handler in actions.items()
    ]


def _tools(api: JobsApi) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/v1/tools",
            operation="listTools",
            summary="All tools.",
            handler=api.tools,
            answers={200: Answer(description="The tools with their schemas.", schema="ToolList")},
            tag="tools",
        ),
        Endpoint(
            method="POST",
            path="/tools/call",
            operation="callTool",
            summary="Start a job; the text of the answer holds `ID: <uuid>`.",
            handler=api.tools_call,
            headers=(_IDEMPOTENCY, _TRACE),
            body=_object({"name": {"type": "string", "minLength": 1}, "arguments": _ARGUMENTS, "_meta": {}}, "name"),
            answers={200: Answer(description="A text with the id, and `job_id` beside it.", schema="ToolCallResult")},
            problems=(404, 409, 429),
            tag="tools",
        ),
    ]


def _dead(api: DeadApi) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/v1/dead",
            operation="listDead",
            summary="Dead letters, oldest first.",
            handler=api.list_dead,
            query=(Parameter(name="queue", schema={"type": "string"}), _CURSOR, _LIMIT),
            answers={200: Answer(description="A page, without payloads.", schema="DeadPage")},
            problems=(404,),
            tag="dead letters",
        ),
        Endpoint(
            method="GET",
            path="/v1/dead/{dead_id}",
            operation="getDead",
            summary="One dead letter, whole.",
            handler=api.get,
            answers={200: Answer(description="With headers and payload.", schema="DeadLetter")},
            problems=(404,),
            tag="dead letters",
        ),
        Endpoint(
            method="POST",
            path="/v1/dead/{dead_id}/redrive",
            operation="redriveDead",
            summary="Put it back, with another payload if the body has one.",
            handler=api.redrive,
            body=_object({"payload": {}}),
            body_required=False,
            answers={200: Answer(description="It is in its queue again, at attempt 1.", schema="Redriven")},
            problems=(404, 409),
            tag="dead letters",
        ),
    ]


def _actors(api: ActorApi) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/jobs/{job_id}",
            operation="getOlderJob",
            summary="One job in the older words.",
            handler=api.get,
            answers={200: _OLD_JOB},
            problems=(404,),
            tag="actors",
        ),
        Endpoint(
            method="GET",
            path="/jobs/{job_id}/stream",
            operation="followOlderJob",
            summary="The job's events in the older words.",
            handler=api.stream,
            headers=(_LAST_EVENT,),
            answers={200: _STREAM},
            problems=(404,),
            tag="actors",
        ),
        Endpoint(
            method="GET",
            path="/jobs/{job_id}/active",
            operation="isActive",
            summary="Whether work on the job makes sense.",
            handler=api.active,
            answers={200: Answer(description="It has not ended.", schema="Active")},
            problems=(404, 410),
            tag="actors",
        ),
    ]


def _reports(api: ActorApi) -> list[Endpoint]:
    heartbeat = {
        **_REPORT,
        "status": {"type": "string", "description": ", ".join(STATUSES)},
        "progress": {"type": "number", "minimum": 0, "maximum": 100},
        "error": {"type": ["string", "object"]},
    }
    progress = {**_REPORT, "progress": {"type": "number", "minimum": 0, "maximum": 100}}
    final = {**_REPORT, "status": {"type": "string"}, "result": {}, "error": {"type": ["string", "object"]}}
    reports = (
        ("heartbeat", api.heartbeat, _object(heartbeat, "status", strict=False)),
        ("progress", api.progress, _object(progress, "progress", strict=False)),
        ("final", api.final, _object(final, "status", strict=False)),
    )
    return [
        Endpoint(
            method="POST",
            path=f"/jobs/{{job_id}}/{name}",
            operation=f"report{name.capitalize()}",
            summary=(handler.__doc__ or "").strip(),
            handler=handler,
            headers=(Parameter(name=TOKEN_HEADER, schema={"type": "string"}, description="The job's own token."),),
            body=body,
            answers={200: _OLD_JOB},
            problems=(401, 403, 404, 410),
            tag="actors",
            token=True,
        )
        for name, handler, body in reports
    ]


def _health(api: Health) -> list[Endpoint]:
    ok = Answer(description="Fine.", schema="Health")
    paths = (("/livez", "isLive", api.live), ("/readyz", "isReady", api.ready), ("/healthz", "isHealthy", api.ready))
    return [
        Endpoint(
            method="GET",
            path=path,
            operation=operation,
            summary=(handler.__doc__ or "").strip(),
            handler=handler,
            answers={200: ok},
            tag="health",
        )
        for path, operation, handler in paths
    ]


def _object(properties: dict[str, Any], *required: str, strict: bool = True) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": not strict}
    return {**schema, "required": list(required)} if required else schema
