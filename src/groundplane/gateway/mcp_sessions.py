"""Sessions of the older MCP revisions: an event store per session, and streams that resume without a gap.

The SDK (mcp 2.3) names streams by request id alone, so one store for all sessions would replay one session's result to
another; its stock resumption also has a gap between replay and live tail and never closes. Both are mended here with
its own extension points: every session gets its own store, and a replay follows the store itself until the response.
`_admit_session` and `_discard_session` are private; the version is pinned below 2.4, and tests cover what relies on it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from mcp.server.streamable_http import EventCallback, EventMessage, EventStore, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCResponse
from sse_starlette import sse

EVENTS_MAX = 256


class SessionEvents(EventStore):
    """The last `EVENTS_MAX` messages of one session, by stream. Ids are decimal and rise within the session."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, str, JSONRPCMessage | None]] = deque(maxlen=EVENTS_MAX)
        self._last = 0
        self._changed = asyncio.Event()
        self._closed = False

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keep a message (None: the priming event that gives a client its first id)."""
        self._last += 1
        self._events.append((self._last, stream_id, message))
        self._changed.set()
        self._changed = asyncio.Event()
        return str(self._last)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send what followed on the same stream and go on live until its response. None: the stream then closes."""
        position = int(last_event_id) if last_event_id.isascii() and last_event_id.isdigit() else -1
        stream = next((stream for number, stream, _ in self._events if number == position), None)
        if stream is None:
            return None
        while True:
            changed = self._changed
            for number, _, message in [one for one in self._events if one[0] > position and one[1] == stream]:
                position = number
                if message is not None:
                    await send_callback(EventMessage(message, str(number)))
                if isinstance(message, JSONRPCResponse | JSONRPCError):
                    return None
            if self._closed:
                return None
            if changed is self._changed:
                await changed.wait()

    def close(self) -> None:
        """End the replays that wait."""
        self._closed = True
        self._changed.set()


class SessionManager(StreamableHTTPSessionManager):
    """The SDK's manager with one event store per session."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self._stores: dict[str, SessionEvents] = {}

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve while open. The SDK's streams would start a task that asks twice a second, for ever, whether uvicorn
        stops; here the gateway ends them itself (`drain`).
        """
        state = sse._get_shutdown_state()
        state.watcher_started = True
        try:
            async with super().run():
                yield
        finally:
            state.watcher_started = False

    def is_open(self, session_id: str | None) -> bool:
        """Whether the session exists."""
        return session_id is not None and session_id in self._server_instances

    def drain(self) -> None:
        """End the streams that wait for nothing in particular: replays, and the standing GET streams."""
        for store in self._stores.values():
            store.close()
        for transport in self._server_instances.values():
            transport.close_standalone_sse_stream()

    def _admit_session(self, requestor: Any) -> StreamableHTTPServerTransport | None:
        if self.max_sessions is not None and len(self._server_instances) >= self.max_sessions:
            return None
        session_id, store = uuid4().hex, SessionEvents()
        transport = StreamableHTTPServerTransport(
            mcp_session_id=session_id,
            event_store=store,
            security_settings=self.security_settings,
            retry_interval=self.retry_interval,
            idle_timeout=self.session_idle_timeout,
        )
        if requestor is not None:
            self._session_owners[session_id] = requestor
        self._server_instances[session_id] = transport
        self._stores[session_id] = store
        return transport

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        store = self._stores.pop(session_id, None)
        if store is not None:
            store.close()
        await super()._discard_session(session_id, transport)
