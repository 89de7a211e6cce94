"""The OpenAPI 3.1 document, made from the route table, so that it cannot say anything else than the routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, get_args

from groundplane._version import __version__
from groundplane.gateway.callbacks import TOKEN_HEADER
from groundplane.gateway.endpoints import JSON, Answer, Endpoint, Parameter
from groundplane.gateway.problems import MEDIA_TYPE as PROBLEM_JSON
from groundplane.gateway.settings import GatewaySettings
from groundplane.gateway.sse import MEDIA_TYPE as EVENT_STREAM
from groundplane.jobs.port import AnswerAction, JobState, QuestionKind, QuestionState
from groundplane.security.access import RULES
from groundplane.services.port import Status
from groundplane.services.summary import Word

EVERYWHERE = (400, 401, 403, 408, 413, 414, 415, 421, 422, 429, 431, 500, 503)
"""Statuses with a problem document that any operation may answer with."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_MOMENT: dict[str, Any] = {"type": "string", "format": "date-time"}
_MAYBE_MOMENT: dict[str, Any] = {"type": ["string", "null"], "format": "date-time"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}


def document(endpoints: Iterable[Endpoint], settings: GatewaySettings) -> dict[str, Any]:
    """The whole document, with the credentials that a gateway of these settings takes."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, settings)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Groundplane gateway",
            "version": __version__,
            "description": "Start durable jobs, follow them live, read their results later. MCP is served at /mcp.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "responses": {"Problem": _problem_response()},
            "securitySchemes": _security_schemes(settings),
        },
    }


def _operation(endpoint: Endpoint, settings: GatewaySettings) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.operation,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "parameters": [
            *(
                {"name": n, "in": "path", "required": True, "schema": _TEXT}
                for n in _PLACEHOLDER.findall(endpoint.path)
            ),
            *(_parameter(one, "query") for one in endpoint.query),
            *(_parameter(one, "header") for one in endpoint.headers),
        ],
        "responses": {
            **{str(status): _answer(answer) for status, answer in endpoint.answers.items()},
            **{
                str(status): {"$ref": "#/components/responses/Problem"}
                for status in sorted({*EVERYWHERE, *endpoint.problems} - set(endpoint.answers))
            },
        },
    }
    if endpoint.body is not None:
        content = {JSON: {"schema": endpoint.body}}
        operation["requestBody"] = {"required": endpoint.body_required, "content": content}
    operation["security"] = _security(endpoint, settings)
    return operation


def _security(endpoint: Endpoint, settings: GatewaySettings) -> list[dict[str, list[str]]]:
    """What an operation takes; an empty object where it takes a stranger too."""
    rule = RULES[endpoint.action]
    if rule.anyone:
        return [{}]
    schemes: list[dict[str, list[str]]] = [{"jobToken": []}, {"jobBearer": []}] if endpoint.token else []
    if not (rule.job and not rule.own):
        schemes += [{"apiKey": []}] if settings.takes_keys else []
        schemes += [{"oauth": [rule.scope] if rule.scope and not rule.own else []}] if settings.takes_tokens else []
        schemes += [{}] if settings.auth == "none" else []
    return schemes


def _security_schemes(settings: GatewaySettings) -> dict[str, Any]:
    what = "A job's own token."
    found: dict[str, Any] = {
        "jobToken": {"type": "apiKey", "in": "header", "name": TOKEN_HEADER, "description": what},
        "jobBearer": {"type": "http", "scheme": "bearer", "description": what},
    }
    if settings.takes_keys:
        what = "An API key, `gp_<id>_<secret>`; `groundplane keys create` makes one."
        found["apiKey"] = {"type": "http", "scheme": "bearer", "description": what}
    if settings.takes_tokens:
        what = f"A JWT of {settings.issuer} for this gateway."
        found["oauth"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": what}
    return found


def _parameter(parameter: Parameter, place: str) -> dict[str, Any]:
    described = {"description": parameter.description} if parameter.description else {}
    style = {"style": "form", "explode": True} if parameter.many else {}
    return {"name": parameter.name, "in": place, "schema": dict(parameter.schema), **described, **style}


def _answer(answer: Answer) -> dict[str, Any]:
    name = "StreamEvent" if answer.media_type == EVENT_STREAM else answer.schema
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{name}"} if name else _TEXT
    return {"description": answer.description, "content": {answer.media_type: {"schema": schema}}}


def _problem_response() -> dict[str, Any]:
    return {
        "description": "A problem (RFC 9457).",
        "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def schemas() -> dict[str, Any]:
    """The shapes of answers by name."""
    job = _object(_job_members())
    dead = {
        "id": _TEXT,
        "queue": _TEXT,
        "message_id": _TEXT,
        "reason": _TEXT,
        "error": _or_null("Error"),
        "attempts": _COUNT,
        "redrives": _COUNT,
        "enqueued_at": _MOMENT,
        "died_at": _MOMENT,
        "trace": _TEXT,
        "job_id": _MAYBE_TEXT,
    }
    whole = {**dead, "headers": {"type": "object"}, "payload": {}, "payload_base64": _MAYBE_TEXT}
    return {
        "Job": job,
        "Error": _object({"code": _TEXT, "message": _TEXT, "details": {"type": "object"}}),
        "Question": _object(_question_members()),
        "QuestionList": _object({"questions": _list("Question")}),
        "StreamEvent": _stream_event(),
        "JobPage": _object({"jobs": _list("Job"), "cursor": _MAYBE_TEXT}),
        "OlderJob": {**_object(_older_members()), "additionalProperties": True},
        "Active": _object({"active": {"const": True}, "job_id": _TEXT, "state": _state(), "status": _TEXT}),
        "ToolCallResult": _object(
            {
                "content": {"type": "array", "items": _object({"type": {"const": "text"}, "text": _TEXT})},
                "isError": {"const": False},
                "job_id": _TEXT,
                "status_url": _TEXT,
                "stream_url": _TEXT,
            }
        ),
        "Tool": _object(_tool_members()),
        "ToolList": _object({"tools": _list("Tool")}),
        "DeadLetter": _object(whole),
        "DeadPage": _object({"dead": {"type": "array", "items": _object(dead)}, "cursor": _MAYBE_TEXT}),
        **_security_schemas(),
        **_services_schemas(),
        "Redriven": _object({"id": _TEXT, "queue": _TEXT, "message_id": _TEXT, "redriven": {"const": True}}),
        "Purged": _object({"queue": _TEXT, "purged": _COUNT}),
        "Health": {
            "type": "object",
            "required": ["status"],
            "properties": {
                "status": {"const": "ok"},
                "role": _TEXT,
                "started": {"type": "boolean"},
                "checks": {"type": "object", "additionalProperties": {"type": ["string", "object"]}},
            },
        },
        "Problem": _problem(),
    }


def _security_schemas() -> dict[str, Any]:
    return {
        "ProtectedResource": _object(
            {
                "resource": _TEXT,
                "resource_name": _TEXT,
                "authorization_servers": {"type": "array", "items": _TEXT},
                "bearer_methods_supported": {"type": "array", "items": _TEXT},
                "scopes_supported": {"type": "array", "items": _TEXT},
            }
        ),
        "AuditEntry": _object(_audit_members()),
        "AuditPage": _object({"entries": _list("AuditEntry"), "before": {"type": ["integer", "null"]}}),
    }


def _services_schemas() -> dict[str, Any]:
    status = {"enum": [one.value for one in Status]}
    counts = {"type": "object", "additionalProperties": _COUNT}
    metadata = {"type": "object"}
    revision = {"type": "integer", "minimum": 1}
    definition = dict.fromkeys(("serviceName", "owner", "description", "version"), _TEXT)
    instance = {
        **dict.fromkeys(("serviceName", "instanceId", "version"), _TEXT),
        "status": status,
        "lastHeartbeat": _MAYBE_TEXT,
        "stickyActiveGroup": _MAYBE_TEXT,
        "stickyActiveStatus": {"enum": ["ACTIVE", "STANDBY", None]},
        "metadata": metadata,
        "registrationId": _TEXT,
        "schemaVersion": _COUNT,
    }
    health = {
        "serviceName": _TEXT,
        "health": {"enum": list(get_args(Word))},
        **dict.fromkeys(("instances", "healthy"), _COUNT),
        "byStatus": counts,
        "versions": {"type": "array", "items": _TEXT},
    }
    whole = {**dict.fromkeys(("services", "instances", "healthy"), _COUNT), "byHealth": counts, "byStatus": counts}
    removed = _object({"serviceName": _TEXT, "instanceId": _TEXT, "idleS": {"type": "number"}})
    leader = {
        "name": _TEXT,
        **dict.fromkeys(("leader", "since"), _MAYBE_TEXT),
        "term": {"type": ["integer", "null"]},
        "leaseS": {"type": ["number", "null"]},
    }
    subscription = {**dict.fromkeys(("consumer", "pattern"), _TEXT), **dict.fromkeys(("waiting", "inFlight"), _COUNT)}
    times = {"createdAt": _TEXT, "updatedAt": _TEXT}
    return {
        "Service": _object({**definition, "metadata": metadata, **times, "revision": revision}),
        "ServicePage": _object({"services": _list("Service"), "cursor": _MAYBE_TEXT}),
        "ServiceDeleted": _object({"serviceName": _TEXT, "deleted": {"const": True}}),
        "Instance": _object(instance),
        "ServiceHealth": _object(health),
        "InstanceList": _object(
            {"health": {"$ref": "#/components/schemas/ServiceHealth"}, "instances": _list("Instance")}
        ),
        "AllInstances": _object({"instances": _list("Instance")}),
        "ServicesSummary": _object({**whole, "details": _list("ServiceHealth")}),
        "LeaderList": _object({"leaders": {"type": "array", "items": _object(leader)}}),
        "SubscriptionList": _object({"subscriptions": {"type": "array", "items": _object(subscription)}}),
        "InstancesCleaned": _object({"removed": {"type": "array", "items": removed}, "staleS": {"type": "number"}}),
    }


def _audit_members() -> dict[str, Any]:
    texts = ("principal", "caller", "kind", "key_id", "action", "resource", "detail")
    return {
        "entry_id": _COUNT,
        "at": _MOMENT,
        **dict.fromkeys(texts, _TEXT),
        "outcome": {"enum": ["done", "refused", "failed"]},
        "count": {"type": "integer", "minimum": 1},
    }


def _problem() -> dict[str, Any]:
    texts = dict.fromkeys(("type", "title", "detail", "code", "reason"), _TEXT)
    return _object({**texts, "status": {"type": "integer"}, "details": {"type": "object"}})


def _stream_event() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "Each event of the stream.",
        "properties": {
            "id": {"type": "string", "pattern": "^[0-9]+$", "description": "For `Last-Event-ID`."},
            "event": {"enum": ["status", "update"]},
            "data": {"type": "string", "contentMediaType": "application/json"},
            "retry": {"type": "integer", "description": "Milliseconds before coming back."},
        },
    }


def _job_members() -> dict[str, Any]:
    return {
        "job_id": _TEXT,
        "tool": _TEXT,
        "state": _state(),
        "progress": {"type": "number", "minimum": 0, "maximum": 100},
        "message": _TEXT,
        "actor": _TEXT,
        "steps_completed": _COUNT,
        "total_steps": _COUNT,
        "result": {"description": "Any JSON value; null before success."},
        "error": _or_null("Error"),
        "created_at": _MOMENT,
        "updated_at": _MOMENT,
        "finished_at": _MAYBE_MOMENT,
        "deadline_at": _MAYBE_MOMENT,
        "questions": {**_list("Question"), "description": "Those that wait for an answer; a list of jobs has none."},
    }


def _question_members() -> dict[str, Any]:
    return {
        "question_id": _TEXT,
        "kind": {"enum": list(get_args(QuestionKind))},
        "state": {"enum": list(get_args(QuestionState))},
        "message": _TEXT,
        "schema": {"type": ["object", "null"], "description": "What an accepted answer must fit (JSON Schema)."},
        "params": {"type": "object", "description": "What a question to the client asks for, in MCP's words."},
        "actor": _TEXT,
        "asked_at": _MOMENT,
        "answered_at": _MAYBE_MOMENT,
        "action": {"enum": [*get_args(AnswerAction), None]},
        "content": {"description": "The answer, once there is one."},
        "answered_by": _MAYBE_TEXT,
    }


def _older_members() -> dict[str, Any]:
    return {
        **_job_members(),
        "id": _TEXT,
        "status": {"enum": ["Pending", "Running", "Succeeded", "Failed", "Unknown"]},
        "progress_percent": {"type": "number"},
        "current_actor": _TEXT,
        "actors_completed": _COUNT,
        "total_actors": _COUNT,
        "error": _TEXT,
        "error_details": _or_null("Error"),
    }


def _tool_members() -> dict[str, Any]:
    return {
        "name": _TEXT,
        "description": _TEXT,
        "input_schema": {"type": "object"},
        "output_schema": {"type": ["object", "null"]},
        "route": {"type": "array", "items": _TEXT},
        "timeout": {"type": "number"},
        "progress": {"type": "boolean"},
        "on_disconnect": {"enum": ["cancel", "detach"]},
        "metadata": {"type": "object"},
    }


def _state() -> dict[str, Any]:
    return {"enum": [state.value for state in JobState]}


def _or_null(name: str) -> dict[str, Any]:
    return {"anyOf": [{"$ref": f"#/components/schemas/{name}"}, {"type": "null"}]}


def _list(name: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
