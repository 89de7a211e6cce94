"""MCP over the job store: every tool call is a durable job, in both revisions of the protocol on one endpoint.

Lane (i), revisions up to 2025-11-25: the result with progress notifications on a resumable stream. Lane (ii), revision
2026-07-28 without tasks: the same on the response's own stream. The job never depends on the handler: a client that
disconnects leaves it running unless the tool says `on_disconnect="cancel"`; an explicit `notifications/cancelled` ends
it. `_meta` takes `io.groundplane/idempotency_key` and `traceparent`; results name the job in `_meta` too.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.session import ServerSession
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolRequestParams, ListToolsResult, PaginatedRequestParams
from mcp_types import Tool as ListedTool

from groundplane._version import __version__
from groundplane.core.errors import ErrorRecord, GroundplaneError, NotFound
from groundplane.core.lifecycle import Lifecycle
from groundplane.gateway.mcp_sessions import SessionManager
from groundplane.gateway.services import Services
from groundplane.gateway.shapes import carryable, error_json
from groundplane.gateway.streams import is_final
from groundplane.gateway.tools import Reloaded, Tool
from groundplane.jobs.port import Job, JobState
from groundplane.telemetry.logs import get_logger

JOB_META = "io.groundplane/job_id"
IDEMPOTENCY_META = "io.groundplane/idempotency_key"
INSTRUCTIONS = (
    "Each tool call is a durable job. Its id is in the result's _meta under io.groundplane/job_id. Repeat a call with "
    "the same _meta io.groundplane/idempotency_key to get the same job."
)
_ENCODER = msgspec.json.Encoder(enc_hook=str)
_log = get_logger("gateway")

Context = ServerRequestContext[Any, Any]


class _Server(Server[Any]):
    """The SDK's server, saying in every revision that the list of tools may change."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> Any:
        options = notification_options or NotificationOptions(tools_changed=True)
        return super().create_initialization_options(options, experimental_capabilities, extensions)


class McpLane:
    """The MCP side of a gateway. `asgi` is served at `/mcp`; `running` holds its sessions."""

    def __init__(self, services: Services, lifecycle: Lifecycle, name: str) -> None:
        self._services = services
        self._lifecycle = lifecycle
        self._bus = InMemorySubscriptionBus()
        self._listen = ListenHandler(self._bus)
        self._told: dict[str, ServerSession] = {}
        self._listing: tuple[list[Tool], ListToolsResult] | None = None
        self.server: Server[Any] = _Server(
            name,
            version=__version__,
            instructions=INSTRUCTIONS,
            get_tool_input_schema=self._input_schema,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_subscriptions_listen=self._listen,
        )
        settings = services.settings
        self.manager = SessionManager(
            self.server, retry_interval=settings.retry_ms, max_request_body_size=settings.body_bytes_max
        )
        self.asgi = StreamableHTTPASGIApp(self.manager)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while open."""
        stop = self._services.tools.on_change(self._tools_changed)
        try:
            async with self.manager.run():
                yield
        finally:
            stop()

    def drain(self) -> None:
        """End standing streams. Calls that wait are ended by the feed."""
        self._listen.close()
        self.manager.drain()

    def _input_schema(self, name: str) -> Mapping[str, Any] | None:
        tool = self._services.tools.find(name)
        return tool.spec.input_schema if tool else None

    async def _list_tools(self, ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        if params is not None and params.cursor is not None:
            raise MCPError(INVALID_PARAMS, f"cursor: {params.cursor[:100]!r} is unknown; all tools come at once")
        session_id = _session_id(ctx)
        if session_id is not None:
            self._told[session_id] = ctx.session
        tools = list(self._services.tools)
        if self._listing is None or self._listing[0] != tools:
            self._listing = (tools, ListToolsResult(tools=[_listed(tool) for tool in tools]))
        return self._listing[1]

    async def _call_tool(self, ctx: Context, params: CallToolRequestParams) -> Any:
        """Everything is caught: the SDK would send an exception's text to older clients."""
        metrics = self._services.metrics
        try:
            return await self._run(ctx, params)
        except MCPError:
            metrics.called("unknown_tool")
            raise
        except GroundplaneError as error:
            metrics.called("invalid" if error.code == "invalid_argument" else "error")
            return _failed(_public(error.to_record()))
        except Exception as error:  # noqa: BLE001 - see above; the log has the cause
            metrics.called("error")
            _log.error("mcp_call_failed", tool=params.name, traceback="".join(traceback.format_exception(error)))
            return _failed(ErrorRecord(code="internal", message="the gateway failed; its log says why"))

    async def _run(self, ctx: Context, params: CallToolRequestParams) -> Any:
        services = self._services
        try:
            tool = services.tools.get(params.name)
        except NotFound as error:
            raise MCPError(INVALID_PARAMS, error.message) from error
        meta: Mapping[str, Any] = ctx.meta or {}
        created = await services.start(
            tool,
            tool.arguments(params.arguments),
            lane="mcp",
            idempotency_key=_text(meta.get(IDEMPOTENCY_META)) or _header(ctx, "idempotency-key"),
            traceparent=_text(meta.get("traceparent")) or _header(ctx, "traceparent"),
        )
        try:
            job = await self._follow(ctx, tool, created.job)
        except asyncio.CancelledError:
            self._abandoned(ctx, tool, created.job)
            raise
        services.metrics.called("ok" if job.state is JobState.SUCCEEDED else "error")
        return _outcome(job)

    async def _follow(self, ctx: Context, tool: Tool, job: Job) -> Job:
        """Wait for the job's end, telling its progress on the way. A drain ends the wait, not the job."""
        reported = -1.0
        told = tool.spec.progress and "progress_token" in (ctx.meta or {})
        with self._services.feed.subscribe(job, job.last_event_id, final=not told) as events:
            while not job.state.terminal and not events.ended:
                found = await events.batch()
                for event in found:
                    if is_final(event):
                        return await self._services.jobs.get(job.job_id)
                    progress = event.data.get("progress")
                    if isinstance(progress, int | float) and progress > reported:
                        reported = float(progress)
                        await ctx.session.report_progress(reported, 100.0, _text(event.data.get("message")) or None)
        return job

    def _abandoned(self, ctx: Context, tool: Tool, job: Job) -> None:
        """The caller is gone. The job goes on, unless the tool or the caller wants it ended."""
        asked = _cancel_requested(ctx)
        if self._services.draining or not (asked or tool.spec.on_disconnect == "cancel"):
            self._services.metrics.called("detached")
            return
        self._services.metrics.called("cancelled")
        why = "the client cancelled the call" if asked else "the client disconnected"
        self._lifecycle.spawn(self._cancel(job.job_id, why), name=f"cancel:{job.job_id}")

    async def _cancel(self, job_id: str, why: str) -> None:
        try:
            await self._services.jobs.cancel(job_id, why)
        except GroundplaneError as error:
            _log.info("cancel_not_applied", job_id=job_id, code=error.code, reason=error.reason)

    def _tools_changed(self, change: Reloaded) -> None:
        self._lifecycle.spawn(self._announce(), name="tools_changed")

    async def _announce(self) -> None:
        await self._bus.publish(ToolsListChanged())
        self._told = {key: one for key, one in self._told.items() if key == _STDIO or self.manager.is_open(key)}
        for session in list(self._told.values()):
            await session.send_tool_list_changed()


_STDIO = "stdio"
_MODERN_SINCE = "2026"


def _session_id(ctx: Context) -> str | None:
    """The older session that the request belongs to; None in the newer revision, which has none."""
    if ctx.protocol_version >= _MODERN_SINCE:
        return None
    return _header(ctx, "mcp-session-id") if ctx.request is not None else _STDIO


def _cancel_requested(ctx: Context) -> bool:
    """Whether the client sent `notifications/cancelled`, as opposed to going away."""
    event = getattr(getattr(ctx.session, "_request_outbound", None), "cancel_requested", None)
    return event is not None and event.is_set()


def _header(ctx: Context, name: str) -> str | None:
    value = ctx.request.headers.get(name) if ctx.request is not None else None
    return value if isinstance(value, str) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _listed(tool: Tool) -> ListedTool:
    spec = tool.spec
    return ListedTool(
        name=spec.name,
        description=spec.description or None,
        input_schema=spec.input_schema,
        output_schema=spec.output_schema,
        _meta={"io.groundplane/metadata": spec.metadata} if spec.metadata else None,
    )


def _outcome(job: Job) -> dict[str, Any]:
    """The result of a tool call for a job that ended, or that goes on while the gateway stops."""
    if job.state is JobState.SUCCEEDED:
        result = carryable(job.result)
        text = result if isinstance(result, str) else _ENCODER.encode(result).decode()
        structured = msgspec.to_builtins(result, builtin_types=(), enc_hook=str)
        return {
            "content": [{"type": "text", "text": text}],
            "structuredContent": structured if isinstance(structured, dict) else {"result": structured},
            "isError": False,
            "resultType": "complete",
            "_meta": {JOB_META: job.job_id},
        }
    if job.state.terminal:
        error = job.error or ErrorRecord(code="internal", message=job.message or f"the job ended as {job.state.value}")
        return _failed(error, job.job_id, job.state.value)
    message = f"the gateway is shutting down; the job goes on, read it later at /v1/jobs/{job.job_id}"
    return _failed(ErrorRecord(code="unavailable", message=message), job.job_id, job.state.value)


def _failed(error: ErrorRecord, job_id: str | None = None, state: str | None = None) -> dict[str, Any]:
    """An `isError` result: the message as text, the error as data."""
    shown = error_json(error)
    structured: dict[str, Any] = {"error": shown}
    if state is not None:
        structured["state"] = state
    return {
        "content": [{"type": "text", "text": error.message}],
        "structuredContent": msgspec.to_builtins(structured, enc_hook=repr),
        "isError": True,
        "resultType": "complete",
        "_meta": {JOB_META: job_id} if job_id else {},
    }


def _public(record: ErrorRecord) -> ErrorRecord:
    """Faults of the gateway itself are not told."""
    if record.code != "internal":
        return record
    return ErrorRecord(code="internal", message="the gateway failed; its log says why")
