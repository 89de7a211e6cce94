"""The runtime: hosts one handler behind a unix socket. This one file needs the standard library alone.

It is imported as `groundplane.mesh.runtime`, and it runs by itself on Python 3.9 or newer wherever it is mounted:

    python runtime.py --handler module:function --socket /run/actor.sock

A *supervisor* imports the handler, listens, and forks *workers* which call it, one connection each. A worker that is
stuck, killed or out of memory is replaced from a hot standby. Workers never outlive their supervisor.
The protocol is `docs/reference/protocol.md`. MessagePack is spoken where msgspec can be imported, JSON always.

**The handler** is `module:name`, `module.name` or `path/to/file.py:name`; a function, or a class with `process` or
`__call__` (or `module:Class.method`), which is instantiated once in each worker. Functions may be `async def`, and
generators. The working directory and PYTHONPATH are searched.

**Its arguments**, in mode `payload`. Parameters annotated `Context` (or named `ctx` without annotation) get the call's
context, one annotated `Envelope` gets the whole envelope. For the others, the first rule that fits:

1. A map whose keys all name parameters, none that is required missing: by name. `**kwargs` takes what has no name.
2. Exactly one parameter is required (or there is only one): it takes the whole payload, if that is no map; or if it is
   a map which lacks its name, and the annotation could be one (none, `Any`, `dict`, a struct or model; not `int`).
3. No parameters: the payload must be null or `{}`, unless the handler takes the envelope. Null also fits a handler
   whose parameters are all optional.

Anything else is `msg_parsing_error`, as is a value that does not fit its annotation (checked by `msgspec.convert`,
strictly; without msgspec only built-in types). In mode `message` (`envelope` is the same) the only argument is the
whole message, a dict, and so is the result; one without a `payload` key is taken for the payload.

**Its result**: a value is one output; a generator or `FanOut([...])` one each; a list is one payload (in mode `message`
and in protocol 0 it is a fan-out); None, `Stop()` or an empty fan-out ends the route. `Retry` and `Reject` are raised.

**Exit codes**: 0 drained; 2 usage; 3 `handler_import_failed`; 4 the socket cannot be bound; 5 workers die while they
start; 6 calls were killed because the grace ended. With `--probe` 0 says that the runtime on the socket serves, 1 that
it does not.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from _thread import RLock
from collections import deque

msgspec: Any
try:
    import msgspec as _msgspec
except ImportError:  # the file runs without it, in JSON
    msgspec = None
else:
    msgspec = _msgspec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import Any, NoReturn

PROTOCOL = 1
FRAME_MAX = 16 * 1024 * 1024
MESSAGE_MAX = 128 * 1024 * 1024
HELLO = b"GPLN"
HELLO_MAX = 16 * 1024
PEERS_MAX = 256
HANGUP_GRACE_S = 0.5
EXIT_WAIT_S = 1.0
GREETING_S = 30.0
PROBE_S = 5.0
MESSAGE_CHARS_MAX = 8 * 1024
QUESTION_CHARS_MAX = 16 * 1024
LOG_BYTES_MAX = 64 * 1024
TRACEBACK_CHARS_MAX = 64 * 1024

EXIT_OK, EXIT_USAGE, EXIT_HANDLER, EXIT_SOCKET, EXIT_WORKERS, EXIT_GRACE = 0, 2, 3, 4, 5, 6
EXIT_SILENT = 1
"""What `--probe` ends with when nothing serves on the socket."""
EXIT_ASKED = 70
"""What a worker ends with whose handler raised SystemExit or KeyboardInterrupt."""

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
_MISSING: Any = object()
_CODES = frozenset(
    [
        "invalid_argument",
        "not_found",
        "already_exists",
        "conflict",
        "failed_precondition",
        "permission_denied",
        "resource_exhausted",
        "deadline_exceeded",
        "unavailable",
        "unsupported",
        "closed",
        "internal",
    ]
)

# ---------------------------------------------------------------------------------------------------------------------
# What handlers touch
# ---------------------------------------------------------------------------------------------------------------------


class FanOut:
    """Returned by a handler: one output for each item (an iterable, consumed once). None at all ends the route."""

    __groundplane__ = "fanout"

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items


class Stop:
    """Returned by a handler: the route ends here, with the input payload or the one given. Not a failure."""

    __groundplane__ = "stop"

    def __init__(self, payload: Any = _MISSING) -> None:
        self.payload = payload


class Signal(Exception):
    """What a handler raises to steer its delivery; not a failure of the handler."""


class Retry(Signal):
    """Try this envelope again, after `delay_s` seconds or when the actor's policy says. Costs an attempt."""

    __groundplane__ = "retry"

    def __init__(self, delay_s: float | None = None, message: str = "the handler asked for another attempt") -> None:
        if delay_s is not None and not 0 <= delay_s < float("inf"):
            raise ValueError(f"delay_s: {delay_s!r} is not a duration in seconds; use 0 or more, or None")
        super().__init__(message)
        self.delay_s = delay_s


class Reject(Signal):
    """This envelope can never succeed: no further attempt."""

    __groundplane__ = "reject"


class Declined(Exception):
    """The person who was asked did not accept: `action` is `decline` or `cancel`, `key` which question it was.

    Where the handler does not catch it, its envelope has failed and is not tried again.
    """

    __groundplane__ = "declined"
    code, reason, retryable = "failed_precondition", "declined", False

    def __init__(self, action: str, key: str = "") -> None:
        super().__init__(f"question {key!r} was not answered: {action}")
        self.action = action
        self.key = key


class Suspended(BaseException):
    """Ends a run of the handler that waits for an answer. The handler runs again, from its start, when there is one.

    No `Exception`, so that a handler does not take it for a failure. Whoever catches it must raise it again.
    """

    __groundplane__ = "suspended"


class Fault(Exception):
    """An error with a code and a reason of Groundplane's tables (`reference/errors`): what `Context` raises, where the
    ledger or the bus refuses or fails.
    """

    def __init__(self, code: str, reason: str, message: str, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retryable = retryable
        self.details: dict[str, Any] = {}


def _bad_input(message: str) -> Fault:
    return Fault("invalid_argument", "msg_parsing_error", message, False)


def _too_large(field: str, size: int, limit: int) -> Fault:
    text = f"{field}: {size} bytes are over the limit of {limit}; send less, or put the data into blobs"
    return Fault("invalid_argument", "payload_too_large", text, False)


class Join:
    """What a fan-in knows: `total` children were made, `missing` (indexes) have not arrived, and `reason` says why."""

    def __init__(self, total: int = 0, missing: Sequence[int] = (), reason: str | None = None) -> None:
        self.total = total
        self.missing = list(missing)
        self.reason = reason


class Context:
    """The call that a handler is in. All methods may be used from the handler's threads.

    `envelope` is the whole envelope as a dict, `headers` its headers; `attempt` counts from 1; `idempotency_key` is the
    same for every attempt; `join` is set in an actor that joins; `traceparent` is the W3C trace context of this call.
    """

    __groundplane__ = "context"

    def __init__(self, link: Any, call: Mapping[str, Any]) -> None:
        self._link = link
        self._call = call["id"]
        self.envelope: dict[str, Any] = call["envelope"]
        self.headers: dict[str, Any] = self.envelope.get("headers") or {}
        self.attempt: int = call.get("attempt") or 1
        self.idempotency_key: str = call.get("idempotency_key") or str(self.envelope.get("id", ""))
        join = call.get("join")
        self.join: Join | None = (
            Join(join.get("total", 0), join.get("missing") or (), join.get("reason")) if join else None
        )
        self._deadline_ms: int | None = call.get("deadline_ms")
        ends = [] if call.get("timeout_s") is None else [float(call["timeout_s"])]
        if self._deadline_ms is not None:
            ends.append(self._deadline_ms / 1000 - time.time())
        self._ends_at = time.monotonic() + min(ends) if ends else None
        self._unnamed = 0

    @property
    def traceparent(self) -> str | None:
        """The span of this call, where the sidecar makes spans; else the one that the work came with; None without a
        trace. `opentelemetry.propagate.extract(ctx.headers)` makes it the parent of the handler's own spans.
        """
        found = self.headers.get("traceparent")
        return found if isinstance(found, str) else None

    @property
    def deadline(self) -> datetime | None:
        """When the work must be done (UTC), or None. Absolute, and the same for every actor of the route."""
        if self._deadline_ms is None:
            return None
        from datetime import datetime, timezone

        return datetime.fromtimestamp(self._deadline_ms / 1000, timezone.utc)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until this call's timeout or the deadline, the earlier; never negative. None without either."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """True once nobody wants the outcome: cancelled, timed out, or the sidecar is gone. Cheap enough for a loop."""
        return bool(self._link.is_cancelled(self._call))

    def progress(self, percent: float, message: str = "") -> None:
        """Report how far this call is, 0 to 100; also a heartbeat. Never fails because of the connection."""
        if not 0 <= percent <= 100:
            raise ValueError(f"percent: {percent!r} is not between 0 and 100")
        self._link.event({"t": "progress", "id": self._call, "percent": percent, "message": str(message)})

    def heartbeat(self) -> None:
        """Tell that this call is alive."""
        self._link.event({"t": "heartbeat", "id": self._call})

    def once(self, key: str, fn: Callable[[], Any], *, in_doubt: str = "run") -> Any:
        """The result of `fn()`, which is called only if no attempt at this envelope has recorded a result under `key`
        before. Other envelopes and other hops have keys of their own.

        The result must be plain data. It is durable when this returns. Where an earlier attempt began and recorded no
        end, `in_doubt` decides: `run` again (right for effects that are idempotent by key) or `raise` with reason
        `effect_in_doubt`. In an async handler: `await ctx.once(key, fn)`, and `fn` may be async.
        """
        reply = self._link.ask(self._call, _once_begin(key, in_doubt))
        if reply.get("state") == "done":
            return reply.get("value")
        value = fn()
        self._link.ask(self._call, {"op": "once_end", "key": key, "value": value})
        return value

    def ask(self, message: str, schema: Any = bool, *, key: str | None = None) -> Any:
        """The answer of a person to a question. In an async handler: `await ctx.ask(…)`.

        While there is no answer this does not return: the run ends, the job is paused with its deadline frozen, and
        nothing waits in memory. With the answer the handler runs again **from its start** and comes here again, where
        the answer is returned at once. So effects before a question go into `once`, and the questions that a run asks
        must be the same, in the same order, or have a `key` (a letter, then letters, digits, `_`, `-`).

        `schema` is what is asked for: `bool`, `int`, `float`, `str`, a `Literal`, an enum or a list of texts to choose
        from, for one value; a map of names to these, a dataclass or a struct, for several; or a JSON Schema as MCP
        allows it for elicitation (a flat object of texts, numbers, booleans and choices). Returns the value, a map, or
        the dataclass or struct; raises `Declined` where the person declines.
        """
        return self._answers(*self._asked({key: (message, schema)}))[0]

    def ask_all(self, questions: Mapping[str, tuple[str, Any] | str]) -> dict[str, Any]:
        """The answers to several questions that are asked at once: `{"sure": ("Delete 3 files?", bool), …}` by key, as
        `ask` takes them. Returns a map with the same keys; raises `Declined` where one of them is declined.
        """
        return _by_key(questions, self._answers(*self._asked(questions)))

    def sample(self, messages: Any, *, max_tokens: int, key: str | None = None, **params: Any) -> dict[str, Any]:
        """A completion by the model of the client that called the tool: a map with `role`, `content`, `model`.

        `messages` is a text, or a list of maps with `role` and `content`; other parameters are those of MCP's
        `sampling/createMessage` (`systemPrompt`, `temperature`, `stopSequences`, …). As durable as `ask`.
        """
        return self._answers(*self._asked({key: _sampling(messages, max_tokens, params)}))[0]  # type: ignore[no-any-return]

    def roots(self, *, key: str | None = None) -> list[dict[str, Any]]:
        """The roots of the client that called the tool: maps with `uri` and perhaps `name`. As durable as `ask`."""
        return self._answers(*self._asked({key: _roots()}))[0]  # type: ignore[no-any-return]

    def _asked(self, questions: Mapping[Any, Any]) -> tuple[dict[str, Any], list[Question]]:
        """The frame that asks, and the questions in it."""
        if not questions:
            raise _bad_question("questions: {} is empty; ask at least one")
        asked = []
        for key, given in questions.items():
            question = given if isinstance(given, Question) else Question.of(given)
            if key is None:
                key, self._unnamed = str(self._unnamed), self._unnamed + 1
            elif not _is_key(key):
                raise _bad_question(f"key: {key!r} is not a letter, then at most 63 letters, digits, '_' and '-'")
            question.key = key
            asked.append(question)
        return {"op": "question", "questions": [one.shown() for one in asked]}, asked

    def _answers(self, frame: dict[str, Any], asked: list[Question]) -> list[Any]:
        return _answers_of(self._link.ask(self._call, frame), asked)

    def call(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 5.0,
        select: str = "round_robin",
        key: str | None = None,
        instance: str | None = None,
    ) -> Any:
        """The result of `service.method` on the plane's bus. In an async handler: `await ctx.call(…)`.

        It waits for `timeout_s`, and no longer than this call has; when this call is cancelled, so is the method.
        `select` (`round_robin`, `random`, or `sticky` by `key`) and `instance` choose who answers. Never repeated by
        itself; each attempt at this envelope calls again, with the same `idempotency_key`. Raises `Fault` with the code
        of the method's error.
        """
        options = {"timeout_s": timeout_s, "select": select, "key": key, "instance": instance}
        return self._on_bus("call", name, params, options)

    def publish(self, name: str, payload: Any = None, *, version: str = "1.0", event_id: str = "") -> Any:
        """Publish the event `domain.type`; durable when it returns. Its id. In an async handler: `await`.

        Another attempt at this envelope that publishes the very same gives it the same id, and the bus drops what has
        the id of an event of the last two minutes. With other content it is another event: `once` keeps the first, and
        an `event_id` of your own says what is the same.
        """
        return self._on_bus("publish", name, payload, {"version": version, "event_id": event_id})

    def send(
        self,
        name: str,
        payload: Mapping[str, Any] | None = None,
        *,
        priority: str = "normal",
        max_retries: int = 3,
        timeout_s: float = 300.0,
        command_id: str = "",
    ) -> Any:
        """Send the command `service.command`; durable when it returns. Its id, made as that of an event, by which its
        result is read later. `timeout_s` is the command's. In an async handler: `await`.
        """
        options = {"priority": priority, "max_retries": max_retries, "timeout_s": timeout_s, "command_id": command_id}
        return self._on_bus("send", name, payload, options)

    def _on_bus(self, op: str, name: str, value: Any, options: dict[str, Any]) -> Any:
        return self._link.ask(self._call, _bus_frame(op, name, value, options)).get("value")

    def log(self, level: str, message: str, **data: Any) -> None:
        """A line for the job's log, at one of the levels of RFC 5424 (`debug`, `info`, `notice`, `warning`, `error`,
        `critical`, `alert`, `emergency`), with plain data; clients that follow the job see it. Never fails because of
        the connection; of very many lines the last are left out.
        """
        if level not in _LOG_LEVELS:
            raise ValueError(f"level: {level!r} is none of {', '.join(_LOG_LEVELS)}")
        size = len(JsonCodec().encode(data)) + len(message)
        if size > LOG_BYTES_MAX:
            raise ValueError(f"data: {size} bytes are over the limit of {LOG_BYTES_MAX} of a line")
        self._link.event({"t": "log", "id": self._call, "level": level, "message": str(message), "data": data})

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter metric of this actor."""
        self._metric("counter", name, value, labels)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge metric of this actor."""
        self._metric("gauge", name, value, labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value into a histogram metric of this actor."""
        self._metric("histogram", name, value, labels)

    def _metric(self, kind: str, name: str, value: float, labels: dict[str, str]) -> None:
        frame = {"t": "metric", "id": self._call, "name": name, "kind": kind, "value": value, "labels": labels}
        self._link.event(frame)


class AsyncContext(Context):
    """The context of an async handler: `once`, what asks, and the bus are awaited."""

    async def once(self, key: str, fn: Callable[[], Any], *, in_doubt: str = "run") -> Any:
        reply = await self._link.ask(self._call, _once_begin(key, in_doubt))
        if reply.get("state") == "done":
            return reply.get("value")
        value = fn()
        if hasattr(value, "__await__"):
            value = await value
        await self._link.ask(self._call, {"op": "once_end", "key": key, "value": value})
        return value

    async def ask(self, message: str, schema: Any = bool, *, key: str | None = None) -> Any:
        return (await self._answers(*self._asked({key: (message, schema)})))[0]

    async def ask_all(self, questions: Mapping[str, tuple[str, Any] | str]) -> dict[str, Any]:  # type: ignore[override]
        return _by_key(questions, await self._answers(*self._asked(questions)))

    async def sample(  # type: ignore[override]
        self, messages: Any, *, max_tokens: int, key: str | None = None, **params: Any
    ) -> dict[str, Any]:
        answers = await self._answers(*self._asked({key: _sampling(messages, max_tokens, params)}))
        return answers[0]  # type: ignore[no-any-return]

    async def roots(self, *, key: str | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
        return (await self._answers(*self._asked({key: _roots()})))[0]  # type: ignore[no-any-return]

    async def _answers(self, frame: dict[str, Any], asked: list[Question]) -> list[Any]:  # type: ignore[override]
        return _answers_of(await self._link.ask(self._call, frame), asked)

    async def _on_bus(self, op: str, name: str, value: Any, options: dict[str, Any]) -> Any:
        return (await self._link.ask(self._call, _bus_frame(op, name, value, options))).get("value")


def _bus_frame(op: str, name: str, value: Any, options: dict[str, Any]) -> dict[str, Any]:
    if type(name) is not str or not name:
        raise ValueError(f"name: {name!r} is not a non-empty string")
    return {"op": op, "name": name, "value": value, "data": options}


def _once_begin(key: str, in_doubt: str) -> dict[str, Any]:
    if type(key) is not str or not key:
        raise ValueError(f"key: {key!r} is not a non-empty string")
    if in_doubt not in ("run", "raise"):
        raise ValueError(f"in_doubt: {in_doubt!r} is neither 'run' nor 'raise'")
    return {"op": "once_begin", "key": key, "in_doubt": in_doubt}


# ---------------------------------------------------------------------------------------------------------------------
# Questions: what may be asked for, and how answers are read
# ---------------------------------------------------------------------------------------------------------------------

_LOG_LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string"}
_DESCRIBED = ("type", "title", "description", "default")
_KEYWORDS = {
    "string": ("minLength", "maxLength", "format", "enum", "enumNames", "oneOf"),
    "number": ("minimum", "maximum"),
    "integer": ("minimum", "maximum"),
    "boolean": (),
    "array": ("items", "minItems", "maxItems"),
}
_FORMATS = ("email", "uri", "date", "date-time")


class Question:
    """What is asked, and `read`, which makes of the content of an answer what the handler gets."""

    def __init__(
        self,
        kind: str,
        message: Any,
        schema: dict[str, Any] | None = None,
        params: dict[str, Any] | None = None,
        read: Callable[[Any], Any] = lambda content: content,
    ) -> None:
        if not isinstance(message, str) or len(message) > QUESTION_CHARS_MAX:
            raise _bad_question(f"message: {_show(message)} is no text of at most {QUESTION_CHARS_MAX} characters")
        self.kind = kind
        self.message = message
        self.schema = schema
        self.params = params or {}
        self.read = read
        self.key = ""

    @classmethod
    def of(cls, given: Any) -> Question:
        """A question for a person: its message, or message and schema."""
        message, schema = given if isinstance(given, tuple) and len(given) == 2 else (given, bool)
        form, read = question_form(schema)
        return cls("elicit", message, form, None, read)

    def shown(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "key": self.key,
            "kind": self.kind,
            "message": self.message,
            "schema": self.schema,
            "params": self.params,
        }


def _sampling(messages: Any, max_tokens: int, params: dict[str, Any]) -> Question:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": {"type": "text", "text": messages}}]
    listed = isinstance(messages, list) and messages and all(isinstance(one, dict) for one in messages)
    if not listed or not all(one.get("role") in ("user", "assistant") and "content" in one for one in messages):
        raise _bad_question(f"messages: {_show(messages)} is neither a text nor a list of maps with role and content")
    if type(max_tokens) is not int or max_tokens < 1:
        raise _bad_question(f"max_tokens: {max_tokens!r} is not a number of tokens; use 1 or more")
    text = next((one["content"].get("text") for one in messages[::-1] if isinstance(one["content"], dict)), None)
    return Question("sample", str(text or "")[:1000], None, {"messages": messages, "maxTokens": max_tokens, **params})


def _roots() -> Question:
    return Question("roots", "", None, None, lambda content: content.get("roots") or [])


def _answers_of(reply: dict[str, Any], asked: list[Question]) -> list[Any]:
    """What a reply says to each question; `Suspended` where answers are missing."""
    if reply.get("state") != "answered":
        raise Suspended("the run ends here: it waits for an answer")
    answers = []
    for at, question in enumerate(asked):
        answer = reply["answers"][at]
        if answer.get("action") != "accept":
            raise Declined(str(answer.get("action")), question.key)
        answers.append(question.read(answer.get("content")))
    return answers


def _by_key(questions: Iterable[str], answers: list[Any]) -> dict[str, Any]:
    return {key: answers[at] for at, key in enumerate(questions)}


def _is_key(key: Any) -> bool:
    plain = isinstance(key, str) and key.isascii() and len(key) <= 64 and key[:1].isalpha()
    return plain and key.replace("_", "").replace("-", "").isalnum()


def _bad_question(message: str) -> Fault:
    return Fault("invalid_argument", "", message, False)


def question_form(given: Any) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """What is asked for as a JSON Schema that MCP allows for elicitation, and what reads an answer that fits it.

    `Fault` (`invalid_argument`) names the field and shows the value of what a client could not show as a form.
    """
    if isinstance(given, type) and (hasattr(given, "__dataclass_fields__") or hasattr(given, "__struct_fields__")):
        return _form_of_class(given)
    if not isinstance(given, dict):
        field, _ = _field("value", given)
        return _form({"value": field}, ["value"]), lambda content: content["value"]
    if "properties" in given or isinstance(given.get("type"), str):
        return _checked_form(given), dict
    fields = {name: _field(name, one) for name, one in given.items()}
    required = [name for name, (field, optional) in fields.items() if not optional and "default" not in field]
    return _form({name: field for name, (field, _) in fields.items()}, required), dict


def _form(fields: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return _checked_form({"type": "object", "properties": fields, "required": required})


def _form_of_class(given: type) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """Of a dataclass or a struct: its fields, those without a default required."""
    fields: dict[str, Any] = {}
    empty: dict[str, Any] = {}
    required: list[str] = []
    types = _resolved(given)
    for name, default in _defaults(given):
        field, optional = _field(name, types.get(name))
        if default is _MISSING and optional:
            empty[name] = None
        elif default is _MISSING:
            required.append(name)
        elif default is not None:
            field["default"] = getattr(default, "value", default)
        fields[name] = field

    def read(content: Any) -> Any:
        values = {**empty, **content}
        return given(**values) if msgspec is None else msgspec.convert(values, given)

    return _form(fields, required), read


def _defaults(given: Any) -> Iterable[tuple[str, Any]]:
    """The fields of a dataclass or a struct, each with its default or `_MISSING`."""
    if hasattr(given, "__struct_fields__"):
        nothing, found = msgspec.NODEFAULT, msgspec.structs.fields(given)
    else:
        import dataclasses

        nothing, found = dataclasses.MISSING, dataclasses.fields(given)
    for one in found:
        made = one.default_factory is not nothing
        default = one.default_factory() if made else one.default
        yield one.name, _MISSING if default is nothing else default


def _field(name: str, given: Any) -> tuple[dict[str, Any], bool]:
    """The schema of one field from a type, a list of choices or a schema; and whether it may be left out."""
    if isinstance(given, dict):
        return dict(given), False
    if isinstance(given, type) and given in _PLAIN:
        return {"type": _PLAIN[given]}, False
    if isinstance(given, list):
        return {"type": "string", "enum": list(given)}, False
    if isinstance(given, type) and hasattr(given, "__members__"):
        return {"type": "string", "enum": [one.value for one in given]}, False  # type: ignore[attr-defined]
    origin: Any = getattr(given, "__origin__", None)
    args: Any = getattr(given, "__args__", ())
    if str(origin) == "typing.Literal":
        return {"type": "string", "enum": list(args)}, False
    if origin is list and len(args) == 1:
        return {"type": "array", "items": _field(name, args[0])[0]}, False
    some = [one for one in args if one is not type(None)]
    is_union = str(origin) == "typing.Union" or type(given).__name__ == "UnionType"
    if is_union and len(some) == 1 and len(args) == 2:
        return _field(name, some[0])[0], True
    raise _bad_question(
        f"schema.{name}: {_show(given)} cannot be asked for; use bool, int, float, str, a Literal, an enum, a list of "
        "texts to choose from, or a JSON Schema of these"
    )


def _checked_form(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, where it is one that MCP allows: a flat object of fields that a form can show."""
    fields = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(fields, dict):
        raise _bad_question(f"schema: {_show(schema)} is no object with properties")
    for keyword, value in schema.items():
        closed = keyword == "additionalProperties" and value is False
        if keyword not in ("type", "properties", "required", "title", "description", "$schema") and not closed:
            raise _bad_question(f"schema.{keyword}: {_show(value)} is nothing that a form can show; leave it out")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(name in fields for name in required):
        raise _bad_question(f"schema.required: {_show(required)} is no list of names of properties")
    for name, field in fields.items():
        _check_field(f"schema.{name}", field)
    return schema


def _check_field(where: str, field: Any) -> None:
    kind = field.get("type") if isinstance(field, dict) else None
    if not isinstance(kind, str) or kind not in _KEYWORDS:
        raise _bad_question(f"{where}: {_show(field)} is no text, number, boolean or choice; a form is flat")
    for keyword, value in field.items():
        if keyword not in _DESCRIBED and keyword not in _KEYWORDS[kind]:
            raise _bad_question(f"{where}.{keyword}: {_show(value)} is nothing that a form can show for {kind!r}")
    if field.get("format", "email") not in _FORMATS:
        raise _bad_question(f"{where}.format: {_show(field['format'])} is none of {', '.join(_FORMATS)}")
    if kind == "array":
        items = field.get("items")
        if not isinstance(items, dict) or not ("enum" in items or "anyOf" in items):
            raise _bad_question(f"{where}.items: {_show(items)} is no choice; of a list, choices alone can be shown")
        _check_choices(f"{where}.items", items, "anyOf")
    else:
        _check_choices(where, field, "oneOf")
    _check_default(where, field, kind)


def _check_choices(where: str, field: dict[str, Any], titled: str) -> None:
    plain: Any = field.get("enum")
    named: Any = field.get(titled)
    if "enum" in field and not (isinstance(plain, list) and plain and all(isinstance(one, str) for one in plain)):
        raise _bad_question(f"{where}.enum: {_show(plain)} is no list of texts")
    if titled not in field:
        return
    fits = isinstance(named, list) and named and all(isinstance(one, dict) for one in named)
    if not fits or not all(isinstance(one.get("const"), str) and isinstance(one.get("title"), str) for one in named):
        raise _bad_question(f"{where}.{titled}: {_show(named)} is no list of maps with the texts const and title")


def _check_default(where: str, field: dict[str, Any], kind: str) -> None:
    if "default" not in field:
        return
    fits = {"string": str, "boolean": bool, "array": list, "number": (int, float), "integer": int}
    value = field["default"]
    if not isinstance(value, fits[kind]) or (isinstance(value, bool) and kind != "boolean"):  # type: ignore[arg-type]
        raise _bad_question(f"{where}.default: {_show(value)} does not fit {kind!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Frames and codecs
# ---------------------------------------------------------------------------------------------------------------------


class JsonCodec:
    """JSON that carries what JSON can carry: no NaN, no infinity, no integer beyond 64 bits."""

    name = "json"

    def encode(self, value: Any) -> bytes:
        """`value` as UTF-8; else a `Fault` that says what it holds that cannot be sent."""
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_plain)
            body = text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise _unsendable(error) from error
        if len(body) > 18 and _has_long_integer(value, text):
            raise _unsendable(OverflowError("an integer beyond 64 bits"))
        return body

    def decode(self, body: bytes) -> Any:
        """The value in `body`; else a `Fault` `msg_parsing_error`."""
        try:
            return json.loads(str(body, "utf-8"), parse_int=_integer, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError) as error:
            raise _bad_input(f"frame: not JSON that can be carried ({error})") from error

    def join(self, head: dict[str, Any], outputs: list[bytes]) -> bytes:
        """`head` with the list of encoded outputs in it."""
        return b'%b,"outputs":[%b]}' % (self.encode(head)[:-1], b",".join(outputs))


class MsgpackCodec:
    """MessagePack by msgspec; NaN, infinities and bytes pass unchanged."""

    name = "msgpack"

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
        self._decode = msgspec.msgpack.Decoder().decode

    def encode(self, value: Any) -> bytes:
        """`value` as MessagePack; else a `Fault` that says what it holds that cannot be sent."""
        try:
            return bytes(self._encode(value))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise _unsendable(error) from error

    def decode(self, body: bytes) -> Any:
        """The value in `body`; else a `Fault` `msg_parsing_error`."""
        try:
            return self._decode(body)
        except (ValueError, RecursionError) as error:
            raise _bad_input(f"frame: not MessagePack that can be read ({error})") from error

    def join(self, head: dict[str, Any], outputs: list[bytes]) -> bytes:
        """`head` with the list of encoded outputs in it."""
        return bytes(self._encode({**head, "outputs": [msgspec.Raw(output) for output in outputs]}))


def _unsendable(error: BaseException) -> Fault:
    return Fault(
        "internal", "processing_error", f"output: {error}; return plain data (null, numbers, text, lists, maps)"
    )


def _plain(value: Any) -> Any:
    """What an encoder asks for a type that it does not know."""
    if hasattr(type(value), "model_dump"):
        return value.model_dump(mode="json")
    if msgspec is not None:
        builtins = msgspec.to_builtins(value)
        if type(builtins) is not type(value):
            return builtins
    raise TypeError(f"a value of type {_name(type(value))} cannot be sent")


def _has_long_integer(value: Any, text: str) -> bool:
    """Whether an integer in `value` is beyond 64 bits; walks only where the text has that many digits in a row."""
    import re

    if not re.search("[0-9]{19}", text):
        return False
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, (list, tuple)):
            left += one
        elif isinstance(one, int):
            if not -(2**63) <= one < 2**64:
                return True
        elif not isinstance(one, (str, float, type(None))):
            left.append(_plain(one))
    return False


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"the number {text[:40]} is beyond 64 bits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"the number {text[:40]} is not finite")
    return number


def _codec(names: Iterable[Any]) -> JsonCodec | MsgpackCodec:
    """The first codec of the sidecar's that exists here."""
    for name in names:
        if name == "msgpack" and msgspec is not None:
            return MsgpackCodec()
        if name == "json":
            break
    return JsonCodec()


class FrameReader:
    """Cuts a stream into messages. A frame whose length has the top bit set is continued by the next frame."""

    def __init__(self, frame_max: int, message_max: int) -> None:
        self._frame_max = frame_max
        self._message_max = max(frame_max, message_max)
        self._continued = self._message_max > frame_max
        self._data = bytearray()
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def missing(self) -> int:
        """How many bytes the frame at hand lacks, as far as known."""
        if len(self._data) < 4:
            return 4 - len(self._data)
        return (int.from_bytes(self._data[:4], "big") & 0x7FFFFFFF) + 4 - len(self._data)

    def feed(self, data: bytes) -> None:
        self._data += data

    def next(self) -> bytes | None:
        """The next whole message, or None; `Fault` `payload_too_large` for one over the limits."""
        while len(self._data) >= 4:
            length = int.from_bytes(self._data[:4], "big")
            more = bool(length & 0x80000000) and self._continued
            if more:
                length &= 0x7FFFFFFF
            if length > self._frame_max:
                raise _too_large("frame", length, self._frame_max)
            if self._size + length > self._message_max:
                raise _too_large("message", self._size + length, self._message_max)
            if len(self._data) < 4 + length:
                return None
            with memoryview(self._data) as view:
                body = bytes(view[4 : 4 + length])
            del self._data[: 4 + length]
            if not more and not self._parts:
                return body
            self._parts.append(body)
            self._size += length
            if not more:
                body = b"".join(self._parts)
                self._parts, self._size = [], 0
                return body
        return None


def frame(body: bytes, frame_max: int = FRAME_MAX) -> bytes:
    """`body` as it travels: one frame, or several where it is longer than `frame_max`."""
    if len(body) <= frame_max:
        return len(body).to_bytes(4, "big") + body
    pieces = []
    for start in range(0, len(body), frame_max):
        piece = body[start : start + frame_max]
        more = 0x80000000 if start + frame_max < len(body) else 0
        pieces += [(len(piece) | more).to_bytes(4, "big"), piece]
    return b"".join(pieces)


class Wire:
    """Protocol 1: maps in a codec."""

    lists_fan_out = False

    def __init__(self, codec: JsonCodec | MsgpackCodec, frame_max: int, message_max: int) -> None:
        self.codec = codec
        self.frame_max = frame_max
        self.message_max = max(frame_max, message_max)

    def parse(self, body: bytes) -> dict[str, Any]:
        """A message of the sidecar; a `call` has all that handling needs."""
        message = self.codec.decode(body)
        if not isinstance(message, dict):
            raise _bad_input(f"frame: {_show(message)} is not a map")
        if message.get("t") == "call" and not (
            isinstance(message.get("id"), int) and isinstance(message.get("envelope"), dict)
        ):
            raise _bad_input(f"call: id {_show(message.get('id'))} or envelope is missing or of the wrong type")
        return message

    def output(self, payload: Any, route: Any, headers: Any, _envelope: Mapping[str, Any]) -> bytes:
        """One output, encoded."""
        one = {"payload": payload}
        if route is not None:
            one["route"] = route
        if headers is not None:
            one["headers"] = headers
        return self.codec.encode(one)

    def result(self, call: Any, outputs: Outputs) -> bytes:
        """The frame that ends a call which succeeded."""
        head = {"t": "result", "id": call, "end": "" if outputs.encoded else "aborted"}
        if outputs.fanout:
            head["fanout"] = True
        if outputs.stopped_with is not _MISSING:
            head["payload"] = outputs.stopped_with
        return self.codec.join(head, outputs.encoded)

    def suspended(self, call: Any) -> bytes:
        """The frame that ends a call which waits for an answer."""
        return self.codec.encode({"t": "result", "id": call, "outputs": [], "end": "suspended"})

    def error(self, call: Any, error: dict[str, Any]) -> bytes:
        """The frame that ends a call which failed; without a call's id also the connection."""
        return self.codec.encode({"t": "error", "id": call, "error": error})


class OldWire(Wire):
    """Protocol 0: one JSON message of the queue in, a JSON array out."""

    lists_fan_out = True

    def __init__(self) -> None:
        super().__init__(JsonCodec(), FRAME_MAX, FRAME_MAX)

    def parse(self, body: bytes) -> dict[str, Any]:
        message = self.codec.decode(body)
        if not isinstance(message, dict) or "payload" not in message:
            raise _bad_input(f"message: {_show(message)} is not an object with a payload")
        route = message.get("route")
        if route is not None and not (isinstance(route, dict) and isinstance(route.get("current"), int)):
            raise _bad_input(f"route: {_show(route)} is not an object with an index 'current'")
        return {"t": "call", "id": 0, "envelope": message, "attempt": message.get("attempt")}

    def output(self, payload: Any, route: Any, headers: Any, envelope: Mapping[str, Any]) -> bytes:
        route = _advanced(envelope.get("route")) if route is None else route
        headers = envelope.get("headers") if headers is None else headers
        return super().output(payload, route, headers, envelope)

    def result(self, call: Any, outputs: Outputs) -> bytes:
        return b"[%b]" % b",".join(outputs.encoded)

    def error(self, call: Any, error: dict[str, Any]) -> bytes:
        kept = {"message": error["message"], "type": error["type"].rpartition(".")[2], "traceback": error["traceback"]}
        return self.codec.encode([{"error": error["reason"], "details": kept}])


def _advanced(route: Any) -> Any:
    return {**route, "current": route["current"] + 1} if isinstance(route, dict) else None


# ---------------------------------------------------------------------------------------------------------------------
# The handler: found, bound, called
# ---------------------------------------------------------------------------------------------------------------------


class HandlerError(Exception):
    """The handler cannot be imported, or is none (reason `handler_import_failed`)."""


def _prepare_path() -> None:
    """Search the working directory and PYTHONPATH; not the package that this file lies in, when run as a script."""
    here = os.path.dirname(os.path.abspath(__file__))
    in_package = os.path.exists(os.path.join(here, "__init__.py"))
    if __name__ == "__main__" and in_package and sys.path and os.path.abspath(sys.path[0]) == here:
        del sys.path[0]
    wanted = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:0] = [path for path in wanted if path not in sys.path]


def find(spec: str) -> tuple[Any, type | None, str]:
    """What `spec` names; if that is a method, the class to instantiate for it; and its name.

    Imports; `HandlerError` if that fails.
    """
    name, colon, attribute = spec.partition(":")
    if not name or (colon and not attribute):
        raise HandlerError(f"handler: {spec!r} is not module:function, module.function or path/to/file.py:function")
    try:
        if name.endswith(".py"):
            module, names = _import_file(name), attribute.split(".")
        elif colon:
            module, names = _import(name)[0], attribute.split(".")
        else:
            module, names = _import(name, partly=True)
    except HandlerError:
        raise
    except (Exception, SystemExit) as error:
        raise HandlerError(f"handler: {spec!r} cannot be imported\n{_traceback(error)}") from error
    return _attribute(spec, module, names)


def _import(name: str, partly: bool = False) -> tuple[Any, list[str]]:
    """The module `name`, or with `partly` the longest prefix of it that is one, and the names that are left."""
    from importlib import import_module

    prefix, left = name, []  # type: str, list[str]
    while True:
        try:
            return import_module(prefix), left
        except ModuleNotFoundError as error:
            missing = error.name and (prefix == error.name or prefix.startswith(error.name + "."))
            if not missing or not partly or "." not in prefix:
                raise
        prefix, _, last = prefix.rpartition(".")
        left.insert(0, last)


def _import_file(path: str) -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    if not os.path.isfile(path):
        raise HandlerError(f"handler: there is no file {path!r}")
    folder, file = os.path.split(os.path.abspath(path))
    sys.path.insert(0, folder)
    name = file[:-3] if file[:-3] not in sys.modules else "groundplane_handler_" + file[:-3]
    spec = spec_from_file_location(name, os.path.join(folder, file))
    if spec is None or spec.loader is None:
        raise HandlerError(f"handler: {path!r} is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _attribute(spec: str, module: Any, names: list[str]) -> tuple[Any, type | None, str]:
    if not names or not all(names):
        raise HandlerError(f"handler: {spec!r} names a module only; add the function, as in module:function")
    target, owner = module, None
    for name in names:
        owner, target = target, getattr(target, name, _MISSING)
        if target is _MISSING:
            raise HandlerError(f"handler: {spec!r}: {owner!r} has no attribute {name!r}")
    if isinstance(target, type):
        method = "process" if hasattr(target, "process") else "__call__"
        if method not in dir(target):
            raise HandlerError(f"handler: class {spec!r} has neither a method 'process' nor '__call__'")
        return getattr(target, method), target, method
    if not callable(target):
        raise HandlerError(f"handler: {spec!r} is {_show(target)}, which cannot be called")
    if isinstance(owner, type):
        static = next((vars(one)[names[-1]] for one in owner.__mro__ if names[-1] in vars(one)), None)
        return target, owner if type(static) is type(find) else None, names[-1]
    return target, None, names[-1]


class Handler:
    """The user's function: imported (`load`), instantiated (`bind`), called (`invoke`)."""

    def __init__(self, spec: str, mode: str, cuda_cleanup: str | None = None) -> None:
        self.spec = spec
        self.mode = mode
        self._cleanup_spec = cuda_cleanup
        self._cleanup: Callable[[], Any] | None = None
        self._target: Any = None
        self._owner: type | None = None
        self.is_async = False

    def load(self) -> None:
        """Import it; `HandlerError` when that cannot be done."""
        self._target, self._owner, self._method = find(self.spec)
        self.is_async = bool(_flags(self._target) & 0x280)  # coroutine, async generator
        if self._cleanup_spec:
            self._cleanup = find(self._cleanup_spec)[0]
        _show_logs()

    def bind(self) -> None:
        """Instantiate a class, read the signature. Once in each worker."""
        self._call = self._target
        try:
            if self._owner is not None:
                self._call = getattr(self._owner(), self._method)
            self._parameters = Parameters(self._call)
        except Exception as error:
            raise HandlerError(f"handler: {self.spec!r} cannot be set up\n{_traceback(error)}") from error

    def invoke(self, envelope: dict[str, Any], context: Context) -> Any:
        """Call it; what comes back may be awaitable or a generator."""
        if self.mode == "message":
            return self._call(envelope)
        args, kwargs = self._parameters.arguments(envelope.get("payload"), context, envelope)
        return self._call(*args, **kwargs)

    def clean_cuda(self) -> None:
        """After GPU memory ran out: the hook that was named, else torch's own, if torch is there."""
        torch = sys.modules.get("torch")
        try:
            if self._cleanup is not None:
                self._cleanup()
            elif torch is not None:
                torch.cuda.empty_cache()
        except Exception as error:
            log("WARNING", f"cleanup after cuda_oom_error failed: {type(error).__name__}: {_text(error)}")


def _flags(target: Any) -> int:
    while hasattr(target, "func") and not hasattr(target, "__code__"):
        target = target.func  # functools.partial
    if not hasattr(target, "__code__") and not hasattr(target, "__func__"):
        target = vars(type(target)).get("__call__", target)
    code = getattr(getattr(target, "__func__", target), "__code__", None)
    return code.co_flags if code is not None else 0


class Parameters:
    """A signature, and how a payload becomes its arguments (the rules are in the module's docstring)."""

    def __init__(self, function: Any) -> None:
        self._positional: list[str] = []
        self._checks: dict[str, Callable[[Any], Any] | None] = {}
        self._annotations: dict[str, Any] = {}
        self._context: str | None = None
        self._envelope: tuple[str, Any] | None = None
        self._starred = self._keywords = False
        required = []
        for name, kind, is_required, annotation in signature(function):
            marker = _marker(annotation)
            if kind in (2, 4):
                self._starred, self._keywords = self._starred or kind == 2, self._keywords or kind == 4
            elif marker == "context" or (annotation is _MISSING and name == "ctx"):
                self._context = name
            elif marker == "envelope":
                self._envelope = (name, annotation)
            else:
                self._annotations[name] = annotation
                self._checks[name] = _checker(annotation)
                required += [name] if is_required else []
            if kind == 0:
                self._positional.append(name)
        self._required = frozenset(required)
        self._names = self._checks.keys()
        one = required if len(required) == 1 else list(self._names) if len(self._names) == 1 and not required else []
        self._whole = one[0] if one else None
        self._whole_takes_maps = bool(one) and _takes_maps(self._annotations[one[0]])

    def arguments(self, payload: Any, context: Context, envelope: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of a call; `Fault` `msg_parsing_error` where the payload does not fit."""
        values: dict[str, Any] = {}
        rest: list[Any] = []
        if isinstance(payload, dict) and self._fits_by_name(payload):
            values = dict(payload)
        elif self._whole is not None and (
            not isinstance(payload, dict) or (self._whole_takes_maps and self._whole not in payload)
        ):
            values = {self._whole: payload}
        elif self._starred and not self._names:
            rest = [payload]
        elif not (payload is None and not self._required) and not (self._envelope and not self._names):
            raise self._mismatch(payload)
        for name, value in values.items():
            check = self._checks.get(name)
            if check is not None:
                values[name] = self._checked(name, check, value)
        if self._context is not None:
            values[self._context] = context
        if self._envelope is not None:
            values[self._envelope[0]] = _envelope(self._envelope[1], envelope)
        if self._positional:
            rest = [values.pop(name) for name in self._positional if name in values] + rest
        return rest, values

    def _fits_by_name(self, payload: dict[Any, Any]) -> bool:
        keys = payload.keys()
        if not self._required <= keys:
            return False
        if not self._keywords:
            return keys <= self._names
        injected = {self._context, self._envelope[0] if self._envelope else None}
        return all(type(key) is str and key not in injected for key in keys)

    def _checked(self, name: str, check: Callable[[Any], Any], value: Any) -> Any:
        try:
            return check(value)
        except (ValueError, TypeError) as error:
            annotation = self._annotations[name]
            wanted = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
            raise _bad_input(f"{name}: {_show(value)} does not fit {wanted or annotation}: {_text(error)}") from error

    def _mismatch(self, payload: Any) -> Fault:
        takes = ", ".join(name if name in self._required else name + "=" for name in self._names) or "nothing"
        if not isinstance(payload, dict):
            return _bad_input(f"payload: {_show(payload)} is not a map; the handler takes ({takes}) by name")
        wrong = [f"{name!r} is missing" for name in self._names if name in self._required and name not in payload]
        wrong += [f"{_show(key)} is unknown" for key in payload if key not in self._names][:5]
        return _bad_input(f"payload: {', '.join(wrong)} in {_show(payload)}; the handler takes ({takes})")


def signature(function: Any) -> list[tuple[str, int, bool, Any]]:
    """Parameters as name, kind (numbers of `inspect`), whether required, annotation or `_MISSING`."""
    plain = getattr(function, "__func__", function)
    if type(plain) is not type(find) or hasattr(plain, "__wrapped__") or hasattr(plain, "__signature__"):
        return _inspected(function)
    code, defaults = plain.__code__, plain.__defaults__ or ()
    annotations = _resolved(plain)
    count, only = code.co_argcount, code.co_kwonlyargcount
    found = []
    for index, name in enumerate(code.co_varnames[: count + only]):
        kind = 3 if index >= count else 0 if index < code.co_posonlyargcount else 1
        has_default = name in (plain.__kwdefaults__ or {}) if kind == 3 else index >= count - len(defaults)
        found.append((name, kind, not has_default, annotations.get(name, _MISSING)))
    found += [("", kind, False, _MISSING) for flag, kind in ((4, 2), (8, 4)) if code.co_flags & flag]
    return found[1:] if plain is not function else found


def _inspected(function: Any) -> list[tuple[str, int, bool, Any]]:
    import inspect

    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a built-in without a signature
        return [("payload", 0, True, _MISSING)]
    annotations = _resolved(inspect.unwrap(function))
    return [(p.name, int(p.kind), p.default is p.empty, annotations.get(p.name, _MISSING)) for p in parameters]


def _resolved(function: Any) -> dict[str, Any]:
    """Annotations with their strings evaluated; one that cannot be is kept as a string, and not checked."""
    annotations = dict(getattr(function, "__annotations__", None) or {})
    if any(isinstance(one, str) for one in annotations.values()):
        import typing

        try:
            return typing.get_type_hints(function, include_extras=True)
        except Exception as error:  # names under TYPE_CHECKING, or newer syntax than this Python's
            log("DEBUG", f"annotations of {function!r} are not checked: {_text(error)}")
    return annotations


def _marker(annotation: Any) -> Any:
    if isinstance(annotation, str):
        last = annotation.replace("'", "").replace('"', "").split("|")[0].strip().rpartition(".")[2]
        return {"Context": "context", "Envelope": "envelope"}.get(last)
    for one in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(getattr(one, "__groundplane__", None), str):
            return one.__groundplane__
    return None


def _takes_maps(annotation: Any) -> bool:
    origin = getattr(annotation, "__origin__", annotation)
    return origin not in (int, float, bool, str, bytes, list, tuple, set, frozenset)


def _checker(annotation: Any) -> Callable[[Any], Any] | None:
    """What turns a value into the annotated type, or None where anything goes."""
    if annotation in (_MISSING, object) or isinstance(annotation, str) or getattr(annotation, "_name", "") == "Any":
        return None
    if hasattr(annotation, "model_validate"):
        return annotation.model_validate  # type: ignore[no-any-return]
    if msgspec is None:
        return lambda value: _check_plainly(annotation, value)
    try:
        msgspec.convert(None, annotation, strict=True)
    except TypeError:
        return None  # a type that msgspec does not know
    except ValueError:
        pass  # it knows the type, and null does not fit
    return lambda value: value if type(value) is annotation else msgspec.convert(value, annotation, strict=True)


def _check_plainly(annotation: Any, value: Any) -> Any:
    """The check without msgspec: built-in types, their unions, the outside of containers."""
    is_union = str(getattr(annotation, "__origin__", "")) == "typing.Union" or type(annotation).__name__ == "UnionType"
    choices = annotation.__args__ if is_union else (annotation,)
    kinds = [getattr(one, "__origin__", one) for one in choices]
    if not all(kind in (int, float, bool, str, list, dict, type(None), None) for kind in kinds):
        return value
    if type(value) in kinds or (value is None and any(kind is None for kind in kinds)):
        return value
    if type(value) is int and float in kinds:
        return float(value)
    raise ValueError(f"expected {' or '.join(getattr(kind, '__name__', 'null') for kind in kinds)}")


def _envelope(annotation: Any, envelope: dict[str, Any]) -> Any:
    if msgspec is None or not isinstance(annotation, type) or not issubclass(annotation, msgspec.Struct):
        return envelope
    try:
        return msgspec.convert(envelope, annotation)
    except ValueError as error:
        raise _bad_input(f"envelope: {_text(error)}") from error


class Outputs:
    """What a handler returned, encoded output by output, so that too much is noticed early."""

    def __init__(self, wire: Wire, mode: str, envelope: dict[str, Any]) -> None:
        self._wire = wire
        self._mode = mode
        self._envelope = envelope
        route = envelope.get("route")
        self._current = route.get("current") if isinstance(route, dict) else None
        self._size = 0
        self.encoded: list[bytes] = []
        self.fanout = False
        self.stopped_with: Any = _MISSING

    def take(self, value: Any) -> None:
        """Map a returned value to outputs."""
        marker = getattr(type(value), "__groundplane__", None)
        if value is None:
            return
        if marker == "stop":
            self.stopped_with = _MISSING if type(value.payload) is object else value.payload
        elif marker == "fanout" or type(value) is _Generator or self._is_old_fan_out(value):
            self.fanout = True
            for item in value.items if marker == "fanout" else value:
                self.add(item)
        else:
            self.add(value)

    def _is_old_fan_out(self, value: Any) -> bool:
        return isinstance(value, list) and (self._wire.lists_fan_out or self._mode == "message")

    def add(self, item: Any) -> None:
        """One output; `Fault` for what cannot be sent or is too large."""
        payload, route, headers = item, None, None
        if getattr(type(item), "__groundplane__", None) == "envelope":
            payload, headers = item.payload, dict(item.headers)
            route = {"actors": list(item.route.actors), "current": item.route.current}
        elif self._mode == "message" and isinstance(item, dict) and "payload" in item:
            payload, route, headers = item["payload"], item.get("route"), item.get("headers")
        if isinstance(route, dict) and route.get("current") == self._current and isinstance(self._current, int):
            route = _advanced(route)
        body = self._wire.output(payload, route, headers, self._envelope)
        self._size += len(body) + 1
        if self._size > self._wire.message_max - 1024:
            raise _too_large("output", self._size, self._wire.message_max)
        self.encoded.append(body)


_Generator = type(_ for _ in ())


async def _settle_awaitable(value: Any, outputs: Outputs) -> None:
    """Await or iterate what an async function gave, into `outputs`."""
    if hasattr(value, "__await__"):
        value = await value
    if not hasattr(type(value), "__aiter__"):
        outputs.take(value)
        return
    outputs.fanout = True
    async for item in value:
        outputs.add(item)


# ---------------------------------------------------------------------------------------------------------------------
# Errors as values
# ---------------------------------------------------------------------------------------------------------------------


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as the `error` map of the protocol; bounded, and always sendable."""
    ancestry = [one for one in type(error).__mro__ if one is not object]
    info: dict[str, Any] = {
        "reason": "processing_error",
        "message": _text(error),
        "type": _name(type(error)),
        "types": [_name(one) for one in ancestry],
        "traceback": "" if isinstance(error, Fault) and error.__cause__ is None else _traceback(error),
        "details": {},
        "retryable": None,
        "retry_after_s": None,
    }
    marker = getattr(error, "__groundplane__", None)
    if marker == "retry":
        info.update(retryable=True, retry_after_s=getattr(error, "delay_s", None))
    elif marker == "reject":
        info.update(reason="non_retryable", retryable=False)
    elif _is_cuda_oom(error, info["message"]):
        info.update(reason="cuda_oom_error")
    elif isinstance(error, MemoryError):
        info.update(reason="oom_error")
    elif _is_coded(error):
        details = _sendable(getattr(error, "details", None) or {})
        reason = getattr(error, "reason", "") or "processing_error"
        retryable = getattr(error, "retryable", None)
        info.update(reason=str(reason), retryable=retryable if isinstance(retryable, bool) else None, details=details)
        info["code"] = getattr(error, "code", "internal")
    return info


def _is_coded(error: BaseException) -> bool:
    """Whether it has the shape of Groundplane's errors: a known code, a reason, and whether to try again."""
    code = getattr(error, "code", None)
    return isinstance(code, str) and code in _CODES and hasattr(error, "reason") and hasattr(error, "retryable")


def _is_cuda_oom(error: BaseException, message: str) -> bool:
    names = [_name(one).lower() for one in type(error).__mro__]
    if any("outofmemoryerror" in name and ("torch" in name or "cuda" in name) for name in names):
        return True
    text = message.lower()
    return "cuda" in text and "out of memory" in text


def _sendable(details: Any) -> dict[str, Any]:
    try:
        return json.loads(JsonCodec().encode(details))  # type: ignore[no-any-return]
    except Fault:
        return {"repr": _show(details)}


def _name(cls: type) -> str:
    module = "groundplane.mesh.runtime" if cls.__module__ == __name__ else cls.__module__
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return _bounded(str(error), MESSAGE_CHARS_MAX)
    except Exception as second:
        return f"<{type(error).__name__}, and its text raised {type(second).__name__}>"


def _traceback(error: BaseException) -> str:
    """The traceback without the runtime's own frames."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__ and trace.tb_next is not None:
        trace = trace.tb_next
    try:
        lines = traceback.format_exception(type(error), error, trace)
    except Exception as second:  # an exception whose text raises, or a chain without end
        return f"<traceback of {type(error).__name__} failed: {type(second).__name__}>"
    return _bounded("".join(lines), TRACEBACK_CHARS_MAX)


def _bounded(text: str, size: int) -> str:
    if len(text) > size:
        text = f"{text[: size // 4]}\n… {len(text) - size} characters left out …\n{text[-(size - size // 4 - 64) :]}"
    return text.encode("utf-8", "backslashreplace").decode()


def _show(value: Any) -> str:
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 100
    try:
        return _bounded(short.repr(value), 400)
    except Exception as error:
        return f"<{type(value).__name__}, and its repr raised {type(error).__name__}>"


# ---------------------------------------------------------------------------------------------------------------------
# Logging: one line on stderr, never a payload
# ---------------------------------------------------------------------------------------------------------------------

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_level = 20


def log(level: str, message: str) -> None:
    """A line on stderr when `level` is enabled."""
    if _LEVELS[level] >= _level:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            os.write(2, f"{stamp} {level} groundplane.runtime[{os.getpid()}] {message}\n".encode("utf-8", "replace"))
        except OSError:
            return  # stderr is closed; there is nobody to tell


def _flush() -> None:
    """Before a fork, or what is buffered would be written twice; before an end, or it would be lost."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError, OSError):
            continue  # closed, or there is none


def _show_logs() -> None:
    """Handlers' own `logging` is shown at the chosen level, unless they have set it up themselves."""
    logging = sys.modules.get("logging")
    if logging is not None and not logging.getLogger().handlers:
        logging.basicConfig(level=_level)


# ---------------------------------------------------------------------------------------------------------------------
# The worker: serves one connection after the other
# ---------------------------------------------------------------------------------------------------------------------


class Connection:
    """A connection of a worker whose handler is synchronous: blocking, one call at a time."""

    def __init__(self, sock: socket.socket, wire: Wire, rest: bytes) -> None:
        self._sock = sock
        self._wire = wire
        self._reader = FrameReader(wire.frame_max, wire.message_max)
        self._reader.feed(rest)
        self._reading, self._writing = RLock(), RLock()
        self._calls: deque[dict[str, Any]] = deque()
        self._cancelled: set[Any] = set()
        self._replies: dict[int, dict[str, Any]] = {}
        self._seq = 0
        self._lost = False
        self._fault: Fault | None = None

    def next_call(self) -> dict[str, Any] | None:
        """Waits for the next call; None when the peer has gone."""
        self._cancelled.clear()
        with self._reading:
            self._sort_received()
            while not self._calls and not self._lost:
                self._receive(0)
            if self._calls:
                return self._calls.popleft()
            if self._fault is not None:
                self.send(self._wire.error(None, describe(self._fault)))
            return None

    def send(self, body: bytes) -> None:
        """One message; `OSError` when the peer has gone."""
        with self._writing:
            self._sock.sendall(frame(body, self._wire.frame_max))

    def event(self, message: dict[str, Any]) -> None:
        """Something the sidecar may know; lost when it has gone, or speaks protocol 0."""
        if not self._wire.lists_fan_out and not self._lost:
            try:
                self.send(self._wire.codec.encode(message))
            except OSError:
                self._lost = True

    def is_cancelled(self, call: Any) -> bool:
        with self._reading:
            while not self._lost and self._receive(socket.MSG_DONTWAIT):
                continue
            return self._lost or call in self._cancelled

    def ask(self, call: Any, question: dict[str, Any]) -> dict[str, Any]:
        """Put a question to the sidecar and wait for its reply."""
        if self._wire.lists_fan_out:
            raise _needs_protocol_one(question)
        with self._reading:
            self._seq += 1
            seq = self._seq
            self.send(self._wire.codec.encode({"t": "ask", "id": call, "seq": seq, **question}))
            while seq not in self._replies:
                if self._lost:
                    raise Fault("unavailable", "connection_error", "ask: the sidecar went away before it answered")
                self._receive(0)
            return _answer(self._replies.pop(seq))

    def _receive(self, flags: int) -> bool:
        """Read once and sort what came; False when nothing was there."""
        try:
            data = self._sock.recv(max(65536, min(self._reader.missing, 1 << 20)), flags)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._lost = not data
        self._reader.feed(data)
        self._sort_received()
        return True

    def _sort_received(self) -> None:
        try:
            while not self._lost:
                body = self._reader.next()
                if body is None:
                    return
                self._sort(self._wire.parse(body))
        except Fault as fault:
            self._fault, self._lost = fault, True
            if fault.reason == "payload_too_large":
                self._discard()

    def _sort(self, message: dict[str, Any]) -> None:
        kind = message.get("t")
        if kind == "call":
            self._calls.append(message)
        elif kind == "cancel":
            self._cancelled.add(message.get("id"))
        elif kind == "reply":
            self._replies[message.get("seq", 0)] = message

    def _discard(self) -> None:
        """Read the rest of a frame that is too large, so that its sender comes to read the answer."""
        left = self._reader.missing
        if left > 8 * FRAME_MAX:
            return
        self._sock.settimeout(1.0)
        try:
            while left > 0:
                data = self._sock.recv(min(left, 1 << 20))
                left = left - len(data) if data else 0
        except OSError:
            return  # it stopped sending: answer now
        finally:
            self._sock.settimeout(None)


def _needs_protocol_one(question: dict[str, Any]) -> Fault:
    op = question["op"]
    name, lacks = (
        ("ask", "questions") if op == "question" else (op, "bus") if "name" in question else ("once", "ledger")
    )
    return Fault("unsupported", "", f"{name}: the sidecar speaks protocol 0, which has no {lacks}; use protocol 1")


def _answer(reply: dict[str, Any]) -> dict[str, Any]:
    """What a `reply` says: the map that is its value, or its error raised."""
    error = reply.get("error")
    if error:
        message = str(error.get("message") or "the sidecar refused the question")
        fault = Fault(
            str(error.get("code") or "internal"), str(error.get("reason") or ""), message, error.get("retryable")
        )
        fault.details = error.get("details") or {}
        raise fault
    value = reply.get("value")
    return value if isinstance(value, dict) else {}


class WorkerProcess:
    """What runs in a forked worker; `run` does not return."""

    def __init__(self, control: socket.socket, handler: Handler, loaded: bool, concurrency: int) -> None:
        self.control = control
        self.handler = handler
        self.concurrency = concurrency
        self._loaded = loaded
        self.busy = False
        self.draining = False

    def run(self) -> NoReturn:
        """Load what is not loaded, say so, serve until the supervisor says otherwise."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(line_buffering=True)
        try:
            if not self._loaded:
                self.handler.load()
            if self.handler.is_async:
                self._run_async()
            else:
                self.start()
                self._run_sync()
        except HandlerError as error:
            self.control.send(json.dumps({"failed": str(error)[-8000:]}).encode())
            self.leave(EXIT_HANDLER)
        self.leave(EXIT_OK)

    def start(self) -> None:
        """Instantiate the handler and report for work."""
        self.handler.bind()
        self.tell({"ready": self.concurrency if self.handler.is_async else 1})

    def tell(self, report: dict[str, Any]) -> None:
        """A word to the supervisor."""
        try:
            self.control.send(json.dumps(report).encode())
        except OSError:
            self.leave(EXIT_OK)

    def arrival(self) -> tuple[socket.socket, Wire, bytes] | None:
        """The next connection from the supervisor; None when it wants no more of this worker."""
        data, descriptors, _, _ = socket.recv_fds(self.control, 4 * HELLO_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        head, _, rest = data.partition(b"\n")
        terms = json.loads(head)
        sock = socket.socket(fileno=descriptors[0])
        if not terms["protocol"]:
            return sock, OldWire(), rest
        _send_small(sock, head)
        return sock, Wire(_codec([terms["codec"]]), terms["frame_max"], terms["message_max"]), rest

    def leave(self, status: int) -> NoReturn:
        """End this process as the interpreter would, but without the frames of the supervisor it was forked from."""
        import atexit

        try:
            atexit._run_exitfuncs()
            _flush()
        finally:
            os._exit(status)

    def _on_sigterm(self, _number: int, _frame: Any) -> None:
        self.draining = True
        if not self.busy:
            self.leave(EXIT_OK)

    # one call at a time

    def _run_sync(self) -> None:
        while True:
            arrival = self.arrival()
            if arrival is None:
                return
            sock, wire, rest = arrival
            with sock:
                self._serve(Connection(sock, wire, rest), wire)
            self.tell({"idle": True})

    def _serve(self, connection: Connection, wire: Wire) -> None:
        try:
            while True:
                call = connection.next_call()
                if call is None:
                    return
                self.busy = True
                body, asked_to_end = self._answer(connection, wire, call)
                connection.send(body)
                self.busy = False
                if asked_to_end or self.draining:
                    self.leave(EXIT_ASKED if asked_to_end else EXIT_OK)
                if wire.lists_fan_out:
                    return
        except OSError as error:
            log("INFO", f"the peer went away before its answer: {_text(error)}")
        finally:
            self.busy = False

    def _answer(self, connection: Connection, wire: Wire, call: dict[str, Any]) -> tuple[bytes, bool]:
        """The frame that ends the call, and whether the handler wanted the process to end."""
        try:
            outputs = Outputs(wire, self.handler.mode, call["envelope"])
            value = self.handler.invoke(call["envelope"], Context(connection, call))
            if hasattr(value, "__await__") or hasattr(type(value), "__aiter__"):
                _own_loop().run_until_complete(_settle_awaitable(value, outputs))
            else:
                outputs.take(value)
            return wire.result(call["id"], outputs), False
        except Suspended:
            return wire.suspended(call["id"]), False
        except BaseException as error:
            return self.failure(wire, call, error), isinstance(error, (SystemExit, KeyboardInterrupt))

    def failure(self, wire: Wire, call: dict[str, Any], error: BaseException) -> bytes:
        """The error frame of a call; frees what the failed frames hold."""
        info = describe(error)
        trace, error.__traceback__ = error.__traceback__, None
        while trace is not None:
            try:
                trace.tb_frame.clear()
            except RuntimeError:
                pass  # the frame still runs: it is ours
            trace = trace.tb_next
        if info["reason"] == "cuda_oom_error":
            self.handler.clean_cuda()
        return wire.error(call["id"], info)

    # many calls at a time

    def _run_async(self) -> None:
        import asyncio

        asyncio.run(self._serve_async())

    async def _serve_async(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        self.start()
        while True:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self.control, readable.set_result, None)
            readable.add_done_callback(lambda _: loop.remove_reader(self.control))
            await readable
            arrival = self.arrival()
            if arrival is None:
                return
            sock, wire, rest = arrival
            peer = AsyncConnection(self, wire)
            loop.add_signal_handler(signal.SIGTERM, peer.drain)
            sock.setblocking(False)
            await loop.create_unix_connection(lambda peer=peer: peer, sock=sock)  # type: ignore[misc]
            if rest:
                peer.data_received(rest)
            await peer.gone
            if self.draining:
                self.leave(EXIT_OK)
            self.tell({"idle": True})


def _own_loop() -> Any:
    """The event loop for a plain function that returned an awaitable; made at the first one."""
    global _loop
    if _loop is None:
        import asyncio

        _loop = asyncio.new_event_loop()
    return _loop


_loop: Any = None


class AsyncConnection:
    """A connection of a worker whose handler is async: up to `concurrency` calls at once. An asyncio protocol."""

    def __init__(self, worker: WorkerProcess, wire: Wire) -> None:
        import asyncio

        self._asyncio = asyncio
        self._worker = worker
        self._wire = wire
        self._reader = FrameReader(wire.frame_max, wire.message_max)
        self._transport: Any = None
        self._tasks: dict[Any, asyncio.Task[None]] = {}
        self._reasons: dict[Any, str] = {}
        self._waiting: deque[dict[str, Any]] = deque()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._seq = 0
        self._lost = False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # what asyncio calls

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while True:
                body = self._reader.next()
                if body is None:
                    return
                self._sort(self._wire.parse(body))
        except Fault as fault:
            self._send(self._wire.error(None, describe(fault)))
            self._transport.close()

    def eof_received(self) -> bool:
        """A peer of protocol 0 may shut its side down and still read; in protocol 1 the end is the end."""
        return self._wire.lists_fan_out and bool(self._tasks)

    def connection_lost(self, _error: Exception | None) -> None:
        self._lost = True
        self._waiting.clear()
        for future in self._asked.values():
            future.cancel()
        for task in self._tasks.values():
            task.cancel()
        if not self._tasks:
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        """Results are bounded by the calls outstanding; what could pile up are events, and `event` looks."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    # what handlers use, through their context

    def event(self, message: dict[str, Any]) -> None:
        if not self._wire.lists_fan_out and not self._lost and self._transport.get_write_buffer_size() < FRAME_MAX:
            self._send(self._wire.codec.encode(message))

    def is_cancelled(self, call: Any) -> bool:
        return self._lost or call in self._reasons

    async def ask(self, call: Any, question: dict[str, Any]) -> dict[str, Any]:
        if self._wire.lists_fan_out:
            raise _needs_protocol_one(question)
        self._seq += 1
        seq = self._seq
        self._send(self._wire.codec.encode({"t": "ask", "id": call, "seq": seq, **question}))
        future = self._asked[seq] = self._asyncio.get_running_loop().create_future()
        try:
            return _answer(await future)
        finally:
            del self._asked[seq]

    # calls

    def drain(self) -> None:
        """On SIGTERM: end the process as soon as no call runs."""
        self._worker.draining = True
        if not self._tasks:
            self._flush_and_leave()

    def _sort(self, message: dict[str, Any]) -> None:
        kind, call = message.get("t"), message.get("id")
        if kind == "call":
            self._waiting.append(message)
            self._start_waiting()
        elif kind == "cancel" and call in self._tasks:
            self._reasons[call] = str(message.get("reason") or "cancelled")
            self._tasks[call].cancel()
        elif kind == "reply":
            future = self._asked.get(message.get("seq", 0))
            if future is not None and not future.done():
                future.set_result(message)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._tasks) < self._worker.concurrency:
            call = self._waiting.popleft()
            task = self._tasks[call["id"]] = self._asyncio.get_running_loop().create_task(self._run(call))
            task.add_done_callback(lambda _, call=call["id"]: self._never_began(call))  # type: ignore[misc]
        if not self._lost and not self._wire.lists_fan_out:
            (self._transport.pause_reading if self._waiting else self._transport.resume_reading)()

    async def _run(self, call: dict[str, Any]) -> None:
        identifier, wire, handler = call["id"], self._wire, self._worker.handler
        try:
            outputs = Outputs(wire, handler.mode, call["envelope"])
            await _settle_awaitable(handler.invoke(call["envelope"], AsyncContext(self, call)), outputs)
            body = wire.result(identifier, outputs)
        except self._asyncio.CancelledError as error:
            reason = self._reasons.get(identifier)
            body = wire.error(identifier, _ended(reason)) if reason else self._worker.failure(wire, call, error)
        except Suspended:
            body = wire.suspended(identifier)
        except BaseException as error:
            body = self._worker.failure(wire, call, error)
        self._end(identifier, body)

    def _never_began(self, call: Any) -> None:
        """A task that is cancelled before its first step ends without having answered."""
        if call in self._tasks:
            self._end(call, self._wire.error(call, _ended(self._reasons.get(call, "cancelled"))))

    def _end(self, call: Any, body: bytes) -> None:
        del self._tasks[call]
        self._reasons.pop(call, None)
        self._send(body)
        if self._worker.draining and not self._tasks:
            self._flush_and_leave()
        if self._lost and not self._tasks and not self.gone.done():
            self.gone.set_result(None)
        if self._wire.lists_fan_out:
            self._transport.close()
        else:
            self._start_waiting()

    def _flush_and_leave(self) -> None:
        """The last answers leave before the process does."""
        if self._lost:
            self._worker.leave(EXIT_OK)
        self._transport.close()

    def _send(self, body: bytes) -> None:
        if not self._lost:
            self._transport.write(frame(body, self._wire.frame_max))


def _ended(reason: str) -> dict[str, Any]:
    """The error of an async call that was cancelled by its sidecar."""
    name = "timeout_error" if reason == "timeout" else "cancelled"
    code = "deadline_exceeded" if reason == "timeout" else "internal"
    info = describe(Fault(code, name, f"the call was cancelled: {reason}"))
    return {**info, "details": {"cancel": reason}}


def _tether(descriptor: int) -> None:
    """Have the kernel kill this process when the other end of the pipe closes, that is: when the supervisor dies."""
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(descriptor, 0)
    if poll.poll(0):
        os._exit(EXIT_OK)  # it died before the line above


# ---------------------------------------------------------------------------------------------------------------------
# The supervisor: listens, greets, forks, replaces
# ---------------------------------------------------------------------------------------------------------------------


class Worker:
    """A worker as its supervisor sees it. `state` is starting, idle or busy."""

    def __init__(self, pid: int, control: socket.socket, tether: int) -> None:
        self.pid = pid
        self.control = control
        self.tether = tether
        self.state = "starting"
        self.connection: socket.socket | None = None
        self.session = ""
        self.hung_up = False
        self.kill_at: float | None = None
        self.killed = False

    def kill(self) -> None:
        self.killed = True
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it is dead already, and will be reaped


class Peer:
    """A connection that no worker serves yet."""

    def __init__(self, sock: socket.socket, expires: float) -> None:
        self.sock = sock
        self.expires = expires
        self.data = b""
        self.hello: dict[str, Any] | None = None
        self.waits_for: int | None = None


class Supervisor:
    """One thread, one epoll: so that a fork is always safe."""

    def __init__(self, settings: Settings, handler: Handler, loaded: bool) -> None:
        self._settings = settings
        self._handler = handler
        self._loaded = loaded
        self._workers: dict[int, Worker] = {}
        self._exits: dict[int, dict[str, Any]] = {}
        self._greeting: dict[int, Peer] = {}
        self._waiting: list[Peer] = []
        self._listener: socket.socket | None = None
        self._inode = 0
        self._concurrency = 0
        self._failures = 0
        self._fork_at = 0.0
        self._drain_until: float | None = None
        self._status: int | None = None
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._wake, self._wakeup = socket.socketpair()
        self._oom_kills = oom_kills()

    def run(self) -> int:
        """Until drained; the exit code."""
        self._wake.setblocking(False)
        self._wakeup.setblocking(False)
        for number in _SIGNALS:
            signal.signal(number, _noted)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self._watch(self._wake, select.EPOLLIN, self._on_signal)
        gc.freeze()
        try:
            while self._status is None:
                self._tick()
                for descriptor, events in self._epoll.poll(self._timeout()):
                    callback = self._callbacks.get(descriptor)
                    if callback is not None:
                        callback(events)
            return self._status
        finally:
            self._close()

    # workers

    def _fill(self) -> None:
        """Fork what is wanted: a worker for each waiting connection that may have one, and the standby."""
        if self._drain_until is not None or time.monotonic() < self._fork_at:
            return
        busy = sum(worker.state == "busy" for worker in self._workers.values())
        callers = sum(not _is_probe(peer) for peer in self._waiting)
        wanted = min(self._settings.workers - busy, callers) + self._settings.standby or (0 if busy else 1)
        for _ in range(wanted - (len(self._workers) - busy)):
            self._fork()

    def _fork(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read, write = os.pipe()
        _flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a signal to the child would seem to be the supervisor's
        pid = os.fork()
        if pid == 0:
            self._become_worker(theirs, read, (ours, write))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        os.close(read)
        worker = self._workers[pid] = Worker(pid, ours, write)
        self._watch(ours, select.EPOLLIN, lambda _: self._on_report(worker))

    def _become_worker(self, control: socket.socket, tether: int, others: tuple[socket.socket, int]) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(others[1])
            for worker in self._workers.values():
                os.close(worker.tether)
            _tether(tether)
            peers = [*self._greeting.values(), *self._waiting]
            sockets = [others[0], self._wake, self._wakeup, self._listener, *(peer.sock for peer in peers)]
            for worker in self._workers.values():
                sockets += [worker.control, worker.connection]
            for sock in sockets:
                if sock is not None:
                    sock.close()
            self._epoll.close()
            WorkerProcess(control, self._handler, self._loaded, self._settings.concurrency).run()
        except BaseException as error:
            log("ERROR", f"worker failed outside of its handler\n{_traceback(error)}")
        finally:
            os._exit(EXIT_WORKERS)

    def _on_report(self, worker: Worker) -> None:
        try:
            data = worker.control.recv(65536, socket.MSG_DONTWAIT)
        except OSError:
            data = b""
        if not data:  # it is about to be reaped
            self._forget(worker.control)
            return
        report = json.loads(data)
        if "failed" in report:
            log("ERROR", f"handler_import_failed: {report['failed'].rstrip()}")
            if self._listener is None:
                self._status = EXIT_HANDLER
            return
        self._release(worker)
        worker.state = "idle"
        if "ready" in report:
            self._concurrency, self._failures = report["ready"], 0
            if self._listener is None and self._drain_until is None:
                self._listen()

    def _release(self, worker: Worker) -> None:
        """Close our copy of a worker's connection, for all who may have inherited it."""
        sock, worker.connection, worker.kill_at, worker.hung_up = worker.connection, None, None, False
        if sock is not None:
            self._forget(sock)
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was faster
            sock.close()

    def _buried(self, worker: Worker, status: int) -> None:
        """Keep how it ended for `after`, then let its peer notice, in this order."""
        del self._workers[worker.pid]
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        reason = "runtime_crashed"
        if number == signal.SIGKILL and not worker.killed:
            kills = oom_kills()
            reason = "oom_error" if kills > self._oom_kills else reason
            self._oom_kills = kills
        self._exits[worker.pid] = {"worker": worker.pid, "signal": number, "status": code, "reason": reason}
        while len(self._exits) > PEERS_MAX:
            del self._exits[next(iter(self._exits))]
        if self._drain_until is None:
            log("WARNING", f"worker {worker.pid} ended while {worker.state}: signal {number}, status {code}, {reason}")
        if worker.state == "starting":
            self._failures += 1
            self._fork_at = time.monotonic() + min(0.05 * 2**self._failures, 5.0)
            if self._listener is None and self._failures >= 3 and self._drain_until is None and self._status is None:
                self._status = EXIT_WORKERS
        self._forget(worker.control)
        worker.control.close()
        self._release(worker)
        os.close(worker.tether)

    # peers

    def _listen(self) -> None:
        try:
            self._listener, self._inode = bind(self._settings.socket, self._settings.socket_chmod)
            self._write_ready_file()
        except OSError as error:
            log("CRITICAL", f"socket: {self._settings.socket!r} cannot be bound: {error}")
            self._status = EXIT_SOCKET
            return
        self._watch(self._listener, select.EPOLLIN, self._on_connection)
        log("INFO", f"ready: {self._handler.spec} on {self._settings.socket}, at most {self._settings.workers} workers")

    def _write_ready_file(self) -> None:
        if self._settings.ready_file:
            ready = {"pid": os.getpid(), "socket": self._settings.socket, "handler": self._handler.spec}
            temporary = f"{self._settings.ready_file}.{os.getpid()}"
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(ready, file)
            os.replace(temporary, self._settings.ready_file)

    def _on_connection(self, _events: int) -> None:
        if self._listener is None:
            return
        try:
            sock = self._listener.accept()[0]
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                log("ERROR", f"a connection could not be accepted: {error}")
            return
        if len(self._greeting) + len(self._waiting) >= PEERS_MAX:
            log("ERROR", f"a connection was refused: {PEERS_MAX} wait already")
            sock.close()
            return
        sock.setblocking(True)
        peer = self._greeting[sock.fileno()] = Peer(sock, time.monotonic() + GREETING_S)
        self._watch(sock, select.EPOLLIN, lambda _: self._on_greeting(peer))

    def _on_greeting(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(HELLO_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._dismiss(peer)
            return
        peer.data += data
        try:
            if not greeted(peer):
                return
            self._admit(peer)
        except Fault as fault:
            answer = json.dumps({"protocol": PROTOCOL, "error": describe(fault)}).encode()
            _send_small(peer.sock, answer)
            self._dismiss(peer)

    def _admit(self, peer: Peer) -> None:
        """A peer whose first bytes are known waits for a worker, and for what its hello asks first."""
        hello, now = peer.hello or {}, time.monotonic()
        terms = _Terms(hello)
        victim = self._workers.get(terms.kill)
        if victim is not None:
            victim.kill()
        mourned = self._workers.get(terms.after)
        if victim is not None or (mourned is not None and (mourned.state == "busy" or mourned.killed)):
            peer.waits_for = terms.kill if victim is not None else terms.after
        if terms.session and not terms.probe:
            for worker in self._workers.values():
                if worker.hung_up and worker.session != terms.session:
                    worker.kill()
        self._forget(peer.sock)
        self._greeting.pop(peer.sock.fileno(), None)
        peer.expires = now + EXIT_WAIT_S
        self._waiting.append(peer)

    def _dispatch(self) -> None:
        """Hand waiting peers to idle workers, the first come first; the oldest worker first."""
        if not self._waiting:
            return
        idle = [worker for worker in self._workers.values() if worker.state == "idle" and not worker.killed]
        busy = sum(worker.state == "busy" for worker in self._workers.values())
        now = time.monotonic()
        for peer in list(self._waiting):
            if peer.waits_for in self._workers and now < peer.expires:
                continue
            if _is_probe(peer) and (idle or busy):
                self._waiting.remove(peer)
                _send_small(peer.sock, self._welcome(peer, None))
                peer.sock.close()
            elif not _is_probe(peer) and idle and busy < self._settings.workers:
                taken = self._hand_over(peer, idle.pop(0))
                busy += taken
                if taken:
                    self._waiting.remove(peer)

    def _hand_over(self, peer: Peer, worker: Worker) -> bool:
        """Give a connection to a worker, which welcomes it; False when that one died meanwhile."""
        welcome = b'{"protocol": 0}' if peer.hello is None else self._welcome(peer, worker.pid)
        try:
            socket.send_fds(worker.control, [welcome + b"\n" + peer.data], [peer.sock.fileno()])
        except OSError as error:
            log("DEBUG", f"worker {worker.pid} took no connection: {error}")
            worker.killed = True  # it is about to be reaped
            return False
        worker.state, worker.connection, worker.hung_up = "busy", peer.sock, False
        worker.session = str((peer.hello or {}).get("session") or "")
        self._watch(peer.sock, select.EPOLLET, lambda events: self._on_hang_up(worker, events))
        return True

    def _on_hang_up(self, worker: Worker, events: int) -> None:
        if events & (select.EPOLLHUP | select.EPOLLERR):
            worker.hung_up = True
            worker.kill_at = time.monotonic() + HANGUP_GRACE_S

    def _welcome(self, peer: Peer, worker: int | None) -> bytes:
        terms = _Terms(peer.hello or {})
        answer = {
            "protocol": PROTOCOL,
            "codec": _codec(terms.codecs).name,
            "worker": worker,
            "handler": self._handler.spec,
            "mode": self._handler.mode,
            "concurrency": self._concurrency,
            "workers": self._settings.workers,
            "frame_max": terms.frame_max,
            "message_max": terms.message_max,
        }
        known = self._exits.get(terms.kill) or self._exits.get(terms.after)
        return json.dumps({**answer, "exit": known} if known else answer).encode()

    def _dismiss(self, peer: Peer) -> None:
        self._forget(peer.sock)
        self._greeting.pop(peer.sock.fileno(), None)
        peer.sock.close()

    # time, signals, the end

    def _on_signal(self, _events: int) -> None:
        numbers = self._wake.recv(4096)
        for pid, worker in list(self._workers.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._buried(worker, status)
        if signal.SIGINT in numbers and self._drain_until is not None:
            self._drain_until = 0.0
        elif (signal.SIGTERM in numbers or signal.SIGINT in numbers) and self._drain_until is None:
            self._drain()

    def _drain(self) -> None:
        log("INFO", f"draining: at most {self._settings.grace_s:g} s")
        self._drain_until = time.monotonic() + self._settings.grace_s
        self._stop_listening()
        for peer in [*self._greeting.values(), *self._waiting]:
            self._dismiss(peer)
        self._waiting.clear()

    def _stop_listening(self) -> None:
        if self._listener is None or not self._inode:
            return
        self._forget(self._listener)
        self._listener.close()
        inode, self._inode = self._inode, 0
        try:
            if os.stat(self._settings.socket).st_ino == inode:
                os.unlink(self._settings.socket)
            if self._settings.ready_file:
                os.unlink(self._settings.ready_file)
        except OSError as error:
            log("DEBUG", f"nothing to remove: {error}")

    def _tick(self) -> None:
        now = time.monotonic()
        for worker in self._workers.values():
            if worker.kill_at is not None and now >= worker.kill_at and not worker.killed:
                log("WARNING", f"worker {worker.pid} is killed: its peer went away and its handler goes on")
                worker.kill()
        for peer in [peer for peer in self._greeting.values() if now >= peer.expires]:
            self._dismiss(peer)
        self._dispatch()
        self._fill()
        if self._drain_until is not None:
            self._drain_on(now)

    def _drain_on(self, now: float) -> None:
        """SIGTERM is sent again and again: one that arrives just before a worker waits would be lost."""
        for worker in self._workers.values():
            if now >= (self._drain_until or 0.0):
                self._status = EXIT_GRACE if worker.state == "busy" else self._status
                worker.kill()
            elif not worker.killed:
                (worker.kill if worker.state == "starting" else lambda: os.kill(worker.pid, signal.SIGTERM))()  # noqa: B023
        if not self._workers and self._status is None:
            self._status = EXIT_OK

    def _timeout(self) -> float:
        if self._status is not None:
            return 0
        if self._drain_until is not None:
            return 0.05
        moments = [peer.expires for peer in (*self._greeting.values(), *self._waiting) if peer.expires]
        moments += [worker.kill_at for worker in self._workers.values() if worker.kill_at and not worker.killed]
        moments += [self._fork_at]
        now = time.monotonic()
        later = [moment - now for moment in moments if moment > now]
        return min(later) + 0.001 if later else -1

    def _watch(self, sock: socket.socket, events: int, callback: Callable[[int], None]) -> None:
        self._callbacks[sock.fileno()] = callback
        self._epoll.register(sock.fileno(), events)

    def _forget(self, sock: socket.socket) -> None:
        """Before each close: a copy in another process would keep the registration alive."""
        if self._callbacks.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def _close(self) -> None:
        self._stop_listening()
        for worker in self._workers.values():
            worker.kill()
            os.waitpid(worker.pid, 0)
        signal.set_wakeup_fd(-1)


class _Terms:
    """What a hello says, checked."""

    def __init__(self, hello: dict[str, Any]) -> None:
        self.kill, self.after = (self._number(hello, name, 0) for name in ("kill", "after"))
        self.frame_max = min(self._number(hello, "frame_max", FRAME_MAX), FRAME_MAX)
        self.message_max = min(self._number(hello, "message_max", self.frame_max), MESSAGE_MAX)
        self.session = hello.get("session") or ""
        self.probe = hello.get("purpose", "calls") == "probe"
        self.codecs = hello.get("codecs", ["json"])
        if hello.get("purpose", "calls") not in ("calls", "probe"):
            raise _bad_input(f"purpose: {_show(hello['purpose'])} is neither 'calls' nor 'probe'")
        if not isinstance(self.codecs, list):
            raise _bad_input(f"codecs: {_show(self.codecs)} is not a list")
        if self.frame_max < 1024:
            raise _bad_input(f"frame_max: {self.frame_max!r} is less than 1024 bytes")

    @staticmethod
    def _number(hello: dict[str, Any], name: str, default: int) -> int:
        value = hello.get(name)
        if value is None:
            return default
        if type(value) is not int or value < 0:
            raise _bad_input(f"{name}: {_show(value)} is not a number of the kind that a hello has")
        return value


def greeted(peer: Peer) -> bool:
    """Whether enough came to tell a hello from a message of protocol 0; takes the hello out of the data."""
    data = peer.data
    length = int.from_bytes(data[:4], "big")
    if len(data) < min(8, 4 + length) or len(data) < 4:
        return False
    if data[4:8] != HELLO:
        return True
    if length > HELLO_MAX:
        raise _too_large("hello", length, HELLO_MAX)
    if len(data) < 4 + length:
        return False
    hello = JsonCodec().decode(data[8 : 4 + length])
    if not isinstance(hello, dict) or type(hello.get("protocol")) is not int or hello["protocol"] < 1:
        raise _bad_input(f"hello: {_show(hello)} is not a map with a protocol of 1 or more")
    peer.hello, peer.data = hello, data[4 + length :]
    _Terms(hello)
    return True


def _is_probe(peer: Peer) -> bool:
    return peer.hello is not None and peer.hello.get("purpose") == "probe"


def _send_small(sock: socket.socket, body: bytes) -> bool:
    """A frame into an empty socket buffer; False when the peer has gone."""
    try:
        sock.send(frame(body), socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def _noted(_number: int, _frame: Any) -> None:
    """Signals are read from the wake-up descriptor; in a worker SIGINT is its supervisor's business."""


def oom_kills(membership: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup", host: str = "/proc/vmstat") -> int:
    """The kernel's counter of OOM kills in this process's cgroup (version 2, then 1), else on this host."""
    candidates = []
    try:
        with open(membership, encoding="utf-8") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        lines = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            candidates += [f"{root}{path}/memory.events", f"{root}/memory.events"]
        elif "memory" in controllers.split(","):
            candidates += [f"{root}/memory{path}/memory.oom_control", f"{root}/memory/memory.oom_control"]
    for candidate in [*candidates, host]:
        try:
            with open(candidate, encoding="utf-8") as file:
                found = [line.split() for line in file if line.startswith("oom_kill ")]
        except OSError:
            continue
        if found:
            return int(found[0][1])
    return 0


def bind(path: str, mode: int | None) -> tuple[socket.socket, int]:
    """A listening socket at `path`, and its inode. It appears by rename: what is there listens."""
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    if os.path.lexists(path):
        _remove_stale(folder, name, path)
    temporary = f".{name}.{os.getpid()}"
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(os.path.join(folder, temporary)):
            os.unlink(temporary, dir_fd=directory)
        sock.bind(f"/proc/self/fd/{directory}/{temporary}")
        if mode is not None:
            os.chmod(temporary, mode, dir_fd=directory)
        sock.listen(128)
        sock.setblocking(False)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        return sock, os.stat(name, dir_fd=directory).st_ino
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(directory)


def _remove_stale(folder: str, name: str, path: str) -> None:
    """Only a socket nobody listens on may be replaced."""
    import stat

    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(errno.EEXIST, "there is a file which is no socket; remove it, or choose another path")
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(f"/proc/self/fd/{directory}/{name}")
    except ConnectionRefusedError:
        return  # the rename replaces it
    finally:
        os.close(directory)
    raise OSError(errno.EADDRINUSE, "another runtime listens there; stop it first")


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


class Settings:
    """What the flags say, else the environment, else the defaults."""

    handler: str
    socket: str
    socket_chmod: int | None
    handler_mode: str
    workers: int
    standby: int
    concurrency: int
    grace_s: float
    cuda_cleanup: str | None
    ready_file: str | None
    log_level: str
    preload: bool
    print: bool
    probe: bool


def _octal(text: str) -> int | None:
    """`666`, `0o666`; empty leaves the mode to the umask."""
    value = int(text, 8) if text else None
    if value is not None and not 0 <= value <= 0o777:
        raise ValueError(text)
    return value


def _duration(text: str) -> float:
    """`30`, `30s`, `500ms`, `2m`: seconds."""
    for suffix, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("", 1.0)):
        if text.endswith(suffix):
            value = float(text[: len(text) - len(suffix)]) * factor
            if 0 <= value < 86400 * 365:
                return value
            break
    raise ValueError(text)


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not least <= int(text) <= 10000:
            raise ValueError(text)
        return int(text)

    count.__name__ = f"number from {least} to 10000"
    return count


def _mode(text: str) -> str:
    mode = "message" if text == "envelope" else text
    if mode not in ("payload", "message"):
        raise ValueError(text)
    return mode


def _log_level(text: str) -> str:
    if text.upper() not in _LEVELS:
        raise ValueError(text)
    return text.upper()


_octal.__name__, _duration.__name__, _mode.__name__ = "octal mode", "duration", "mode (payload, message)"
_log_level.__name__ = f"log level ({', '.join(_LEVELS)})"

_OPTIONS: tuple[tuple[str, Any, str | None, tuple[str, ...], str], ...] = (
    ("handler", str, None, ("GROUNDPLANE_HANDLER", "ASYA_HANDLER"), "module:function, module.name, file.py:name"),
    ("socket", str, None, ("GROUNDPLANE_SOCKET_PATH", "ASYA_SOCKET_PATH"), "path of the unix socket"),
    ("socket-chmod", _octal, "600", ("GROUNDPLANE_SOCKET_CHMOD", "ASYA_SOCKET_CHMOD"), "its mode, octal"),
    ("handler-mode", _mode, "payload", ("GROUNDPLANE_HANDLER_MODE", "ASYA_HANDLER_MODE"), "payload or message"),
    ("workers", _count(1), "1", ("GROUNDPLANE_WORKERS",), "most processes that serve connections"),
    ("standby", _count(0), "1", ("GROUNDPLANE_STANDBY",), "loaded processes in reserve; 0 where an instance is heavy"),
    ("concurrency", _count(1), "64", ("GROUNDPLANE_CONCURRENCY",), "calls at once in a worker of an async handler"),
    ("grace-s", _duration, "30", ("GROUNDPLANE_GRACE_S",), "time for running calls after SIGTERM"),
    ("cuda-cleanup", str, None, ("GROUNDPLANE_CUDA_CLEANUP",), "function to call after a cuda_oom_error"),
    ("ready-file", str, None, ("GROUNDPLANE_READY_FILE",), "written once the socket listens"),
    ("log-level", _log_level, "INFO", ("GROUNDPLANE_LOG_LEVEL", "ASYA_LOG_LEVEL", "LOG_LEVEL"), "least level shown"),
)


def settings(argv: Sequence[str]) -> Settings:
    """The settings of a command line; ends the process with code 2 and a message where they are wrong."""
    import argparse

    parser = argparse.ArgumentParser("runtime", description="Hosts a handler behind a unix socket.")
    sources = {}
    for name, kind, default, variables, text in _OPTIONS:
        source = next((variable for variable in variables if os.environ.get(variable) is not None), None)
        value = os.environ[source] if source else default
        sources[name] = source
        shown = f"{text} (environment: {', '.join(variables)}; default: {default})"
        parser.add_argument(f"--{name}", type=kind, default=value, help=shown)
    parser.add_argument("--no-preload", dest="preload", action="store_false", help="import the handler in workers only")
    parser.add_argument("--print", action="store_true", help="print this file and end")
    parser.add_argument("--probe", action="store_true", help="ask whether a runtime serves on the socket, and end")
    parser.add_argument("--version", action="version", version=f"groundplane runtime, protocol {PROTOCOL}")
    chosen = parser.parse_args(list(argv), Settings())
    for name in ("handler", "socket"):
        if not getattr(chosen, name) and not chosen.print and not (chosen.probe and name == "handler"):
            parser.error(f"{name}: {getattr(chosen, name)!r} is not set; give --{name} or set {_variable(name)}")
    return chosen


def _variable(name: str) -> str:
    return next(variables[0] for option, _, _, variables, _ in _OPTIONS if option == name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a runtime until it is told to stop; the exit code. Owns the process: signals, working threads, forks."""
    global _level
    if sys.version_info < (3, 9):
        sys.stderr.write(f"python: {sys.version.split()[0]} is too old for the runtime; use 3.9 or newer\n")
        return EXIT_USAGE
    arguments = sys.argv[1:] if argv is None else list(argv)
    chosen = settings(arguments)
    if chosen.print:
        with open(__file__, encoding="utf-8") as file:
            sys.stdout.write(file.read())
        return EXIT_OK
    _level = _LEVELS[chosen.log_level]
    if chosen.probe:
        return probe(chosen.socket)
    _prepare_path()
    handler = Handler(chosen.handler, chosen.handler_mode, chosen.cuda_cleanup)
    if chosen.preload:
        try:
            handler.load()
        except HandlerError as error:
            log("CRITICAL", f"handler_import_failed: {str(error).rstrip()}")
            return EXIT_HANDLER
        if len(os.listdir("/proc/self/task")) > 1:
            _start_again_without_preload(chosen.handler, arguments)
        if handler.is_async:
            import asyncio  # noqa: F401  (once here instead of in each worker)
    return Supervisor(chosen, handler, chosen.preload).run()


def probe(path: str) -> int:
    """Ask the runtime on the socket whether it has a worker that serves. 0: yes; 1, with the reason: not in time."""
    hello = {"protocol": PROTOCOL, "codecs": ["json"], "purpose": "probe"}
    reader = FrameReader(HELLO_MAX, HELLO_MAX)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(PROBE_S)
            sock.connect(path)
            sock.sendall(frame(HELLO + json.dumps(hello).encode()))
            answer = None
            while answer is None:
                data = sock.recv(HELLO_MAX)
                if not data:
                    raise OSError("it hung up")
                reader.feed(data)
                answer = reader.next()
    except (OSError, Fault) as error:
        log("ERROR", f"socket: {path!r} does not serve: {error}")
        return EXIT_SILENT
    if b'"error"' in answer:
        log("ERROR", f"socket: {path!r} refused: {str(answer, 'utf-8', 'replace')}")
        return EXIT_SILENT
    return EXIT_OK


def _start_again_without_preload(name: str, arguments: list[str]) -> NoReturn:
    """A process with threads must not fork: start it again, and import the handler in the workers alone."""
    log("INFO", f"{name!r} started threads at import: it is imported in each worker instead (--no-preload)")
    flags = [("isolated", "-I"), ("no_site", "-S"), ("dont_write_bytecode", "-B"), ("no_user_site", "-s")]
    flags += [("ignore_environment", "-E"), ("optimize", "-O")]
    chosen = [flag for attribute, flag in flags if getattr(sys.flags, attribute)]
    _flush()
    os.execv(sys.executable, [sys.executable, *chosen, os.path.abspath(__file__), *arguments, "--no-preload"])


if __name__ == "__main__":
    # a handler that imports `Declined` from the package is to catch the one that is raised here
    sys.modules.setdefault("groundplane.mesh.runtime", sys.modules[__name__])
    sys.exit(main())
