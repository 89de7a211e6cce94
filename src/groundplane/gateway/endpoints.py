"""The route table: what the gateway answers, and how a request is read. Routes and OpenAPI are made from it alike."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from groundplane.core.names import did_you_mean
from groundplane.core.secrets import MASK, hides
from groundplane.gateway import strict_json
from groundplane.gateway.access import admitted, caller_of, unauthenticated
from groundplane.gateway.parameters import ArgumentCheck
from groundplane.gateway.problems import HTTPProblem
from groundplane.security.access import Action, Caller

JSON = "application/json"
QUERY_SHOWN_MAX = 100
_KINDS = {"integer": "a whole number", "number": "a number"}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A query parameter or header. `many`: it may be repeated or hold a list with commas."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""
    many: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A possible answer: a name of a schema in the document, or None without a body."""

    description: str
    schema: str | None = None
    media_type: str = JSON


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One operation. `problems` are the statuses with a problem document beside those that every operation may have.

    `action` is what the operation asks for: it is decided before anything of the request is read, and with the owner
    once the job was read. `token`: the job's own token is taken, and decides.
    """

    method: str
    path: str
    operation: str
    summary: str
    action: Action
    handler: Callable[[Call], Awaitable[ASGIApp]]
    answers: Mapping[int, Answer]
    query: tuple[Parameter, ...] = ()
    headers: tuple[Parameter, ...] = ()
    body: Mapping[str, Any] | None = None
    body_required: bool = True
    problems: tuple[int, ...] = ()
    tag: str = "jobs"
    token: bool = False
    check: ArgumentCheck | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.body is not None:
            object.__setattr__(self, "check", ArgumentCheck("this request", self.body, root="body"))

    async def call(self, request: Request) -> ASGIApp:
        """Decide, read the request as declared and answer it."""
        if not self.token:
            admitted(request.scope, self.action, self.path)
        query = _read_query(request, self.query)
        body = await _read_body(request, self) if self.body is not None else {}
        return await self.handler(Call(request=request, query=query, body=body))


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request that was read: values of the query by name, and the body as an object."""

    request: Request
    query: Mapping[str, Any]
    body: Mapping[str, Any]

    @property
    def caller(self) -> Caller:
        """Who asks. Raises `permission_denied` (`unauthenticated`) for a stranger whom no decision kept out."""
        caller = caller_of(self.request.scope)
        if caller is None:
            raise self.request.scope["state"]["refusal"] or unauthenticated()
        return caller

    @property
    def stranger(self) -> bool:
        """Whether nobody knows who asks."""
        return caller_of(self.request.scope) is None

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    def header(self, name: str) -> str | None:
        """A header, or None."""
        value: str | None = self.request.headers.get(name)
        return value


async def _read_body(request: Request, endpoint: Endpoint) -> dict[str, Any]:
    data = await request.body()
    if not data and not endpoint.body_required:
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        shown = repr(kind[:QUERY_SHOWN_MAX]) if kind else "missing"
        raise HTTPProblem(415, f"content-type: {shown}; send {JSON}", headers={"Accept": JSON})
    assert endpoint.check is not None
    return endpoint.check(strict_json.parse(data))


def _read_query(request: Request, declared: tuple[Parameter, ...]) -> dict[str, Any]:
    known = {one.name: one for one in declared}
    given: dict[str, list[str]] = {}
    for name, text in request.query_params.multi_items():
        if name not in known:
            near = did_you_mean(name, known) or (f"; use {', '.join(known)}" if known else "; there are none")
            raise _bad_query(name, f"{_shown(name, text)} is for an unknown query parameter{near}")
        given.setdefault(name, []).append(text)
    values: dict[str, Any] = {}
    for name, texts in given.items():
        parameter = known[name]
        if parameter.many:
            values[name] = [_one(parameter, part) for text in texts for part in text.split(",")]
        elif len(texts) > 1:
            raise _bad_query(name, f"is there {len(texts)} times; give it once")
        else:
            values[name] = _one(parameter, texts[0])
    return values


def _one(parameter: Parameter, text: str) -> Any:
    schema, name = parameter.schema, parameter.name
    kind = schema.get("items", schema)
    if "enum" in kind and text not in kind["enum"]:
        options = [str(option) for option in kind["enum"]]
        near = did_you_mean(text, options)
        raise _bad_query(name, f"{_shown(name, text)} is not one of {', '.join(options)}{near}")
    if kind.get("type") not in ("integer", "number"):
        return text
    try:
        value = int(text) if kind["type"] == "integer" else float(text)
    except ValueError:
        value = math.nan
    low, high = kind.get("minimum", -math.inf), kind.get("maximum", math.inf)
    if not low <= value <= high:  # NaN is in no range
        raise _bad_query(name, f"{_shown(name, text)} is not {_KINDS[kind['type']]} from {low} to {high}")
    return value


def _shown(name: str, text: str) -> str:
    """The value as an error shows it. OAuth sends secrets in queries, and a link may have led them here."""
    return MASK if hides(name, text) else repr(text[:QUERY_SHOWN_MAX])


def _bad_query(name: str, message: str) -> HTTPProblem:
    return HTTPProblem(400, f"{name[:QUERY_SHOWN_MAX]}: {message}", details={"field": name[:QUERY_SHOWN_MAX]})
