"""The spans of MCP messages: `tools/call pipeline`, under the span that `_meta` names, else that of the HTTP headers.

Takes the place of the SDK's own middleware, which knows neither this process's tracer nor the headers of the request.
Conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/mcp/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult

from groundplane.core.trace_context import TRACEPARENT, TRACESTATE, TraceContext, carried, parse
from groundplane.gateway.mcp.context import STDIO, header, session_id
from groundplane.telemetry import logs, traces
from groundplane.telemetry import trace_names as names

_TOOL, _PROMPT, _RESOURCES = "tools/call", "prompts/get", "resources/"


class TracedMessages(ServerMiddleware[Any]):
    """Around every request and notification."""

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        sent = _of_headers(ctx)
        parent = carried(ctx.meta or {}) or sent
        target = _target(ctx)
        with traces.start_under(parent, names.message(ctx.method, target), names.SERVER) as span:
            trace = span.context.trace_id if span.context is not None else None
            with logs.about(trace_id=trace):
                if span.recording:
                    span.set(_attributes(ctx, target))
                    if sent is not None and parent is not sent:
                        span.link(sent)
                return await _told(span, ctx, call_next)


async def _told(span: traces.Span, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    try:
        result = await call_next(ctx)
    except MCPError as error:
        span.rename(ctx.method)  # the client may have named what is not there: names of spans are few
        span.set({names.RPC_STATUS: str(error.error.code)})
        span.fail(str(error.error.code))
        raise
    if ctx.method == _TOOL and _is_error(result):
        span.fail(names.TOOL_ERROR)
    return result


def _attributes(ctx: ServerRequestContext[Any, Any], target: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        names.MCP_METHOD: ctx.method,
        names.MCP_VERSION: ctx.protocol_version,
        names.MCP_SESSION: session if (session := session_id(ctx)) != STDIO else None,
        names.JSONRPC_ID: str(ctx.request_id) if ctx.request_id is not None else None,
        names.TRANSPORT: "tcp" if ctx.request is not None else "pipe",
        names.PROTOCOL_NAME: "http" if ctx.request is not None else None,
    }
    if ctx.method == _TOOL:
        found |= {names.GENAI_OPERATION: names.EXECUTE_TOOL, names.GENAI_TOOL: target or None}
    elif ctx.method == _PROMPT:
        found[names.GENAI_PROMPT] = target or None
    elif ctx.method.startswith(_RESOURCES):
        found[names.MCP_RESOURCE] = _text((ctx.params or {}).get("uri"))
    return found


def _target(ctx: ServerRequestContext[Any, Any]) -> str:
    """The tool or prompt that is named, bounded: the client wrote it, and it may be none of ours."""
    if ctx.method not in (_TOOL, _PROMPT):
        return ""
    return (_text((ctx.params or {}).get("name")) or "")[:128]


def _of_headers(ctx: ServerRequestContext[Any, Any]) -> TraceContext | None:
    traceparent = header(ctx, TRACEPARENT)
    return None if traceparent is None else parse(traceparent, header(ctx, TRACESTATE))


def _is_error(result: Any) -> bool:
    if isinstance(result, CallToolResult):
        return bool(result.is_error)
    return isinstance(result, Mapping) and result.get("isError") is True


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


__all__ = ["TracedMessages"]
