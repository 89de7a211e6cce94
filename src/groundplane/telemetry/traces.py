"""Traces: what was done for one piece of work, in every process that touched it.

    async with tracing("groundplane-gateway", queues=url):
        with start(names.on_queue(names.CREATE, queue), names.PRODUCER) as span:
            await send(headers=span.context.headers())

Off, which is the default, nothing of OpenTelemetry is imported and a span is a small object that hands the trace
context on that came in. On (`asked_for`), spans are OpenTelemetry's: sampled as `OTEL_TRACES_SAMPLER` says, exported in
batches by a thread of their own. What goes wrong there is counted, told once in the log, and never raised.

The span that is entered is the current one of its task, and the parent of spans that are started in it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import msgspec

from groundplane.core.trace_context import TraceContext, carried, parse
from groundplane.telemetry import trace_names as names
from groundplane.telemetry.logs import get_logger

T = TypeVar("T")

FLUSH_S = 3.0
"""How long a process that ends waits for its last spans to be taken, in seconds."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_log = get_logger("traces")


class Span:
    """A span that is not recorded: it takes everything, keeps nothing, and carries `context` on. Used once, as a
    context manager or by `end`.
    """

    __slots__ = ("_token", "context")
    recording = False

    def __init__(self, context: TraceContext | None = None) -> None:
        self.context = context
        self._token: Token[Span] | None = None

    def rename(self, name: str) -> None:
        """Give it another name, where more became known."""

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes; those with the value None are left out."""

    def event(self, name: str, attributes: Mapping[str, Any] | None = None) -> None:
        """Something happened now."""

    def link(self, context: TraceContext | None) -> None:
        """It has to do with another span, of the same or another trace."""

    def fail(self, error_type: str, exception_type: str = "") -> None:
        """It failed, by a word of a small set. Texts of errors may hold payloads, so there is no place for them."""

    def end(self, end_ns: int | None = None) -> None:
        """It is over; only now is it exported. `end_ns`: Unix nanoseconds, None = now."""

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
        if kind is not None and issubclass(kind, Exception):
            self.fail(str(getattr(error, "reason", "") or getattr(error, "code", "") or kind.__name__), kind.__name__)
        self.end()


class _Received(Span):
    """One that carries on what a message carried: most are never asked, and so it is read when somebody asks."""

    __slots__ = ("_carriers",)

    def __init__(self, carriers: tuple[Mapping[str, Any], ...]) -> None:
        self._carriers = carriers
        self._token = None

    def __getattr__(self, name: str) -> Any:
        if name != "context":
            raise AttributeError(name)
        self.context = next(filter(None, map(carried, self._carriers)), None)
        return self.context


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Recorded spans of this process: ended so far, taken by the exporter's target, and not taken by it."""

    ended: int = 0
    exported: int = 0
    failed: int = 0


class Tracer(Protocol):
    """What makes spans; see `otel`."""

    def start(
        self,
        name: str,
        kind: str,
        parent: TraceContext | None,
        attributes: Mapping[str, Any] | None,
        start_ns: int | None,
        *,
        remote: bool = True,
    ) -> Span:
        """A span under `parent`, which is `remote` where another process made it; without one the first of a trace."""
        ...

    def statistics(self) -> Statistics:
        """What became of the spans."""
        ...

    def close(self, timeout_s: float) -> None:
        """Export what is there, for at most so long, and stop. Blocks."""
        ...


class _Process:
    """The tracing of this process. Only `tracing` changes it."""

    tracer: Tracer | None = None
    system = "groundplane"


_process = _Process()
_current: ContextVar[Span] = ContextVar("groundplane_span", default=Span())  # noqa: B039  it cannot be changed


def on() -> bool:
    """Whether this process makes spans."""
    return _process.tracer is not None


def current() -> Span:
    """The span that this task is in; outside of any, one that is not recorded and has no context."""
    return _current.get()


def start(
    name: str,
    kind: str = names.INTERNAL,
    *,
    attributes: Mapping[str, Any] | None = None,
    start_ns: int | None = None,
) -> Span:
    """A span under the current one."""
    return start_under(_current.get().context, name, kind, attributes=attributes, start_ns=start_ns)


def start_under(
    parent: TraceContext | None,
    name: str,
    kind: str = names.INTERNAL,
    *,
    attributes: Mapping[str, Any] | None = None,
    start_ns: int | None = None,
) -> Span:
    """A span under `parent`, which mostly came from another process; without one the first of a new trace."""
    tracer = _process.tracer
    if tracer is None:
        return Span(parent)
    here = parent is _current.get().context
    return tracer.start(name, kind, parent, attributes, start_ns, remote=not here)


async def within(name: str, kind: str, work: Awaitable[T]) -> T:
    """Await `work` in a span under the current one."""
    with start(name, kind):
        return await work


def carry_on(*carriers: Mapping[str, Any]) -> None:
    """Instead of a span while tracing is off, for who handles messages in tasks that do nothing else: the task hands
    on to its end or its next message what the first of these headers carries that carries a context.
    """
    _current.set(_Received(carriers))


def outgoing() -> TraceContext | None:
    """The context to send along: that of the current span, else that of the span of OpenTelemetry's own which a program
    that uses it is in. Nothing is imported for it.
    """
    context = _current.get().context
    used = sys.modules.get("opentelemetry.trace")
    if context is not None or used is None:
        return context
    theirs = used.get_current_span().get_span_context()
    if not theirs.is_valid:
        return None
    return parse(
        f"00-{theirs.trace_id:032x}-{theirs.span_id:016x}-{theirs.trace_flags:02x}", theirs.trace_state.to_header()
    )


def about_message(operation: str, queue: str, message_id: str) -> dict[str, Any]:
    """The attributes that messaging spans have in common."""
    return {
        names.MESSAGING_SYSTEM: _process.system,
        names.OPERATION_NAME: operation,
        names.OPERATION_TYPE: operation,
        names.DESTINATION: queue,
        names.MESSAGE_ID: message_id,
    }


def statistics() -> Statistics:
    """What became of this process's spans; zeros while tracing is off."""
    return _process.tracer.statistics() if _process.tracer is not None else Statistics()


def asked_for(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether OpenTelemetry's variables ask for traces: an endpoint or an exporter is named, and neither
    `OTEL_SDK_DISABLED` nor `OTEL_TRACES_EXPORTER=none` says no. An empty variable is as good as none.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    return bool(exporter) or any(environ.get(name, "").strip() for name in _ENDPOINTS)


@asynccontextmanager
async def tracing(service: str, role: str, *, namespace: str = "", queues: str = "embedded://") -> AsyncIterator[None]:
    """Make spans while open, where that is asked for and can be had; they are flushed at the end, within `FLUSH_S`.

    `service` is the name where `OTEL_SERVICE_NAME` gives none; `queues` the URL that tells the messaging system.
    """
    tracer = _opened(service, role, namespace) if asked_for() else None
    if tracer is None:
        yield
        return
    with made_by(tracer, names.system_of(queues)):
        try:
            yield
        finally:
            await asyncio.to_thread(tracer.close, FLUSH_S)


@contextmanager
def made_by(tracer: Tracer, system: str = "groundplane") -> Iterator[None]:
    """Let spans of this process be made by `tracer` while open."""
    before = _process.tracer, _process.system
    _process.tracer, _process.system = tracer, system
    try:
        yield
    finally:
        _process.tracer, _process.system = before


def _opened(service: str, role: str, namespace: str) -> Tracer | None:
    """The tracer; None, and a line in the log, where a package is missing or a variable is wrong."""
    try:
        from groundplane.telemetry import otel

        return otel.open_tracer(service, role, namespace)
    except ModuleNotFoundError as error:
        _log.warning("traces_off", missing=error.name, hint="install groundplane[otel], or unset OTEL_*")
    except Exception as error:  # noqa: BLE001 - what is asked for by variables of others must not stop the work
        _log.warning("traces_off", error=repr(error), hint="see the OTEL_* variables")
    return None


__all__ = [
    "Span", "Statistics", "Tracer", "about_message", "asked_for", "carry_on", "current", "made_by", "on",
    "outgoing", "start", "start_under", "statistics", "tracing", "within",
]  # fmt: skip
