"""Handlers: how a function of the user's gets its arguments, checked against its annotations, and a context.

    async def quote(symbol: str, ctx: CallContext) -> dict: ...

Arguments come by name from `params` of a request or `payload` of a command; a parameter `ctx`, or one annotated with a
context, gets the context: what is known of the message, and the bus (`Calls`). A function
that is not asynchronous runs in a thread, where it cannot be cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from groundplane.bus import wire
from groundplane.bus.calling import IDEMPOTENCY_KEY, Calls
from groundplane.core.errors import InvalidArgument
from groundplane.core.ids import new_id

if TYPE_CHECKING:
    from groundplane.bus.client import Bus

Handler = Callable[..., Any]


class CallContext(Calls):
    """What a handler of a request may want to know, and to ask. `idempotency_key` is the same whenever the work that
    makes the request is repeated, where that work has an identity; else it is the request's id.
    """

    def __init__(self, bus: Bus, request: wire.RpcRequest, service: str, method: str, until: float) -> None:
        self.idempotency_key = request.headers.get(IDEMPOTENCY_KEY) or request.message_id
        super().__init__(bus, f"rpc/{service}.{method}/{self.idempotency_key or new_id()}", until)
        self.request_id = request.message_id
        self.service = service
        self.method = method
        self.source = request.source
        self.headers = request.headers
        self.trace_id = request.trace_id

    @property
    def remaining_s(self) -> float:
        """Seconds until nobody waits for the answer any more."""
        return max(0.0, (self._until or 0.0) - asyncio.get_running_loop().time())


class CommandContext(Calls):
    """What a handler of a command may want to know, and to ask, and how it tells how far it is."""

    def __init__(
        self,
        bus: Bus,
        command: wire.Command,
        service: str,
        attempt: int,
        until: float,
        report: Callable[[float, str], Awaitable[None]],
    ) -> None:
        super().__init__(bus, f"command/{service}.{command.command}/{command.message_id or new_id()}", until)
        self.command_id = command.message_id
        self.service = service
        self.command = command.command
        self.priority = command.priority
        self.attempt = attempt
        self.source = command.source
        self.headers = command.headers
        self.trace_id = command.trace_id
        self._report = report
        self._percent = 0.0

    @property
    def remaining_s(self) -> float:
        """Seconds until the command's timeout."""
        return max(0.0, (self._until or 0.0) - asyncio.get_running_loop().time())

    async def progress(self, percent: float, message: str = "") -> None:
        """Tell how far it is: 0 to 100. Less than was told before is told as that; 100 is told at the end alone."""
        if not 0 <= percent <= 100:
            raise InvalidArgument(f"percent: {percent!r} must be a number from 0 to 100")
        self._percent = max(self._percent, min(float(percent), 99.0))
        await self._report(self._percent, message)


class EventContext(Calls):
    """What a handler of events may want to ask: `handler(event, ctx)`. One event is one piece of work for its
    `consumer`, the durable subscription, however often it is handed out.
    """

    def __init__(self, bus: Bus, consumer: str, event_id: str) -> None:
        super().__init__(bus, f"event/{consumer}/{event_id or new_id()}")
        self.consumer = consumer


_CONTEXTS = (CallContext, CommandContext, EventContext)


def context_of(handler: Handler) -> str | None:
    """The parameter of a handler of events that gets the context."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())[1:]
    except (TypeError, ValueError):  # a builtin
        return None
    hints = _hints(handler)
    return next((one.name for one in parameters if one.name == "ctx" or hints.get(one.name) in _CONTEXTS), None)


def check_event_handler(handler: Handler) -> None:
    """`invalid_argument` for one that cannot be called with an event alone, and its context where it takes one."""
    if not callable(handler):
        raise InvalidArgument(f"handler: {handler!r} is no function")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # a builtin
        return
    context = context_of(handler)
    try:
        signature.bind(None, **({context: None} if context else {}))
    except TypeError as error:
        name = getattr(handler, "__qualname__", repr(handler))
        raise InvalidArgument(
            f"handler: {name!r} cannot be called with the event alone, or with it and `ctx`: {error}"
        ) from error


class Bound:
    """A handler and the shape of its arguments. `invalid_argument` for one that cannot be called by name."""

    def __init__(self, field: str, handler: Handler) -> None:
        if not callable(handler):
            raise InvalidArgument(f"{field}: {handler!r} is no function")
        self.handler = handler
        self.name = getattr(handler, "__qualname__", repr(handler))
        self._asynchronous = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004  its own, whether it is asynchronous
        )
        self._context: str | None = None
        self._others = False
        self._fields: list[tuple[Any, ...]] = []
        self._optional = False
        self._shape = self._read(field, handler)
        self.takes_context = self._context is not None
        """Whether it looks at its context."""

    async def call(self, arguments: Mapping[str, Any], context: CallContext | CommandContext | None) -> Any:
        """`started`, as one coroutine."""
        return await self.started(arguments, context)

    def started(
        self, arguments: Mapping[str, Any], context: CallContext | CommandContext | None
    ) -> Coroutine[Any, Any, Any]:
        """Check the arguments, then call, to be awaited; None for a context that it does not take. What does not fit is
        `invalid_argument` (`msg_parsing_error`), raised here.
        """
        keywords = self._convert(arguments)
        if self._context is not None:
            keywords[self._context] = context
        if self._asynchronous:
            return self.handler(**keywords)  # type: ignore[no-any-return]
        return run(self.handler, asynchronous=False, keywords=keywords)

    def shapes(self, name: str) -> tuple[type[msgspec.Struct], Any]:
        """The types of the arguments, a struct of this name, and of the result."""
        returned = _hints(self.handler).get("return", Any)
        params = msgspec.defstruct(name, self._fields, forbid_unknown_fields=not self._others, kw_only=True)
        return params, Any if returned is None or not _is_known(returned) else returned

    def _read(self, field: str, handler: Handler) -> type[msgspec.Struct]:
        hints = _hints(handler)
        for parameter in _parameters(field, handler):
            annotation = hints.get(parameter.name, Any)
            if parameter.name == "ctx" or annotation in _CONTEXTS:
                self._context = parameter.name
            elif parameter.kind is parameter.VAR_KEYWORD:
                self._others = True
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                raise InvalidArgument(
                    f"{field}: {self.name!r} takes {parameter.name!r} by position; arguments come by name, so give it "
                    "parameters with names"
                )
            else:
                self._fields.append(_field(parameter, annotation))
                self._optional = self._optional or parameter.default is not parameter.empty
        return msgspec.defstruct("params", self._fields, forbid_unknown_fields=not self._others, kw_only=True)

    def _convert(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            shaped = msgspec.convert(arguments, self._shape)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"params: {error}", reason="msg_parsing_error") from error
        keywords = msgspec.structs.asdict(shaped)
        if self._optional:
            keywords = {name: value for name, value in keywords.items() if value is not msgspec.UNSET}
        if self._others:
            keywords.update({name: value for name, value in arguments.items() if name not in keywords})
        return keywords


async def run(handler: Handler, *args: Any, asynchronous: bool, keywords: Mapping[str, Any] | None = None) -> Any:
    """Call a handler: here where it is asynchronous, else in a thread."""
    if asynchronous:
        return await handler(*args, **(keywords or {}))
    result = await asyncio.to_thread(handler, *args, **(keywords or {}))
    return await result if inspect.isawaitable(result) else result


def _parameters(field: str, handler: Handler) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"{field}: the parameters of {handler!r} cannot be read; wrap it in a function that names them"
        ) from error


def _hints(handler: Handler) -> dict[str, Any]:
    function = handler if inspect.isroutine(handler) else getattr(handler, "__call__", handler)  # noqa: B004
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):
        return {}


def _field(parameter: inspect.Parameter, annotation: Any) -> tuple[Any, ...]:
    """A field of the shape. What has a default is left to the handler where it is not given; what msgspec cannot
    check is taken as it comes."""
    if not _is_known(annotation):
        annotation = Any
    if parameter.default is parameter.empty:
        return (parameter.name, annotation)
    return (parameter.name, annotation | msgspec.UnsetType if annotation is not Any else Any, msgspec.UNSET)


def _is_known(annotation: Any) -> bool:
    """Whether msgspec can check and describe it."""
    try:
        msgspec.json.schema(annotation)
    except (TypeError, RuntimeError, NameError):
        return False
    return True
