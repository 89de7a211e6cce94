"""The MCP side of a gateway, loaded behind it: the SDK takes longer to import than everything else together.

The gateway answers at once; a request to `/mcp` that comes before the SDK is loaded waits for it.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from groundplane.core.lifecycle import Lifecycle
from groundplane.gateway.access import admitted
from groundplane.gateway.limits import principal_of
from groundplane.gateway.mcp.access import check_body
from groundplane.gateway.mcp.body import take
from groundplane.gateway.services import Services
from groundplane.security.access import Action
from groundplane.telemetry.logs import get_logger

if TYPE_CHECKING:
    from groundplane.gateway.mcp.lane import McpLane

if importlib.util.find_spec("mcp") is None:  # said when the gateway is imported, not at the first request
    raise ModuleNotFoundError("No module named 'mcp'", name="mcp")

_log = get_logger("gateway")


class LoadingLane:
    """An ASGI application that becomes the lane. `load` begins; so does the first request."""

    def __init__(self, services: Services, lifecycle: Lifecycle, name: str) -> None:
        self._services = services
        self._lifecycle = lifecycle
        self._name = name
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        self._lane: McpLane | None = None
        self._failure: Exception | None = None

    @property
    def serving(self) -> bool:
        """Whether the lane is loaded and its sessions are held."""
        return self._lane is not None

    @property
    def failure(self) -> Exception | None:
        """Why it could not be loaded."""
        return self._failure

    def load(self) -> None:
        """Begin to load, in a thread."""
        self._wanted.set()

    async def loaded(self) -> None:
        """Return when it is loaded, or cannot be."""
        await self._settled.wait()

    def create(self) -> McpLane:
        """A lane of this gateway, now; for standard input and output."""
        from groundplane.gateway.mcp.lane import McpLane

        return McpLane(self._services, self._lifecycle, self._name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, when it is loaded."""
        access, caller = self._services.access, admitted(scope, Action.CONNECT, "mcp")
        self.load()
        await self._settled.wait()
        if self._lane is None:
            raise RuntimeError("the MCP side could not be loaded, or has ended") from self._failure
        refusal = None
        if scope["type"] == "http" and scope["method"] == "POST":
            receive, refusal = await take(scope, receive, lambda body: check_body(access, caller, body))
        with ExitStack() as held:
            if _stands(scope):
                held.enter_context(self._services.limiter.stream(principal_of(scope)))
            await (refusal or self._lane.asgi)(scope, receive, send)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load when wanted, and hold the sessions while open."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._run(stop), name="gateway:mcp")
        try:
            yield
        finally:
            stop.set()
            self._wanted.set()
            await asyncio.wait({task})

    def drain(self) -> None:
        """See `McpLane.drain`."""
        if self._lane is not None:
            self._lane.drain()

    async def _run(self, stop: asyncio.Event) -> None:
        await self._wanted.wait()
        try:
            if stop.is_set():
                return
            await asyncio.to_thread(importlib.import_module, "groundplane.gateway.mcp.lane")
            lane = self.create()
            async with lane.running():
                self._lane = lane
                self._settled.set()
                if self._services.draining:
                    lane.drain()
                await stop.wait()
        except Exception as error:  # noqa: BLE001 - readiness tells it, and so does every request
            self._failure = error
            _log.error("mcp_not_loaded", error=repr(error))
        finally:
            self._lane = None
            self._settled.set()


def _stands(scope: Scope) -> bool:
    """Whether it asks for a stream that no answer ends: that of a session, one that is resumed, a subscription."""
    return scope["method"] == "GET" or (b"mcp-method", b"subscriptions/listen") in scope["headers"]
