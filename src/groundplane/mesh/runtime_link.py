"""One connection to a runtime that speaks protocol 1, and the calls that run on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from groundplane.core import codec
from groundplane.core.envelope import Route
from groundplane.core.errors import GroundplaneError, InvalidArgument, Unavailable
from groundplane.mesh.frames import FrameReader, frames
from groundplane.mesh.routing import Failure, Outcome, Output, Result

if TYPE_CHECKING:
    from groundplane.mesh.runtime_client import CallEvents, CallRequest, RuntimeSettings

HELLO = b"GPLN"


class OutputFrame(msgspec.Struct):
    """An output as it crosses the socket. Older routes call the actors `steps`."""

    payload: Any = None
    route: dict[str, Any] | None = None
    headers: dict[str, Any] | None = None


class ErrorFrame(msgspec.Struct):
    """An error as it crosses the socket."""

    reason: str = "processing_error"
    message: str = ""
    type: str = ""
    types: list[str] = []
    traceback: str = ""
    details: dict[str, Any] = {}
    retryable: bool | None = None
    retry_after_s: float | None = None
    code: str = ""


class RuntimeFrame(msgspec.Struct):
    """Any frame of the runtime after its hello; `t` says which fields count."""

    t: str
    id: int | None = None
    outputs: list[OutputFrame] = []
    end: str = ""
    fanout: bool = False
    payload: Any = msgspec.UNSET
    error: ErrorFrame | None = None
    percent: float = 0.0
    message: str = ""
    name: str = ""
    kind: str = ""
    value: Any = 0.0
    labels: dict[str, str] = {}
    seq: int = 0
    op: str = ""
    key: str = ""
    in_doubt: str = "run"
    level: str = ""
    data: dict[str, Any] = {}
    questions: list[dict[str, Any]] = []


_decoders: dict[str, Any] = {
    "msgpack": msgspec.msgpack.Decoder(RuntimeFrame).decode,
    "json": msgspec.json.Decoder(RuntimeFrame).decode,
}


class Link(asyncio.Protocol):
    """One connection. After the hello it carries calls, as many at once as the runtime allows."""

    def __init__(self, frame_max: int, lost: Callable[[Link], None]) -> None:
        self.about: dict[str, Any] = {}
        self.calls: dict[int, RunningCall] = {}
        self.greeting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._reader = FrameReader(frame_max)
        self._transport: asyncio.Transport | None = None
        self._on_lost = lost
        self._codec: codec.Codec = "json"
        self._next = 0
        self._asks: set[asyncio.Task[None]] = set()
        self._unsent: list[bytes] = []

    @property
    def worker(self) -> int | None:
        """The pid of the worker behind this connection."""
        pid = self.about.get("worker")
        return pid if isinstance(pid, int) else None

    @property
    def has_room(self) -> bool:
        """Whether one more call may be sent."""
        return self._transport is not None and len(self.calls) < self.about.get("concurrency", 1)

    def greeted(self, about: dict[str, Any], message_max: int) -> None:
        """The runtime has answered the hello: speak as agreed from now on."""
        self.about = about
        self._codec = "msgpack" if about.get("codec") == "msgpack" else "json"
        self._reader.frame_max = min(self._reader.frame_max, int(about.get("frame_max") or self._reader.frame_max))
        theirs = int(about.get("message_max") or 0)
        self._reader.message_max = max(self._reader.frame_max, min(message_max, theirs))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                self._take(body)
        except (InvalidArgument, ValueError, msgspec.MsgspecError) as error:
            self._refuse(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self.greeting.done():
            self.greeting.set_exception(Unavailable("runtime: closed the connection during the hello"))
        for task in self._asks:
            task.cancel()
        self._on_lost(self)

    def write(self, body: bytes) -> None:
        """Send one message, together with those of the same turn of the loop; dropped when the connection is gone
        (its calls are told)."""
        pieces = frames(body, self._reader.frame_max, self._reader.message_max)
        if self._transport is None:
            return
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += pieces

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def send(self, message: dict[str, Any]) -> None:
        """Send a map in the codec that was agreed."""
        self.write(codec.encode(message, self._codec))

    def add(self, call: RunningCall) -> int:
        """A number for a new call."""
        self._next += 1
        self.calls[self._next] = call
        return self._next

    def end_all(self, outcome: Outcome) -> None:
        """Every call that runs here ends so."""
        for call in list(self.calls.values()):
            call.end(call.timed_out or outcome)

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _take(self, body: bytes) -> None:
        if not self.greeting.done():
            self.greeting.set_result(body)
            return
        frame: RuntimeFrame = _decoders[self._codec](body)
        call = self.calls.get(frame.id) if frame.id is not None else None
        if call is None:
            if frame.t == "error" and frame.id is None and frame.error is not None:
                self._refuse(frame.error.message)
            return  # the answer to a call that was given up
        if frame.t == "result":
            call.end(call.timed_out or _result(frame))
        elif frame.t == "error":
            call.end(call.timed_out or failure_of(frame.error or ErrorFrame()))
        elif frame.t == "ask":
            task = asyncio.get_running_loop().create_task(self._answer(call, frame))
            self._asks.add(task)
            task.add_done_callback(self._asks.discard)
        else:
            call.event(frame)

    async def _answer(self, call: RunningCall, frame: RuntimeFrame) -> None:
        reply: dict[str, Any] = {"t": "reply", "id": frame.id, "seq": frame.seq}
        fields = {
            "key": frame.key,
            "value": frame.value,
            "in_doubt": frame.in_doubt,
            "questions": frame.questions,
            "name": frame.name,
            "options": frame.data,
        }
        try:
            self.send({**reply, "value": await call.events.ask(frame.op, fields)})
        except GroundplaneError as error:
            self.send({**reply, "error": msgspec.to_builtins(error.to_record())})

    def _refuse(self, message: str) -> None:
        """The peer broke the protocol: its calls end, the connection too."""
        text = f"runtime: {message}"
        self.end_all(Failure(reason="connection_error", message=text, type="ProtocolError"))
        self.close()


class RunningCall:
    """One call on a connection."""

    def __init__(self, link: Link, events: CallEvents) -> None:
        self.link = link
        self.events = events
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.timed_out: Failure | None = None
        self._id = link.add(self)

    def send(self, request: CallRequest) -> None:
        """Hand the call over. `InvalidArgument` for what cannot be carried."""
        message: dict[str, Any] = {
            "t": "call",
            "id": self._id,
            "envelope": request.envelope,
            "timeout_s": request.timeout_s,
            "deadline_ms": request.deadline_ms,
            "attempt": request.attempt,
            "idempotency_key": request.idempotency_key,
        }
        if request.join is not None:
            message["join"] = request.join
        self.link.send(message)

    def cancel(self, reason: str) -> None:
        """Tell the handler."""
        if not self.outcome.done():
            self.link.send({"t": "cancel", "id": self._id, "reason": reason})

    def end(self, outcome: Outcome) -> None:
        """It is over; only the first end counts."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def drop(self) -> None:
        """Its number is free; later frames for it are ignored."""
        self.link.calls.pop(self._id, None)

    def event(self, frame: RuntimeFrame) -> None:
        """Progress, a heartbeat, a metric, a line of the log. Others are of a newer runtime and ignored."""
        if frame.t == "progress":
            self.events.progress(frame.percent, frame.message)
        elif frame.t == "heartbeat":
            self.events.heartbeat()
        elif frame.t == "metric" and isinstance(frame.value, int | float):
            self.events.metric(frame.name, frame.kind, frame.value, frame.labels)
        elif frame.t == "log":
            self.events.log(frame.level, frame.message, frame.data)


async def connect(settings: RuntimeSettings, hello: dict[str, Any], lost: Callable[[Link], None]) -> Link | None:
    """Connect and greet. None when the peer answers as protocol 0 does. `OSError` or `Unavailable` when it does not."""
    loop = asyncio.get_running_loop()
    _, link = await loop.create_unix_connection(lambda: Link(settings.frame_max, lost), settings.socket)
    try:
        link.write(HELLO + json.dumps(hello).encode())
        body = await link.greeting
        about = codec.decode(body)
    except BaseException:
        link.close()
        raise
    if isinstance(about, list):
        link.close()
        return None
    if not isinstance(about, dict) or "protocol" not in about:
        link.close()
        raise Unavailable(f"runtime: {str(about)[:200]!r} is no answer to a hello")
    link.greeted(about, settings.message_max)
    return link


def _result(frame: RuntimeFrame) -> Outcome:
    if frame.end == "suspended":  # where something was asked, nobody looks at this
        message = "the handler's run ended as suspended, and nothing was asked"
        return Failure(reason="processing_error", message=message, type="Suspended", retryable=False)
    outputs = []
    for one in frame.outputs:
        route = route_of(one.route)
        if isinstance(route, Failure):
            return route
        outputs.append(Output(one.payload, route, one.headers))
    return Result(outputs, frame.fanout, frame.payload)


def route_of(found: dict[str, Any] | None) -> Route | Failure | None:
    """The route of an output; `route_error` for one that is none."""
    if found is None:
        return None
    actors = found.get("actors", found.get("steps"))
    current = found.get("current")
    fits = isinstance(actors, list) and all(isinstance(name, str) and name for name in actors)
    if not fits or type(current) is not int:
        return Failure(reason="route_error", message=f"route: {str(found)[:200]!r} has no list of actors or no index")
    assert actors is not None
    return Route(actors, current)


def failure_of(error: ErrorFrame) -> Failure:
    """The failure that an error frame tells of."""
    return Failure(**{name: getattr(error, name) for name in ErrorFrame.__struct_fields__})
