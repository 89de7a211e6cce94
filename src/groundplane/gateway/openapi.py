"""The OpenAPI 3.1 document, made from the route table, so that it cannot say anything else than the routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from groundplane._version import __version__
from groundplane.gateway.endpoints import JSON, Answer, Endpoint, Parameter
from groundplane.gateway.problems import MEDIA_TYPE as PROBLEM_JSON
from groundplane.jobs.port import JobState

EVERYWHERE = (400, 403, 413, 415, 421, 422, 431, 500, 503)
"""Statuses with a problem document that any operation may answer with."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_MOMENT: dict[str, Any] = {"type": "string", "format": "date-time"}
_MAYBE_MOMENT: dict[str, Any] = {"type": ["string", "null"], "format": "date-time"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
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
            "securitySchemes": {"jobToken": {"type": "http", "scheme": "bearer", "description": "A job's own token."}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
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
    if endpoint.token:
        operation["security"] = [{"jobToken": []}, {}]
    return operation


def _parameter(parameter: Parameter, place: str) -> dict[str, Any]:
    described = {"description": parameter.description} if parameter.description else {}
    style = {"style": "form", "explode": True} if parameter.many else {}
    return {"name": parameter.name, "in": place, "schema": dict(parameter.schema), **described, **style}


def _answer(answer: Answer) -> dict[str, Any]:
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{answer.schema}"} if answer.schema else _TEXT
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
        "Redriven": _object({"id": _TEXT, "queue": _TEXT, "message_id": _TEXT, "redriven": {"const": True}}),
        "Health": {
            "type": "object",
            "required": ["status"],
            "properties": {
                "status": {"const": "ok"},
                "checks": {"type": "object", "additionalProperties": _TEXT},
            },
        },
        "Problem": _object(
            {
                "type": _TEXT,
                "title": _TEXT,
                "status": {"type": "integer"},
                "detail": _TEXT,
                "code": _TEXT,
                "reason": _TEXT,
                "details": {"type": "object"},
            }
        ),
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
