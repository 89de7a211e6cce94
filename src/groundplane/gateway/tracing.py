"""The spans of HTTP requests, and the ids in the log lines about them: the outermost middleware.

A request is a span, `POST /v1/jobs`, under the span that its `traceparent` names. Requests of health, and of MCP, have
none: the first say nothing, and of MCP each message has its own (`mcp_tracing`). Where this process makes no spans, the
context that came in is only carried on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundplane.core.trace_context import TRACEPARENT, TRACESTATE, TraceContext, carried, parse
from groundplane.jobs.port import Created, Job, OutboxMessage
from groundplane.telemetry import logs, traces
from groundplane.telemetry import trace_names as names

QUIET = frozenset({"/livez", "/readyz", "/healthz", "/startupz", "/mcp", "/openapi.json"})
_log = logs.get_logger("gateway")
_PARENT, _STATE = TRACEPARENT.encode(), TRACESTATE.encode()


class Traced:
    """ASGI middleware. `route_of` gives the pattern that a request matched, once it was routed."""

    def __init__(self, app: ASGIApp, route_of: Callable[[Scope], str]) -> None:
        self._app = app
        self._route_of = route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = context_of(scope["headers"])
        with logs.about(trace_id=parent.trace_id if parent is not None else None):
            if traces.on() and scope["path"] not in QUIET:
                await self._recorded(parent, scope, receive, send)
            else:
                with traces.Span(parent):
                    await self._app(scope, receive, send)

    async def _recorded(self, parent: TraceContext | None, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                span.set({names.HTTP_STATUS: status})
                if status >= 500:
                    span.fail(str(status))
            await send(message)

        with traces.start_under(parent, names.request(method), names.SERVER) as span:
            if span.context is not None:
                logs.also_about(trace_id=span.context.trace_id)
            await self._app(scope, receive, answered if span.recording else send)
            if span.recording:
                self._describe(span, scope)

    def _describe(self, span: traces.Span, scope: Scope) -> None:
        route = self._route_of(scope)
        found = {names.HTTP_METHOD: scope["method"], names.URL_PATH: scope["path"], names.URL_SCHEME: scope["scheme"]}
        if route != "unmatched":
            span.rename(names.request(scope["method"], route))
            found[names.HTTP_ROUTE] = route
        span.set({**found, names.JOB_ID: scope.get("path_params", {}).get("job_id")})


def context_of(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """The trace context of a request. A `traceparent` that is there twice is none; several `tracestate` are one."""
    parents = [value for name, value in headers if name == _PARENT]
    if len(parents) != 1:
        return None
    states = b",".join(value for name, value in headers if name == _STATE)
    return parse(parents[0].decode("latin-1"), states.decode("latin-1"))


def first_sent(queue: str) -> traces.Span:
    """The span of a job's creation with its first message, for `queue`, whose context that message carries."""
    return traces.start(names.on_queue(names.CREATE, queue), names.PRODUCER)


def told_of(span: traces.Span, created: Created) -> None:
    """What the span made. Where the idempotency key was known that is an older job, of another trace."""
    job = created.job
    if span.recording:
        span.set(traces.about_message(names.CREATE, job.route[0], job.job_id))
        span.set({names.JOB_ID: job.job_id, names.TOOL: job.tool, names.JOB_REPEATED: not created.created or None})
        if not created.created:
            span.link(parse(job.trace))


def started(job: Job) -> None:
    """The current request has started this job, or was answered with it."""
    logs.also_about(job_id=job.job_id)
    _log.debug("job_started", tool=job.tool, actor=job.route[0])
    span = traces.current()
    if span.recording:
        span.set({names.JOB_ID: job.job_id, names.TOOL: job.tool})


def about(trace: str) -> None:
    """The current request is about work of this trace; its own is another one."""
    span = traces.current()
    if span.recording:
        span.link(parse(trace))


class Relaying:
    """The spans of a batch of messages on their way from the outbox to their queues."""

    def __init__(self, messages: Sequence[OutboxMessage]) -> None:
        self._spans = [self._begun(one, len(messages)) for one in messages] if traces.on() else []

    @staticmethod
    def _begun(message: OutboxMessage, count: int) -> traces.Span:
        context = carried(message.headers)
        if context is None:
            return traces.Span()
        span = traces.start_under(context, names.on_queue(names.SEND, message.queue), names.CLIENT)
        if span.recording:
            span.set(traces.about_message(names.SEND, message.queue, message.id))
            span.set({names.BATCH_COUNT: count if count > 1 else None})
        return span

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for span in self._spans:
            if kind is not None:
                span.fail(str(getattr(error, "reason", "") or getattr(error, "code", "") or kind.__name__))
            span.end()


__all__ = ["QUIET", "Relaying", "Traced", "about", "context_of", "first_sent", "started", "told_of"]
