"""All operations of the gateway over HTTP, but for `/mcp`. The one place where they are listed."""

from __future__ import annotations

from typing import Any

from groundplane.gateway.callbacks import STATUSES, ActorApi
from groundplane.gateway.endpoints import Answer, Endpoint, Parameter
from groundplane.gateway.health_api import HealthApi
from groundplane.gateway.rest import DeadApi, JobsApi
from groundplane.gateway.services import IDEMPOTENCY_KEY_MAX
from groundplane.gateway.settings import WAIT_S_MAX
from groundplane.gateway.sse import MEDIA_TYPE
from groundplane.jobs.port import JobState
from groundplane.security.access import Action

_STATES = [state.value for state in JobState]
_CURSOR = Parameter(name="cursor", schema={"type": "string"}, description="`cursor` of the page before.")
_LIMIT = Parameter(name="limit", schema={"type": "integer", "minimum": 1, "maximum": 1000, "default": 50})
_IDEMPOTENCY = Parameter(
    name="Idempotency-Key",
    schema={"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_MAX},
    description="A repeat with the same key and arguments answers with the same job.",
)
_TRACE = Parameter(
    name="traceparent",
    schema={"type": "string"},
    description="W3C trace context, carried into every envelope; `tracestate` beside it too.",
)
_LAST_EVENT = Parameter(
    name="Last-Event-ID",
    schema={"type": "string", "pattern": "^[0-9]{0,18}$"},
    description="Resume after this event; nothing, or no header: from the beginning.",
)
_REASON = {"type": "object", "properties": {"reason": {"type": "string"}}, "additionalProperties": False}
_ARGUMENTS: dict[str, Any] = {"type": "object", "description": "By name, as the tool's input schema says."}
_JOB = Answer(description="The job.", schema="Job")
_OLD_JOB = Answer(description="The job in the older words, ours beside them.", schema="OlderJob")
_STREAM = Answer(description="Server-sent events: `status` first, then `update`s.", media_type=MEDIA_TYPE)
_REPORT: dict[str, Any] = {
    "actor": {"type": "string", "maxLength": 255},
    "hop": {"type": "integer", "minimum": 0},
    "envelope_id": {
        "type": "string",
        "maxLength": 255,
        "description": "The branch that reports; the first envelope of the job without it.",
    },
    "message": {"type": "string"},
}


def endpoints(jobs: JobsApi, dead: DeadApi, actors: ActorApi, health: HealthApi) -> list[Endpoint]:
    """The table, bound to its handlers."""
    return [
        *_jobs(jobs),
        *_job(jobs),
        *_controls(jobs),
        *_questions(jobs),
        *_tools(jobs),
        *_dead(dead),
        *_purging(dead),
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
            action=Action.CALL_TOOL,
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
            action=Action.LIST_JOBS,
            summary="Jobs, newest first.",
            handler=api.list_jobs,
            query=(
                Parameter(
                    name="state", schema={"type": "array", "items": {"type": "string", "enum": _STATES}}, many=True
                ),
                Parameter(name="tool", schema={"type": "string"}),
                Parameter(
                    name="owner",
                    schema={"type": "string"},
                    description="Whose jobs; those of others are seen with `read` alone.",
                ),
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
            action=Action.READ_JOB,
            summary="One job.",
            handler=api.get,
            answers={200: _JOB},
            problems=(404,),
        ),
        Endpoint(
            method="GET",
            path="/v1/jobs/{job_id}/result",
            operation="getResult",
            action=Action.READ_JOB,
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
            action=Action.READ_JOB,
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
            action=Action.CONTROL_JOB,
            summary=(handler.__doc__ or "").strip(),
            handler=handler,
            body=_REASON,
            body_required=False,
            answers={200: _JOB},
            problems=(404, 409),
        )
        for action, handler in actions.items()
    ]


def _questions(api: JobsApi) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/v1/jobs/{job_id}/questions",
            operation="listQuestions",
            action=Action.READ_JOB,
            summary="What the job has asked, with the answers.",
            handler=api.questions,
            answers={200: Answer(description="In the order in which they were asked.", schema="QuestionList")},
            problems=(404,),
        ),
        Endpoint(
            method="POST",
            path="/v1/jobs/{job_id}/questions/{question_id}/answer",
            operation="answerQuestion",
            action=Action.ANSWER_QUESTION,
            summary="Answer a question, once and for all; with the last answer the job goes on.",
            handler=api.answer,
            body=_object({"content": {}, "action": {"enum": ["accept", "decline", "cancel"], "default": "accept"}}),
            answers={200: _JOB},
            problems=(404, 409),
        ),
    ]


def _tools(api: JobsApi) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/v1/tools",
            operation="listTools",
            action=Action.LIST_TOOLS,
            summary="All tools.",
            handler=api.tools,
            answers={200: Answer(description="The tools with their schemas.", schema="ToolList")},
            tag="tools",
        ),
        Endpoint(
            method="POST",
            path="/tools/call",
            operation="callTool",
            action=Action.CALL_TOOL,
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
            action=Action.READ_DEAD,
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
            action=Action.READ_DEAD,
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
            action=Action.REDRIVE_DEAD,
            summary="Put it back, with another payload if the body has one.",
            handler=api.redrive,
            body=_object({"payload": {}}),
            body_required=False,
            answers={200: Answer(description="It is in its queue again, at attempt 1.", schema="Redriven")},
            problems=(404, 409),
            tag="dead letters",
        ),
    ]


def _purging(api: DeadApi) -> list[Endpoint]:
    return [
        Endpoint(
            method="DELETE",
            path="/v1/dead/{dead_id}",
            operation="purgeDead",
            action=Action.PURGE_DEAD,
            summary="Delete it for good.",
            handler=api.purge,
            answers={200: Answer(description="It is gone.", schema="Purged")},
            problems=(404,),
            tag="dead letters",
        ),
        Endpoint(
            method="POST",
            path="/v1/dead/purge",
            operation="purgeAllDead",
            action=Action.PURGE_DEAD,
            summary="Delete all of a queue for good, or at most the `limit` oldest.",
            handler=api.purge_all,
            body=_object(
                {
                    "queue": {"type": "string", "minLength": 1},
                    "limit": {"type": "integer", "minimum": 1, "maximum": 1_000_000_000},
                },
                "queue",
            ),
            answers={200: Answer(description="They are gone.", schema="Purged")},
            problems=(404,),
            tag="dead letters",
        ),
    ]


def _actors(api: ActorApi) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/jobs/{job_id}",
            operation="getOlderJob",
            action=Action.READ_JOB,
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
            action=Action.READ_JOB,
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
            action=Action.CHECK_JOB,
            summary="Whether work on the job makes sense.",
            handler=api.active,
            answers={200: Answer(description="It has not ended.", schema="Active")},
            problems=(401, 403, 404, 410),
            tag="actors",
            token=True,
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
            action=Action.REPORT_JOB,
            summary=(handler.__doc__ or "").strip(),
            handler=handler,
            body=body,
            answers={200: _OLD_JOB},
            problems=(401, 403, 404, 410),
            tag="actors",
            token=True,
        )
        for name, handler, body in reports
    ]


def _health(api: HealthApi) -> list[Endpoint]:
    ok = Answer(description="Fine.", schema="Health")
    flag = {"type": "string", "enum": ["", "true", "1"]}
    verbose = Parameter(name="verbose", schema=flag, description="How long each check took, and when.")
    stored = Parameter(name="stored", schema=flag, description="What was found within the last minute; asks nothing.")
    paths = (
        ("/livez", "isLive", api.live, ()),
        ("/startupz", "hasStarted", api.started, ()),
        ("/readyz", "isReady", api.ready, (verbose,)),
        ("/healthz", "isHealthy", api.healthy, (verbose, stored)),
    )
    return [
        Endpoint(
            method="GET",
            path=path,
            operation=operation,
            action=Action.PROBE,
            summary=(handler.__doc__ or "").strip(),
            handler=handler,
            answers={200: ok},
            query=query,
            problems=() if handler == api.live else (503,),
            tag="health",
        )
        for path, operation, handler, query in paths
    ]


def _object(properties: dict[str, Any], *required: str, strict: bool = True) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": not strict}
    return {**schema, "required": list(required)} if required else schema
