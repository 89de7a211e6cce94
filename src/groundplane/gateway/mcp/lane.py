"""MCP over the job store: every tool call is a durable job, in both revisions of the protocol on one endpoint.

Lane (i), revisions up to 2025-11-25: the result with progress notifications on a resumable stream. Lane (ii), revision
2026-07-28 without tasks: the same on the response's own stream. Lane (iii), the same revision with the tasks extension:
a handle for the job. Prompts, resources and completions are answered by jobs alike. The job never depends on the
handler: a client that disconnects leaves it running unless the tool says `on_disconnect="cancel"`; an explicit
`notifications/cancelled` ends it. `_meta` takes `io.groundplane/idempotency_key` and `traceparent`; results name the
job in `_meta` too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from mcp.server.caching import CacheHint
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.session import ServerSession
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    EmptyResult,
    ListToolsResult,
    PaginatedRequestParams,
    PromptsCapability,
    ResourcesCapability,
    ServerCapabilities,
    SetLevelRequestParams,
    ToolAnnotations,
    ToolsCapability,
)
from mcp_types import Tool as ListedTool
from mcp_types.methods import CacheableMethod

from groundplane._version import __version__
from groundplane.core.errors import ErrorRecord, GroundplaneError
from groundplane.core.lifecycle import Lifecycle
from groundplane.core.names import did_you_mean
from groundplane.gateway.access import lists_tool, told
from groundplane.gateway.mcp.access import check_served
from groundplane.gateway.mcp.calls import Calls
from groundplane.gateway.mcp.context import STDIO, Context, caller, is_modern, session_id
from groundplane.gateway.mcp.errors import Boundary, MissingCapability, fault, public
from groundplane.gateway.mcp.listening import Listening
from groundplane.gateway.mcp.offers import Offers, refuse_cursor
from groundplane.gateway.mcp.questions import Questions
from groundplane.gateway.mcp.results import failed, outcome
from groundplane.gateway.mcp.sessions import SessionManager
from groundplane.gateway.mcp.subscriptions import Subscriptions
from groundplane.gateway.mcp.tasks import Tasks
from groundplane.gateway.mcp.tracing import TracedMessages
from groundplane.gateway.services import Services
from groundplane.gateway.tools import Reloaded, Tool, ToolTable
from groundplane.jobs.port import Job, JobState

LIST_TTL_MS = 60_000
LISTS: tuple[CacheableMethod, ...] = ("tools/list", "prompts/list", "resources/list", "resources/templates/list")
INSTRUCTIONS = (
    "Each tool call is a durable job. Its id is in the result's _meta under io.groundplane/job_id. Repeat a call with "
    "the same _meta io.groundplane/idempotency_key to get the same job."
)


class _Server(Server[Any]):
    """The SDK's server, advertising what works and nothing else: of prompts and resources an App's list never changes
    while it runs; resources can be subscribed to where a tool says what it changes.
    """

    subscribes = False

    def get_capabilities(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
        *,
        protocol_version: str | None = None,
    ) -> ServerCapabilities:
        found = super().get_capabilities(
            notification_options, experimental_capabilities, extensions, protocol_version=protocol_version
        )
        found.tools = ToolsCapability(list_changed=True)
        if found.prompts is not None:
            found.prompts = PromptsCapability(list_changed=False)
        if found.resources is not None:
            found.resources = ResourcesCapability(list_changed=False, subscribe=self.subscribes)
        if protocol_version is None:
            found.extensions = None  # of the newer revision all of them
        return found


class McpLane:
    """The MCP side of a gateway. `asgi` is served at `/mcp`; `running` holds its sessions."""

    def __init__(self, services: Services, lifecycle: Lifecycle, name: str) -> None:
        self._services = services
        self._lifecycle = lifecycle
        questions = Questions(services)
        self._calls = Calls(services, lifecycle, questions)
        tasks = Tasks(services, questions)
        offers = Offers(services, self._calls)
        self._updates = {tool.spec.name: tool.spec.updates for tool in services.tools if tool.spec.updates}
        self._listening = Listening(services, tasks, resources=bool(self._updates))
        self._stdio: ServerSession | None = None
        self._listing: tuple[list[Tool], ListToolsResult] | None = None
        self.server = _Server(
            name,
            version=__version__,
            instructions=INSTRUCTIONS,
            cache_hints={method: CacheHint(ttl_ms=LIST_TTL_MS) for method in LISTS},
            get_tool_input_schema=self._input_schema,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_subscriptions_listen=self._listening,
        )
        self.server.middleware[:] = [TracedMessages(), Boundary()]  # the first instead of the SDK's own
        offers.register(self.server)
        tasks.register(self.server)
        self.server.add_request_handler("logging/setLevel", SetLevelRequestParams, self._set_level)
        settings = services.settings
        self.manager = SessionManager(
            self.server,
            services,
            lifecycle,
            services.sessions,
            forgotten=lambda session: self.subscriptions.forget(session),  # noqa: PLW0108 - made below
            retry_interval=settings.retry_ms,
            max_request_body_size=settings.body_bytes_max,
        )
        self.subscriptions = Subscriptions(services, offers, self._listening, self.manager, self._updates)
        if self._updates:
            self.server.subscribes = True
            self.subscriptions.register(self.server)
        check_served([*self.server._request_handlers, *self.server._notification_handlers])
        self.asgi = StreamableHTTPASGIApp(self.manager)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while open."""
        stop = self._services.tools.on_change(self._tools_changed)
        try:
            async with self.manager.run(), self.subscriptions.running():
                yield
        finally:
            stop()

    def drain(self) -> None:
        """End standing streams. Calls that wait are ended by the feed."""
        self._listening.drain()
        self.manager.drain()

    def _input_schema(self, name: str) -> Mapping[str, Any] | None:
        tool = self._services.tools.find(name)
        return tool.spec.input_schema if tool else None

    async def _list_tools(self, ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        if params is not None:
            refuse_cursor(params)
        if session_id(ctx) == STDIO:
            self._stdio = ctx.session
        tools = list(self._services.tools)
        if self._listing is None or self._listing[0] != tools:
            self._listing = (tools, ListToolsResult(tools=[_listed(tool) for tool in tools]))
        found = self._listing[1].tools
        return ListToolsResult(tools=[one for one in found if lists_tool(caller(ctx), one.name)])

    async def _call_tool(self, ctx: Context, params: CallToolRequestParams) -> Any:
        """Everything is caught: the SDK would send an exception's text to older clients."""
        metrics = self._services.metrics
        try:
            return await self._run(ctx, params)
        except MCPError as error:
            metrics.called("unsupported" if isinstance(error, MissingCapability) else "unknown_tool")
            if isinstance(error, MissingCapability) and not is_modern(ctx):
                return failed(ErrorRecord(code="unsupported", message=error.error.message))
            raise
        except GroundplaneError as error:
            metrics.called("invalid" if error.code == "invalid_argument" else "error")
            return failed(public(told(caller(ctx), error).to_record()))
        except Exception as error:  # noqa: BLE001 - see above; the log has the cause
            metrics.called("error")
            return failed(fault(error, "tools/call"))

    async def _run(self, ctx: Context, params: CallToolRequestParams) -> dict[str, Any]:
        tool = self._services.tools.find(params.name)
        if tool is None:
            raise unknown_tool(self._services.tools, params.name)
        found = await self._calls.perform(ctx, tool, tool.arguments(params.arguments), params)
        if not isinstance(found, Job):
            self._services.metrics.called(str(found["resultType"]))
            return found
        self._services.metrics.called("ok" if found.state is JobState.SUCCEEDED else "error")
        return outcome(found, tool)

    async def _set_level(self, ctx: Context, params: SetLevelRequestParams) -> EmptyResult:
        """From now on the session is told what handlers log from this level on."""
        session = session_id(ctx)
        if session == STDIO:
            self._calls.log_level = params.level
        elif session is not None:
            await self.manager.set_log_level(session, params.level)
        return EmptyResult()

    def _tools_changed(self, change: Reloaded) -> None:
        self._lifecycle.spawn(self._announce(), name="tools_changed")

    async def _announce(self) -> None:
        """Tell every client that listens here: each replica is told to reload, and tells its own."""
        self._listening.tools_changed()
        told = [one.notify("notifications/tools/list_changed", None) for one in self.manager.connections()]
        if self._stdio is not None:
            told.append(self._stdio.send_tool_list_changed())
        await asyncio.gather(*told)


def unknown_tool(tools: ToolTable, name: str) -> MCPError:
    """The error for a name that no tool has, with the nearest."""
    near = did_you_mean(name, [tool.spec.name for tool in tools])
    return MCPError(INVALID_PARAMS, f"tool: {name[:200]!r} does not exist{near}")


def _listed(tool: Tool) -> ListedTool:
    spec = tool.spec
    return ListedTool(
        name=spec.name,
        title=spec.title or None,
        description=spec.description or None,
        input_schema=spec.input_schema,
        output_schema=spec.output_schema,
        annotations=ToolAnnotations.model_validate(spec.annotations) if spec.annotations else None,
        _meta={"io.groundplane/metadata": spec.metadata} if spec.metadata else None,
    )
