"""Spans made by the OpenTelemetry SDK. Imported only where tracing is on; needs the extra `otel`.

The SDK reads its own variables: sampler, limits, batches (`OTEL_BSP_*`), service name and resource, the exporter its
endpoint, headers, timeout, compression and certificates. What is decided here is only which exporter it is
(`OTEL_TRACES_EXPORTER`, default `otlp`, over `http/protobuf` unless `OTEL_EXPORTER_OTLP_PROTOCOL` says otherwise), and
that a process which has a tracer provider already (`opentelemetry-instrument`) keeps that.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from groundplane._version import __version__
from groundplane.core.errors import InvalidArgument
from groundplane.core.ids import new_id
from groundplane.core.trace_context import TraceContext
from groundplane.telemetry import trace_names as names
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.traces import Span, Statistics, Tracer

_KINDS = {
    names.INTERNAL: SpanKind.INTERNAL,
    names.SERVER: SpanKind.SERVER,
    names.CLIENT: SpanKind.CLIENT,
    names.PRODUCER: SpanKind.PRODUCER,
    names.CONSUMER: SpanKind.CONSUMER,
}
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_GROUP = "opentelemetry_traces_exporter"
_log = get_logger("traces")


class Counts:
    """What became of the spans. The export thread writes the last two, each by itself."""

    def __init__(self) -> None:
        self.ended = 0
        self.exported = 0
        self.failed = 0


class RecordedSpan(Span):
    """A span of the SDK."""

    __slots__ = ("_counts", "_span")
    recording = True

    def __init__(self, span: trace.Span, context: TraceContext, counts: Counts) -> None:
        super().__init__(context)
        self._span = span
        self._counts = counts

    def rename(self, name: str) -> None:
        """See `Span`."""
        self._span.update_name(name)

    def set(self, attributes: Mapping[str, Any]) -> None:
        """See `Span`."""
        self._span.set_attributes(_present(attributes))

    def event(self, name: str, attributes: Mapping[str, Any] | None = None) -> None:
        """See `Span`."""
        self._span.add_event(name, _present(attributes or {}))

    def link(self, context: TraceContext | None) -> None:
        """See `Span`."""
        if context is not None:
            self._span.add_link(_span_context(context))

    def fail(self, error_type: str, exception_type: str = "") -> None:
        """See `Span`."""
        self._span.set_attribute(names.ERROR_TYPE, error_type)
        if exception_type:
            self._span.add_event(names.EXCEPTION, {names.EXCEPTION_TYPE: exception_type})
        self._span.set_status(Status(StatusCode.ERROR, error_type))

    def end(self, end_ns: int | None = None) -> None:
        """See `Span`."""
        self._counts.ended += 1
        self._span.end(end_ns)


class OtelTracer:
    """Makes spans with a provider. One that is `ours` is shut down at the end, another only flushed."""

    def __init__(self, provider: TracerProvider, counts: Counts, *, ours: bool = True) -> None:
        self._provider = provider
        self._counts = counts
        self._ours = ours
        self._tracer = provider.get_tracer(names.SCOPE, __version__, names.SCHEMA_URL)
        self._asks_parent = isinstance(provider.sampler, ParentBased)

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
        """See `Tracer`. What the parent did not sample costs nothing here, and its context goes on as it is."""
        context = Context()
        if parent is not None:
            if self._asks_parent and not parent.sampled:
                return Span(parent)
            context = trace.set_span_in_context(NonRecordingSpan(_span_context(parent, remote)), context)
        given = _present(attributes or {})
        span = self._tracer.start_span(name, context, _KINDS[kind], given, start_time=start_ns)
        made = _trace_context(span.get_span_context())
        return RecordedSpan(span, made, self._counts) if span.is_recording() else Span(made)

    def statistics(self) -> Statistics:
        """See `Tracer`."""
        counts = self._counts
        return Statistics(ended=counts.ended, exported=counts.exported, failed=counts.failed)

    def close(self, timeout_s: float) -> None:
        """See `Tracer`. The SDK's own limits are longer, so a thread does it that is not waited for at the end."""
        finish = self._provider.shutdown if self._ours else self._provider.force_flush
        thread = threading.Thread(target=finish, name="groundplane-traces-close", daemon=True)
        thread.start()
        thread.join(timeout_s)
        counts = self._counts
        lost = counts.ended - counts.exported
        if self._ours and (thread.is_alive() or lost > 0):
            _log.warning("traces_lost", spans=lost, hint="the target of OTEL_EXPORTER_OTLP_ENDPOINT did not take them")


class CountingExporter(SpanExporter):
    """An exporter whose trouble is counted, and told once until it is over."""

    def __init__(self, inner: SpanExporter, counts: Counts) -> None:
        self._inner = inner
        self._counts = counts
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the thread of the batches. Never raises."""
        why = "refused, or not reached"
        try:
            result = self._inner.export(spans)
        except Exception as error:  # noqa: BLE001 - an exporter of anybody; the spans are lost, the work goes on
            result, why = SpanExportResult.FAILURE, repr(error)
        if result is SpanExportResult.SUCCESS:
            self._counts.exported += len(spans)
            if self._failing:
                _log.info("traces_exported_again", failed=self._counts.failed)
        else:
            self._counts.failed += len(spans)
            if not self._failing:
                _log.warning("traces_not_exported", spans=len(spans), error=why, hint="work goes on without them")
        self._failing = result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        """Close the exporter."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Let the exporter send what it holds."""
        return self._inner.force_flush(timeout_millis)


def open_tracer(service: str, role: str, namespace: str) -> Tracer:
    """The tracer of this process, as the variables say. Raises where an exporter is unknown or not installed."""
    counts = Counts()
    found = trace.get_tracer_provider()
    if isinstance(found, TracerProvider):
        return OtelTracer(found, counts, ours=False)
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())  # its words come after ours, plain and often
    logging.getLogger("opentelemetry").propagate = False
    exporters = [_exporter(name) for name in _exporter_names()]
    provider = TracerProvider(resource=_resource(service, role, namespace), shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(CountingExporter(exporter, counts)))
    return OtelTracer(provider, counts)


def _resource(service: str, role: str, namespace: str) -> Resource:
    """Ours, under what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say."""
    ours = {
        names.SERVICE_NAME: service,
        names.SERVICE_NAMESPACE: namespace or None,
        names.SERVICE_INSTANCE_ID: new_id(),
        names.PROCESS_PID: os.getpid(),
        names.ROLE: role,
    }
    return Resource.create(_present(ours)).merge(OTELResourceDetector().detect())


def _exporter_names() -> list[str]:
    asked = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    return [_by_protocol(name) for part in asked.split(",") if (name := part.strip()) and name != "none"]


def _by_protocol(name: str) -> str:
    if name != "otlp":
        return name
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((text for one in variables if (text := os.environ.get(one, "").strip())), "http/protobuf")
    if protocol not in _PROTOCOLS:
        raise InvalidArgument(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is not one of {', '.join(_PROTOCOLS)}")
    return _PROTOCOLS[protocol]


def _exporter(name: str) -> SpanExporter:
    found = next(iter(entry_points(group=_GROUP, name=name)), None)
    if found is None:
        known = ", ".join(sorted({one.name for one in entry_points(group=_GROUP)}))
        raise InvalidArgument(f"OTEL_TRACES_EXPORTER: {name!r} is not installed; there are {known}")
    made: SpanExporter = found.load()()
    return made


def _span_context(context: TraceContext, remote: bool = True) -> SpanContext:
    state = TraceState.from_header([context.tracestate]) if context.tracestate else None
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), remote, TraceFlags(context.flags), state)


def _trace_context(context: SpanContext) -> TraceContext:
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return TraceContext(traceparent, context.trace_state.to_header() if context.trace_state else "")


def _present(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if value is not None}


__all__ = ["OtelTracer", "open_tracer"]
