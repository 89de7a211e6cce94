"""Streams of older MCP calls that any replica resumes: an event id says where in the log of which job it stands.

No message is kept. What a stream said and will say is made from the job's log again: progress as notifications, the
outcome as the response. So the replica that a client comes back to needs nothing of the one that it left, which may
have been killed. Format of the ids: base64url of MessagePack; to clients they are opaque (MCP, Streamable HTTP,
"Resumability and Redelivery"). An id holds nothing that its client did not send or was not told, and opens
nothing but jobs of the owner of the session that it is presented in.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any

import msgspec
from mcp.server.streamable_http import GET_STREAM_KEY, EventCallback, EventMessage, EventStore
from mcp_types import (
    INVALID_REQUEST,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)
from mcp_types.methods import serialize_server_result

from groundplane.core.errors import NotFound
from groundplane.core.ids import call_id
from groundplane.gateway.mcp.calls import DEFAULT_LOG_LEVEL, EVENT_META, Telling
from groundplane.gateway.mcp.questions import CAPABILITIES, question_request_id, request_of
from groundplane.gateway.mcp.results import outcome
from groundplane.gateway.services import Services
from groundplane.gateway.streams import is_final
from groundplane.jobs import Jobs
from groundplane.jobs.port import Job, JobEvent

LATE_S = 2.0
"""How long a job is waited for that another replica may be about to create."""
_VERSION = 1


class Position(msgspec.Struct, frozen=True, array_like=True):
    """Where a stream stands. `request_id` None: the standing stream, which has no past. `job_id` is empty for the job
    that follows from session and request. `lasting`: the request is a call, which leaves a job behind.
    """

    version: int = _VERSION
    request_id: str | int | None = None
    job_id: str = ""
    event_id: int = 0
    token: str | int | None = None
    reported: float = 0.0
    answered: bool = False
    lasting: bool = False

    def encode(self) -> str:
        """As an event id."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> Position | None:
        """From an event id; None where it is none of ours."""
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            found = msgspec.msgpack.decode(data, type=cls)
        except (binascii.Error, ValueError, msgspec.DecodeError):
            return None
        return found if found.version == _VERSION and 0 <= found.event_id < 2**63 else None


class Call:
    """One request of a session while it is answered here: what the event ids of its stream are made from, and what its
    session wants to be told of logs.
    """

    def __init__(
        self, session_id: str, request_id: str | int, token: str | int | None = None, *, lasting: bool = False
    ) -> None:
        self.request_id = request_id
        self.lasting = lasting
        self.log_level = DEFAULT_LOG_LEVEL
        self.job_id = call_id(session_id, request_id)
        self._own_job_id = self.job_id
        self._token = token
        self._event_id = 0
        self._reported = 0.0

    @property
    def names_job(self) -> bool:
        """Whether the job's id follows from session and request, so that any replica finds it."""
        return self.lasting and self.job_id == self._own_job_id

    def passed(self, params: dict[str, Any] | None) -> None:
        """A message about the job went onto the stream."""
        given = params or {}
        event_id = (given.get("_meta") or {}).get(EVENT_META)
        if isinstance(event_id, int):
            self._event_id = event_id
        progress = given.get("progress")
        if isinstance(progress, int | float):
            self._reported = float(progress)

    def position(self, *, answered: bool = False) -> Position:
        """Where its stream stands now."""
        return Position(
            request_id=self.request_id,
            job_id="" if self.job_id == self._own_job_id else self.job_id,
            event_id=self._event_id,
            token=self._token,
            reported=self._reported,
            answered=answered,
            lasting=self.lasting,
        )


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Whose stream is replayed, and what its client said of itself."""

    session_id: str
    owner: str
    version: str
    capabilities: frozenset[str]
    log_level: str


class Replays:
    """Goes on with streams from the job log."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def go_on(self, client: Told, position: Position, send: EventCallback) -> None:
        """Send what followed, then live, to the response; open questions are put again. Ends before it where the
        gateway drains, or holds streams no longer: the client comes back, here or elsewhere.
        """
        if position.request_id is None or position.answered:
            return
        job = await self._job(client, position)
        if job is None:
            await send(EventMessage(_lost(position.request_id)))
            return
        await _Replay(self._services, client, job, position, send).run()

    async def _job(self, client: Told, position: Position) -> Job | None:
        """The job of the stream, where the session's owner is the job's."""
        assert position.request_id is not None
        if not position.lasting:
            return None
        job_id = position.job_id or call_id(client.session_id, position.request_id)
        job = await late_job(self._services.jobs, job_id)
        return job if job is not None and job.owner == client.owner else None


class _Replay:
    """One stream that is gone on with."""

    def __init__(self, services: Services, client: Told, job: Job, position: Position, send: EventCallback) -> None:
        assert position.request_id is not None
        self._services = services
        self._client = client
        self._job = job
        self._request_id = position.request_id
        self._after = position.event_id
        self._send = send
        self._tool = services.tools.find(job.tool)
        token = position.token if self._tool is None or self._tool.spec.progress else None
        self._telling = Telling(token, log_level=client.log_level, reported=position.reported)
        self._call = Call(client.session_id, position.request_id, token, lasting=True)
        self._call.job_id = job.job_id
        self._asked: set[str] = set()

    async def run(self) -> None:
        """Tell what followed; the response where the job has ended."""
        limit_s = self._services.settings.stream_s
        with self._services.feed.subscribe(self._job, self._after, limit_s=limit_s) as events:
            await self._ask()
            ended = False
            while not ended:
                found = await events.batch(0.0 if self._job.state.terminal else None)
                ended = await self._tell(found)
                if not found:
                    if not self._job.state.terminal:
                        return
                    ended = True  # retention, or the client, has the final event already
        await self._answer()

    async def _tell(self, found: list[JobEvent]) -> bool:
        """Pass on what the events are to the client; whether the last of them ended the job."""
        for event in found:
            if is_final(event):
                return True
            for one in self._telling.notifications(event):
                dumped = one.model_dump(by_alias=True, mode="json", exclude_none=True)
                await self._say(JSONRPCNotification(jsonrpc="2.0", **dumped))
            if event.kind == "asked":
                self._job = await self._services.jobs.get(self._job.job_id)
                await self._ask()
        return False

    async def _ask(self) -> None:
        for one in self._job.questions:
            if one.question_id not in self._asked and CAPABILITIES[one.kind] in self._client.capabilities:
                self._asked.add(one.question_id)
                request_id = question_request_id(self._job.job_id, one.question_id)
                await self._say(JSONRPCRequest(jsonrpc="2.0", id=request_id, **request_of(one)))

    async def _answer(self) -> None:
        job = await self._services.whole(await self._services.jobs.get(self._job.job_id))
        shown = outcome(job, self._tool)
        result = serialize_server_result("tools/call", self._client.version, shown)
        await self._say(JSONRPCResponse(jsonrpc="2.0", id=self._request_id, result=result), answered=True)

    async def _say(self, message: JSONRPCMessage, *, answered: bool = False) -> None:
        if isinstance(message, JSONRPCNotification | JSONRPCRequest):
            self._call.passed(message.params)
        await self._send(EventMessage(message, self._call.position(answered=answered).encode()))


class SessionEvents(EventStore):
    """What the SDK calls its store of events; this one stores none. `calls` are the requests whose streams are open
    here.
    """

    def __init__(self, replays: Replays, session_id: str) -> None:
        self._replays = replays
        self._session_id = session_id
        self.client: Told | None = None
        self.calls: dict[str, Call] = {}

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """The id of a message (None: of the priming event) on its stream."""
        if stream_id == GET_STREAM_KEY:
            return Position().encode()
        call = self.calls.get(stream_id) or Call(self._session_id, stream_id)
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            self.calls.pop(stream_id, None)
            return call.position(answered=True).encode()
        if message is not None:
            call.passed(message.params)
        return call.position().encode()

    def left(self, call: Call | None) -> None:
        """The stream of a request is over: nobody gets what is said on it from now on, nor ids of that."""
        if call is not None and self.calls.get(str(call.request_id)) is call:
            del self.calls[str(call.request_id)]

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """See `Replays.go_on`; None: the stream then closes. The standing stream goes on as the standing stream."""
        position = Position.decode(last_event_id)
        if position is None:
            return None
        if position.request_id is None:
            return GET_STREAM_KEY
        assert self.client is not None  # the session is initialized, or its id would not be known
        await self._replays.go_on(self.client, position, send_callback)
        return None


async def late_job(jobs: Jobs, job_id: str) -> Job | None:
    """The job; one that another replica may be about to create is waited for, `LATE_S` seconds."""
    try:
        return await jobs.get(job_id)
    except NotFound:
        pass
    ends_at = asyncio.get_running_loop().time() + LATE_S
    async with jobs.watch() as watch:
        while True:
            try:
                return await jobs.get(job_id)
            except NotFound:
                left = ends_at - asyncio.get_running_loop().time()
                if left <= 0:
                    return None
                await watch.wait(left)


def _lost(request_id: str | int) -> JSONRPCError:
    message = "the request left no job behind: its answer was lost, or it was never taken; send it again"
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=INVALID_REQUEST, message=message))
