"""What a request over MCP says of itself: its revision, its session, its headers, whether its client has left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcp.server.context import ServerRequestContext
from mcp_types import CLIENT_CAPABILITIES_META_KEY

from groundplane.gateway.access import caller_of, unauthenticated
from groundplane.security.access import LOCAL, Caller

if TYPE_CHECKING:
    from groundplane.gateway.mcp.resuming import Call

STDIO = "stdio"
TASKS = "io.modelcontextprotocol/tasks"
CALL = "groundplane.mcp_call"
"""Where the state of a request's scope holds its `Call`."""
_MODERN_SINCE = "2026"

Context = ServerRequestContext[Any, Any]


def is_modern(ctx: Context) -> bool:
    """Whether the request is of revision 2026-07-28 or later, which has no sessions."""
    return ctx.protocol_version >= _MODERN_SINCE


def capabilities(ctx: Context) -> Mapping[str, Any]:
    """What the client declares to be able to: with each request in the newer revision, at the start in the older."""
    if is_modern(ctx):
        declared = (ctx.meta or {}).get(CLIENT_CAPABILITIES_META_KEY)
        return declared if isinstance(declared, Mapping) else {}
    said = ctx.session.client_capabilities
    return said.model_dump(by_alias=True, exclude_none=True) if said is not None else {}


def takes_tasks(ctx: Context) -> bool:
    """Whether this request's client takes a task for an answer."""
    extensions = capabilities(ctx).get("extensions")
    return is_modern(ctx) and isinstance(extensions, Mapping) and TASKS in extensions


def session_id(ctx: Context) -> str | None:
    """The older session that the request belongs to; None in the newer revision."""
    if is_modern(ctx):
        return None
    return header(ctx, "mcp-session-id") if ctx.request is not None else STDIO


def call_of(ctx: Context) -> Call | None:
    """What the event ids of an older session's request are made from; None where there is no such session."""
    found: Call | None = (ctx.request.scope.get("state") or {}).get(CALL) if ctx.request is not None else None
    return found


def cancel_requested(ctx: Context) -> bool:
    """Whether the client sent `notifications/cancelled`, as opposed to going away."""
    event = getattr(getattr(ctx.session, "_request_outbound", None), "cancel_requested", None)
    return event is not None and event.is_set()


def header(ctx: Context, name: str) -> str | None:
    """A header of the HTTP request; None without it, and on standard input and output."""
    return text(ctx.request.headers.get(name)) if ctx.request is not None else None


def caller(ctx: Context) -> Caller:
    """Who sent the request: on standard input and output whoever started this process."""
    if ctx.request is None:
        return LOCAL
    found = caller_of(ctx.request.scope)
    if found is None:  # the gateway lets no stranger in here
        raise unauthenticated()
    return found


def text(value: Any) -> str | None:
    """The value where it is text."""
    return value if isinstance(value, str) else None
