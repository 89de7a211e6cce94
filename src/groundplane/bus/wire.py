"""The messages of the bus as bytes: maps of MessagePack by default, or JSON; told apart by the first byte.

An answer is in the codec of its request. Fields that have their default are left out, unknown ones are ignored. What a
foreign peer leaves out is taken from the subject. The page `reference/bus-wire` shows each shape with its bytes.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from groundplane.core.clock import SYSTEM_CLOCK, Clock, iso_z
from groundplane.core.codec import Codec, codec_of, decode, encode
from groundplane.core.errors import ErrorRecord, InvalidArgument
from groundplane.core.ids import new_id

PriorityName = Literal["low", "normal", "high", "critical"]
End = Literal["succeeded", "failed", "cancelled", "timed_out"]
RPC_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 300.0


class Head(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What every message begins with. `timestamp` is ISO 8601 in UTC; `trace_id` 32 hexadecimal digits; `headers` carry
    `traceparent`, `tracestate` and what callers add.
    """

    message_id: str = ""
    trace_id: str = ""
    correlation_id: str = ""
    timestamp: str = ""
    source: str = ""
    target: str = ""
    headers: dict[str, str] = {}


class RpcRequest(Head, kw_only=True, omit_defaults=True, gc=False):
    """Ask `method` with `params` (a map of arguments). `timeout` is in seconds from receipt; `deadline_at`, Unix ms,
    says when nobody waits any more.
    """

    method: str = ""
    params: dict[str, Any] = {}
    timeout: float = RPC_TIMEOUT_S
    deadline_at: int = 0


class RpcResponse(Head, kw_only=True, omit_defaults=True, gc=False):
    """The answer: `correlation_id` is the request's `message_id`. With `success` there is a `result`, else `error`."""

    success: bool
    result: Any = None
    error: ErrorRecord | None = None


class Event(Head, kw_only=True, omit_defaults=True):
    """Something happened. `version` is `major.minor` of the shape of its payload."""

    domain: str = ""
    event_type: str = ""
    payload: Any = None
    version: str = "1.0"


class Command(Head, kw_only=True, omit_defaults=True):
    """Something is to be done by one handler. Its id is `message_id`. `max_retries` counts further attempts; `timeout`
    seconds pass in all, from `timestamp` on.
    """

    command: str = ""
    payload: dict[str, Any] = {}
    priority: PriorityName = "normal"
    max_retries: int = 3
    timeout: float = COMMAND_TIMEOUT_S
    deadline_at: int = 0


class CommandProgress(Head, kw_only=True, omit_defaults=True):
    """How far a command is, in percent; `correlation_id` is its id. It never decreases; 100 only on success."""

    percent: float
    message: str = ""


class CommandCallback(Head, kw_only=True, omit_defaults=True):
    """The end of a command; `correlation_id` is its id. `attempts` were begun since it last came back from the dead."""

    command: str = ""
    status: End
    result: Any = None
    error: ErrorRecord | None = None
    attempts: int = 0
    redrives: int = 0


class CommandCancel(Head, kw_only=True, omit_defaults=True):
    """The wish to cancel the command `correlation_id`."""

    reason: str = ""


class RpcCancel(Head, kw_only=True, omit_defaults=True):
    """Nobody waits for the answer to the request `correlation_id` any more."""


class Presence(Head, kw_only=True, omit_defaults=True):
    """An instance of a service tells that it is there, every `interval` seconds, or that it leaves."""

    service: str
    instance: str
    methods: list[str] = []
    interval: float = 2.0
    leaving: bool = False
    version: str = ""


class Who(Head, kw_only=True, omit_defaults=True):
    """Asks the instances of a service to tell that they are there."""

    service: str


M = TypeVar("M", bound=Head)


def head(source: str = "", *, clock: Clock = SYSTEM_CLOCK) -> dict[str, Any]:
    """The fields of a new message: its id, its time, who sends it."""
    return {"message_id": new_id(), **origin(source, clock=clock)}


def origin(source: str = "", *, clock: Clock = SYSTEM_CLOCK) -> dict[str, Any]:
    """`head` without the id."""
    return {"timestamp": iso_z(clock.now_ms()), "source": source}


def write(message: Head, codec: Codec = "msgpack") -> bytes:
    """The bytes of a message. What neither codec can carry is `invalid_argument` (`msg_parsing_error`)."""
    return encode(message, codec)


def read(data: bytes, shape: type[M]) -> tuple[M, Codec]:
    """The message in `data`, and the codec it is in. Anything else is `invalid_argument` (`msg_parsing_error`)."""
    return decode(data, shape), codec_of(data)


def read_error(error: ErrorRecord | None) -> ErrorRecord:
    """The error of an answer that says it failed; also where a foreign peer left it out."""
    return error or ErrorRecord("internal", "the answer says that it failed, and not why", "processing_error")


def check_answer(answer: RpcResponse) -> RpcResponse:
    """The answer when it has a result or an error, not both. Else `invalid_argument` (`msg_parsing_error`)."""
    if answer.success and answer.error is not None:
        raise InvalidArgument("message: the answer has success and an error", reason="msg_parsing_error")
    return answer
