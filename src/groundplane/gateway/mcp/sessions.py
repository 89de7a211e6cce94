"""Sessions of the older MCP revisions, on any replica.

The record of a session (who may use it, what its client said when it initialized) is kept in the store of sessions that
all replicas share. A replica that does not know a session adopts it from there: it builds the SDK's transport and
connection as they are after the handshake. What the SDK holds of a session here is a cache: it may be dropped at any
time, and DELETE anywhere ends the session everywhere. `_handle_stateful_request`, `_admit_session`,
`_serve_opening_request` and `_discard_session` of the SDK (mcp 2.3) are private; the version is pinned below 2.4, and
tests cover what relies on them.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import anyio
import anyio.abc
import msgspec
from mcp.server.connection import Connection
from mcp.server.runner import ServerRunner, aclose_shielded
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.dispatcher import DispatchContext
from mcp.shared.exceptions import MCPError
from mcp.shared.jsonrpc_dispatcher import (
    JSONRPCDispatcher,
    cancelled_request_id_from_params,
    progress_token_from_params,
)
from mcp.shared.transport_context import TransportContext
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, InitializeRequestParams
from sse_starlette import sse
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from groundplane.core.errors import GroundplaneError, InvalidArgument, NotFound, Unavailable
from groundplane.core.lifecycle import Lifecycle
from groundplane.gateway.access import caller_of, told
from groundplane.gateway.mcp.body import read
from groundplane.gateway.mcp.context import CALL
from groundplane.gateway.mcp.questions import Questions, question_of_request
from groundplane.gateway.mcp.resuming import Call, Position, Replays, SessionEvents, Told, late_job
from groundplane.gateway.mcp.session_records import Handshake, Kept, OwnRecords, SessionRecords
from groundplane.gateway.services import Services
from groundplane.security.access import Caller
from groundplane.telemetry.logs import get_logger

TTL_S = 30 * 60.0
"""How long a session lives without a request, on all replicas together."""
TOUCH_S = 60.0
"""A use is told to the store of sessions at most this often, in seconds."""
_PREFIX = "mcp/"
_log = get_logger("gateway")


class Held:
    """What this replica holds of a session."""

    def __init__(
        self, session_id: str, owner: str, transport: StreamableHTTPServerTransport, events: SessionEvents
    ) -> None:
        self.session_id = session_id
        self.owner = owner
        self.transport = transport
        self.events = events
        self.dispatcher: JSONRPCDispatcher[TransportContext] | None = None
        self.connection: Connection | None = None
        self.handshake: Handshake | None = None
        self.data = b""
        self.requests = 0
        self.streams = 0
        self.used_at = time.monotonic()
        self.touched_at = self.used_at

    @property
    def ended(self) -> bool:
        """Whether it takes no request any more, or is about to be let go of."""
        idle = self.transport.idle_scope
        return self.transport.is_terminated or (idle is not None and idle.cancel_called)

    def learn(self, data: bytes) -> Handshake:
        """Take over what the store has, which another replica may have changed."""
        if data != self.data or self.handshake is None:
            self.data, self.handshake = data, Handshake.from_bytes(data)
            declared = self.handshake.params.get("capabilities")
            self.events.client = Told(
                session_id=self.session_id,
                owner=self.owner,
                version=self.handshake.version,
                capabilities=frozenset(declared if isinstance(declared, dict) else ()),
                log_level=self.handshake.log_level,
            )
        return self.handshake

    def waits_for(self, request_id: str) -> bool:
        """Whether a request of that id was put to the client from here, and is not answered."""
        return self.dispatcher is not None and request_id in self.dispatcher._pending


class SessionManager(StreamableHTTPSessionManager):
    """The SDK's manager over sessions that any replica serves. `records` None: sessions of this process alone.
    `forgotten` is told the id of each session that is not held here any more.
    """

    def __init__(
        self,
        app: Any,
        services: Services,
        lifecycle: Lifecycle,
        records: SessionRecords | None = None,
        *,
        forgotten: Callable[[str], None] = lambda session_id: None,
        **options: Any,
    ) -> None:
        super().__init__(app, **options)
        self._services = services
        self._lifecycle = lifecycle
        self._records = records if records is not None else OwnRecords()
        self._questions = Questions(services)
        self._replays = Replays(services)
        self._held: dict[str, Held] = {}
        self._forgotten = forgotten

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve while open. The SDK's streams would start a task that asks twice a second, for ever, whether uvicorn
        stops; here the gateway ends them itself (`drain`).
        """
        state = sse._get_shutdown_state()
        state.watcher_started = True
        holding = self._lifecycle.spawn(self._hold_open(), name="mcp_sessions")
        try:
            async with super().run():
                yield
        finally:
            holding.cancel()
            state.watcher_started = False

    def drain(self) -> None:
        """End the standing streams. Those that follow a job are ended by the feed."""
        for held in self._held.values():
            held.transport.close_standalone_sse_stream()

    def connections(self) -> list[Connection]:
        """The sessions that this replica holds, for what all clients are told."""
        return [one.connection for one in self._held.values() if one.connection is not None and one.handshake]

    async def set_log_level(self, session_id: str, level: str) -> None:
        """From now on the session is told what handlers log from that level on, by every replica."""
        await self.change(session_id, lambda kept: msgspec.structs.replace(kept, log_level=level))

    async def change(self, session_id: str, changed: Callable[[Handshake], Handshake]) -> None:
        """Change what is kept of a session, and lose nothing that another replica changes at the same time. Raises
        `not_found` where it has ended.
        """
        held = self._held[session_id]
        while True:
            data = changed(held.learn(held.data)).to_bytes()
            if data == held.data or await self._records.update(_PREFIX + session_id, data, before=held.data):
                held.learn(data)
                return
            await self.subscriptions(held)

    def holds(self, held: Held) -> bool:
        """Whether it is still held here, and not made anew meanwhile."""
        return self._held.get(held.session_id) is held

    def streaming(self) -> list[Held]:
        """The sessions whose clients listen here."""
        return [one for one in self._held.values() if one.streams and one.connection is not None and one.handshake]

    async def subscriptions(self, held: Held) -> tuple[str, ...]:
        """The resources that the session is subscribed to by now, whichever replica was asked. Raises `not_found` where
        it has ended.
        """
        record = await self._records.get(_PREFIX + held.session_id)
        if record is None:
            raise NotFound("session: has ended; initialize another one", reason="session_ended")
        return held.learn(record.data).subscriptions

    async def _handle_stateful_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        session_id = headers.get("mcp-session-id")
        if session_id is None:
            await super()._handle_stateful_request(scope, receive, send)
            return
        held = await self._find(session_id, _owner(scope))
        if held is None:
            await _refusal(404, "Session not found")(scope, receive, send)
            return
        held.requests += 1  # from now on it is not let go of
        try:
            await self._serve_request(held, scope, receive, send)
        finally:
            held.requests -= 1
            held.used_at = time.monotonic()
        if held.transport.is_terminated:
            await self._discard_session(session_id, held.transport)

    async def _serve_request(self, held: Held, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of a session that is held here."""
        position = Headers(scope=scope).get("last-event-id")
        if scope["method"] == "GET" and position and Position.decode(position) is None:
            message = f"Last-Event-ID: {position[:100]!r} is no event id of this server"
            await _refusal(400, message)(scope, receive, send)
            return
        if time.monotonic() - held.touched_at > TOUCH_S:
            await self._touch(held)
        if scope["method"] == "GET" and not position and self._services.draining:  # it would stand until the end
            raise Unavailable("gateway: is shutting down; open the stream again")
        if scope["method"] == "POST":
            receive, answer = await self._opened(held, scope, receive)
            if answer is not None:
                await answer(scope, receive, send)
                return
        elif scope["method"] == "DELETE":
            await self._records.drop(_PREFIX + held.session_id)  # first: who has the answer finds it ended everywhere
        listens = int(scope["method"] == "GET")
        held.streams += listens
        try:
            await held.transport.handle_request(scope, receive, send)
        finally:
            held.streams -= listens
            held.events.left((scope.get("state") or {}).get(CALL))

    async def _touch(self, held: Held) -> None:
        """Let the session live on. It may be that the store cannot be told now; then the next use tells it."""
        held.touched_at = time.monotonic()
        try:
            known = await self._records.touch(_PREFIX + held.session_id, ttl_s=TTL_S)
        except GroundplaneError as error:
            held.touched_at = -math.inf
            _log.warning("mcp_session_not_touched", code=error.code, error=error.message)
            return
        if not known:
            await self._discard_session(held.session_id, held.transport)

    async def touch_open(self) -> None:
        """Let the sessions live on of which a request or a stream is open: a client that listens sends nothing. Those
        that were ended elsewhere end here too.
        """
        for held in list(self._held.values()):
            if held.requests and held.handshake is not None:
                await self._touch(held)

    async def _hold_open(self) -> None:
        while True:
            await asyncio.sleep(TTL_S / 4)
            await self.touch_open()

    async def _find(self, session_id: str, owner: str) -> Held | None:
        """The session, adopted where it is not held here; None where it has ended, or is somebody else's."""
        if not (session_id.isascii() and session_id.isalnum() and len(session_id) <= 64):
            return None
        record = await self._records.get(_PREFIX + session_id)
        held = self._held.get(session_id)
        if record is None or record.owner != owner:
            if record is None and held is not None:
                await self._discard_session(session_id, held.transport)
            return None
        if held is None or held.ended:
            held = await self._adopt(session_id, record)
        held.learn(record.data)
        return held

    async def _adopt(self, session_id: str, record: Kept) -> Held:
        async with self._session_creation_lock:
            held = self._held.get(session_id)
            if held is not None and not held.ended:
                return held
            assert self._task_group is not None
            assert self.max_sessions is not None
            await self._make_room(self.max_sessions - 1)
            held = self._made(session_id, record.owner)
            await self._task_group.start(self._serve_session, held, held.learn(record.data))
            self._held[session_id] = held  # not before: who finds it sends to its streams
            held.touched_at = -math.inf
            return held

    async def _make_room(self, most: int) -> None:
        """Let go of the sessions that were used least recently, down to `most`: they are adopted again when they are
        used. Raises `unavailable` where too many are in use.
        """
        while len(self._held) > most:
            idle = [held for held in self._held.values() if not held.requests]
            if not idle:
                raise Unavailable(f"sessions: {self.max_sessions} are in use here; call again")
            oldest = min(idle, key=lambda held: held.used_at)
            await self._discard_session(oldest.session_id, oldest.transport)

    def _made(self, session_id: str, owner: str) -> Held:
        events = SessionEvents(self._replays, session_id)
        transport = StreamableHTTPServerTransport(
            mcp_session_id=session_id,
            event_store=events,
            security_settings=self.security_settings,
            retry_interval=self.retry_interval,
            idle_timeout=self.session_idle_timeout,
        )
        return Held(session_id, owner, transport, events)

    def _admit_session(self, requestor: Any) -> StreamableHTTPServerTransport:
        held = self._made(uuid4().hex, "")
        self._held[held.session_id] = held  # room is made when the request is served
        return held.transport

    async def _serve_opening_request(
        self, http_transport: StreamableHTTPServerTransport, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve the request that opens a session. Whatever is not a handshake leaves no session behind."""
        assert http_transport.mcp_session_id is not None
        assert self._task_group is not None
        assert self.max_sessions is not None
        held = self._held[http_transport.mcp_session_id]
        held.owner = _owner(scope)
        held.requests += 1
        try:
            await self._make_room(self.max_sessions)
            await self._task_group.start(self._serve_session, held, None)
            await http_transport.handle_request(scope, receive, send)
        finally:
            held.requests -= 1
            if held.handshake is None:
                await self._discard_session(held.session_id, http_transport)

    async def _serve_session(
        self, held: Held, handshake: Handshake | None, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        """Hold the session until it is discarded. With a `handshake` it begins where that ended."""
        transport = held.transport
        try:
            async with transport.connect() as (read, write):
                dispatcher: JSONRPCDispatcher[TransportContext] = JSONRPCDispatcher(
                    read, write, inline_methods=frozenset({"initialize"})
                )
                held.dispatcher = dispatcher
                connection = held.connection = Connection.for_loop(dispatcher, session_id=held.session_id)
                if handshake is not None:
                    _resume(connection, handshake)
                runner = ServerRunner(self.app, connection, self._lifespan_state)

                async def on_request(
                    dctx: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
                ) -> dict[str, Any]:
                    result = await runner.on_request(dctx, method, params)
                    if method == "initialize":
                        await self._keep(
                            held, Handshake(params=dict(params or {}), version=connection.protocol_version)
                        )
                    return result

                task_status.started()
                with transport.idle_scope or anyio.CancelScope():
                    try:
                        await dispatcher.run(on_request, runner.on_notify)
                    finally:
                        await aclose_shielded(connection)
        except Exception:  # noqa: BLE001 - one session's fault is not the end of the others
            _log.error("mcp_session_failed", traceback=traceback.format_exc())
        finally:
            await self._discard_session(held.session_id, transport)

    async def _keep(self, held: Held, handshake: Handshake) -> None:
        """Let every replica know the session, before its client hears of it."""
        data = handshake.to_bytes()
        try:
            await self._records.put(_PREFIX + held.session_id, held.owner, data, ttl_s=TTL_S)
        except GroundplaneError as error:
            code = INVALID_PARAMS if isinstance(error, InvalidArgument) else INTERNAL_ERROR
            raise MCPError(code, f"the session cannot be kept: {told(None, error).message}") from error
        held.learn(data)

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        held = self._held.get(session_id)
        if held is not None and held.transport is transport:
            del self._held[session_id]
            self._forgotten(session_id)
        await super()._discard_session(session_id, transport)

    async def _opened(self, held: Held, scope: Scope, receive: Receive) -> tuple[Receive, ASGIApp | None]:
        """Note what the message is, for the ids of its stream; do what another replica's request needs. With an answer
        where the SDK has nothing to do with it.
        """
        data, again = await read(receive)
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            return again, None  # the SDK says what is wrong with it
        if not isinstance(message, dict):
            return again, None
        method, request_id, params = message.get("method"), message.get("id"), message.get("params")
        given = params if isinstance(params, dict) else None
        if method == "notifications/cancelled":
            cancelled, caller = cancelled_request_id_from_params(given), caller_of(scope)
            if cancelled is not None and caller is not None:
                call = Call(held.session_id, cancelled)
                self._lifecycle.spawn(self._cancel(caller, call.job_id, held.owner), name=f"cancel:{call.job_id}")
        elif isinstance(method, str) and isinstance(request_id, str | int) and not isinstance(request_id, bool):
            lasting = method == "tools/call"
            call = Call(held.session_id, request_id, progress_token_from_params(given), lasting=lasting)
            call.log_level = held.learn(held.data).log_level
            held.events.calls[str(request_id)] = call
            scope.setdefault("state", {})[CALL] = call
        elif method is None and (asked := question_of_request(request_id)) and not held.waits_for(str(request_id)):
            return again, await self._answered(caller_of(scope), held, *asked, message.get("result"))
        return again, None

    async def _answered(
        self, caller: Caller | None, held: Held, job_id: str, question_id: str, response: Any
    ) -> ASGIApp:
        """Take the answer to a question that another replica put, or an earlier stream. One that comes too late, or is
        to somebody else's question, is accepted and has no effect.
        """
        try:
            job = await self._services.jobs.get(job_id)
            if caller is not None and job.owner == held.owner:
                for question in job.questions:
                    if question.question_id == question_id:
                        await self._questions.give(caller, job, question, response)
        except NotFound:
            pass
        except InvalidArgument as error:
            return _refusal(400, error.message)
        return Response(status_code=202)

    async def _cancel(self, caller: Caller, job_id: str, owner: str) -> None:
        """End the job of a request that any replica may have taken. A request that made no job needs nothing."""
        try:
            job = await late_job(self._services.jobs, job_id)
            if job is not None and job.owner == owner:
                await self._services.end(caller, job_id, "the client cancelled the call")
        except GroundplaneError as error:
            _log.info("cancel_not_applied", job_id=job_id, code=error.code, reason=error.reason)


def _resume(connection: Connection, handshake: Handshake) -> None:
    """Bring a new connection to where the handshake ended."""
    connection.client_params = InitializeRequestParams.model_validate(handshake.params, by_name=False)
    connection.protocol_version = handshake.version
    connection.initialized.set()


def _owner(scope: Scope) -> str:
    """The principal of whoever sent the request."""
    return str(getattr(scope.get("state", {}).get("caller"), "principal", ""))


def _refusal(status: int, message: str) -> JSONResponse:
    error = {"code": INVALID_REQUEST, "message": message}
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, status_code=status)
