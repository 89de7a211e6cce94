"""The tracer as this process sees it: off, on, sampled or not, and an exporter that fails."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace as otel_api
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from groundplane.core.trace_context import TraceContext
from groundplane.telemetry import logs, otel, trace_names, traces
from groundplane.telemetry.metrics import render
from groundplane.telemetry.process import process_registry

pytestmark = [pytest.mark.anyio, pytest.mark.req("TEL-05.1", "TEL-05.3")]

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = TraceContext(f"00-{TRACE}-{SPAN}-01", "vendor=1")
UNSAMPLED = TraceContext(f"00-{TRACE}-{SPAN}-00", "vendor=1")


class Memory:
    """A tracer whose spans stay in this process."""

    def __init__(self, sampler: Sampler) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = otel.OtelTracer(provider, otel.Counts())

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


def _made(sampler: Sampler) -> Iterator[Memory]:
    memory = Memory(sampler)
    with traces.made_by(memory.tracer):
        yield memory


@pytest.fixture
def memory() -> Iterator[Memory]:
    yield from _made(ParentBased(ALWAYS_ON))


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.configure("INFO", form="json", stream=stream)
    yield stream
    logs.configure("INFO")


def _lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_off_a_span_hands_on_the_context_that_came_in_and_nothing_else_happens() -> None:
    assert not traces.on()
    with traces.start_under(SAMPLED, "a") as outer:
        with traces.start("b", trace_names.PRODUCER) as inner:
            inner.set({"x": 1})
            inner.event("e")
            inner.fail("word")
            assert traces.current() is inner
        assert traces.current() is outer
    assert (outer.recording, outer.context, inner.context) == (False, SAMPLED, SAMPLED)
    assert traces.current().context is None
    assert traces.statistics() == traces.Statistics()


def test_nothing_of_opentelemetry_is_imported_while_it_is_off() -> None:
    program = (
        "import asyncio, sys\n"
        "from groundplane.telemetry import traces\n"
        "async def main():\n"
        "    async with traces.tracing('s', 'r'):\n"
        "        with traces.start('a'): pass\n"
        "asyncio.run(main())\n"
        "import groundplane.mesh.sidecar.process, groundplane.mesh.ends_process\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'google', 'requests'))])\n"
    )
    environment = {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60,
        env={**_kept_environment(), **environment},
    )  # fmt: skip
    assert done.stdout == "[]\n"


def _kept_environment() -> dict[str, str]:
    import os

    return {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, False),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, False),
        ({"OTEL_SDK_DISABLED": "no", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " ", "OTEL_TRACES_EXPORTER": ""}, False),
        ({"OTEL_SERVICE_NAME": "mine"}, False),
    ],
)
def test_the_variables_of_opentelemetry_ask_for_traces(variables: dict[str, str], asked: bool) -> None:
    assert traces.asked_for(variables) is asked


def test_a_span_is_the_parent_of_those_that_are_started_in_it(memory: Memory) -> None:
    with traces.start_under(SAMPLED, "outer", trace_names.CONSUMER) as outer:
        with traces.start("inner", trace_names.PRODUCER, attributes={"x": 1, "left out": None}):
            pass
    found = memory.spans()
    assert found["outer"].parent is not None
    assert f"{found['outer'].parent.span_id:016x}" == SPAN
    assert found["inner"].parent == found["outer"].context
    assert outer.context is not None
    assert outer.context.traceparent == f"00-{TRACE}-{found['outer'].context.span_id:016x}-01"
    assert outer.context.tracestate == "vendor=1"
    assert found["inner"].attributes == {"x": 1}
    assert [one.kind.name for one in (found["outer"], found["inner"])] == ["CONSUMER", "PRODUCER"]
    assert memory.tracer.statistics().ended == 2


def test_an_exception_fails_the_span_by_its_kind_and_tells_nothing_of_its_text(memory: Memory) -> None:
    with pytest.raises(ValueError, match="canary"), traces.start_under(None, "a"):
        raise ValueError("canary")
    span = memory.spans()["a"]
    assert span.attributes == {"error.type": "ValueError"}
    assert not span.status.is_ok
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("exception", {"exception.type": "ValueError"})
    ]
    assert "canary" not in span.to_json()


def test_a_cancelled_task_does_not_fail_its_span(memory: Memory) -> None:
    async def work() -> None:
        with traces.start_under(None, "a"):
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert memory.spans()["a"].status.status_code is otel_api.StatusCode.UNSET


def test_what_the_parent_did_not_sample_is_not_recorded_and_its_context_goes_on_unchanged(memory: Memory) -> None:
    with traces.start_under(UNSAMPLED, "a") as span, traces.start("b") as inner:
        assert (span.recording, span.context, inner.context) == (False, UNSAMPLED, UNSAMPLED)
    assert memory.spans() == {}


def test_a_trace_that_begins_here_unsampled_tells_everybody_so() -> None:
    for memory in _made(ParentBased(TraceIdRatioBased(0.0))):
        with traces.start_under(None, "root") as root:
            assert root.context is not None
            assert (root.recording, root.context.sampled) == (False, False)
            with traces.start("child") as child:
                assert child.context == root.context
        assert memory.spans() == {}


def test_a_sampler_that_does_not_ask_the_parent_is_asked_itself() -> None:
    for memory in _made(ALWAYS_ON):
        with traces.start_under(UNSAMPLED, "a") as span:
            assert span.recording
        assert set(memory.spans()) == {"a"}


def test_a_span_that_is_never_ended_is_never_exported(memory: Memory) -> None:
    traces.start_under(None, "a")
    assert memory.spans() == {}


def test_the_context_that_is_sent_along_is_that_of_the_programs_own_opentelemetry_where_there_is_no_other() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    with provider.get_tracer("mine").start_as_current_span("mine") as mine:
        context = mine.get_span_context()
        assert traces.outgoing() == TraceContext(
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        )
        with traces.start_under(SAMPLED, "ours"):
            assert traces.outgoing() == SAMPLED


class Broken(SpanExporter):
    """Raises, refuses, or takes, as told."""

    def __init__(self) -> None:
        self.does = "raise"

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.does == "raise":
            raise OSError("no route")
        return SpanExportResult.SUCCESS if self.does == "take" else SpanExportResult.FAILURE


def test_trouble_of_an_exporter_is_counted_and_told_once_until_it_is_over(log: io.StringIO) -> None:
    inner, counts = Broken(), otel.Counts()
    exporter = otel.CountingExporter(inner, counts)
    spans: Any = [object(), object()]
    results = []
    for does in ("raise", "refuse", "refuse", "take", "take", "refuse"):
        inner.does = does
        results.append(exporter.export(spans))
    assert [one is SpanExportResult.SUCCESS for one in results] == [False, False, False, True, True, False]
    assert (counts.exported, counts.failed) == (4, 8)
    assert [line["event"] for line in _lines(log)] == [
        "traces_not_exported", "traces_exported_again", "traces_not_exported",
    ]  # fmt: skip


def test_the_end_does_not_wait_for_an_exporter_that_hangs(log: io.StringIO) -> None:
    let_go = threading.Event()

    class Hanging(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            let_go.wait(60)
            return SpanExportResult.SUCCESS

    provider, counts = TracerProvider(shutdown_on_exit=False), otel.Counts()
    provider.add_span_processor(otel.BatchSpanProcessor(otel.CountingExporter(Hanging(), counts)))
    tracer = otel.OtelTracer(provider, counts)
    tracer.start("a", trace_names.INTERNAL, None, None, None).end()
    tracer.close(0.05)  # the SDK alone would wait for half a minute
    (line,) = _lines(log)
    assert (line["event"], line["spans"]) == ("traces_lost", 1)
    let_go.set()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "'zipkin' is not installed"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon", "'carrier-pigeon' is not one of http/protobuf, grpc"),
    ],
)
async def test_an_exporter_that_cannot_be_had_leaves_tracing_off_and_says_so(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    async with traces.tracing("s", "r"):
        assert not traces.on()
    (line,) = _lines(log)
    assert (line["event"], line["level"]) == ("traces_off", "WARNING")
    assert said in line["error"]


async def test_a_missing_extra_leaves_tracing_off_and_names_it(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delitem(sys.modules, "groundplane.telemetry.otel")
    monkeypatch.delattr("groundplane.telemetry.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    async with traces.tracing("s", "r"):
        assert not traces.on()
    (line,) = _lines(log)
    assert (line["event"], line["missing"]) == ("traces_off", "opentelemetry.sdk.trace")
    assert "groundplane[otel]" in line["hint"]


async def test_a_process_with_a_provider_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(otel_api, "get_tracer_provider", lambda: provider)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    async with traces.tracing("s", "r"):
        with traces.start_under(None, "a"):
            pass
    with provider.get_tracer("theirs").start_as_current_span("after"):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["a", "after"]


def test_the_resource_is_ours_under_what_the_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    plain = otel._resource("groundplane-ends", "ends", "acme").attributes
    assert (plain["service.name"], plain["service.namespace"], plain["groundplane.role"]) == (
        "groundplane-ends", "acme", "ends",
    )  # fmt: skip
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=shop,deployment.environment.name=test")
    told = otel._resource("groundplane-ends", "ends", "acme").attributes
    assert (told["service.name"], told["service.namespace"]) == ("mine", "shop")
    assert (told["deployment.environment.name"], told["groundplane.role"]) == ("test", "ends")


@pytest.mark.req("TEL-05.2")
def test_names_that_are_conventions_are_those_of_the_conventions() -> None:
    """Against the package that OpenTelemetry generates from them."""
    from opentelemetry.semconv._incubating.attributes import (
        gen_ai_attributes,
        jsonrpc_attributes,
        mcp_attributes,
        messaging_attributes,
        rpc_attributes,
    )
    from opentelemetry.semconv.attributes import (
        error_attributes,
        exception_attributes,
        http_attributes,
        network_attributes,
        server_attributes,
        service_attributes,
        url_attributes,
    )

    modules = (
        gen_ai_attributes, jsonrpc_attributes, mcp_attributes, messaging_attributes, rpc_attributes, error_attributes,
        exception_attributes, http_attributes, network_attributes, server_attributes, service_attributes,
        url_attributes,
    )  # fmt: skip
    theirs = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    theirs |= {"process.pid", "service.instance.id", "service.namespace"}
    ours = {value for name, value in vars(trace_names).items() if name.isupper() and isinstance(value, str)}
    dotted = {value for value in ours if "." in value and not value.startswith(("groundplane.", "https:"))}
    assert len(dotted) > 30
    assert dotted <= theirs


@pytest.mark.req("TEL-05.3")
def test_the_registry_of_a_process_tells_what_became_of_its_spans(memory: Memory, tmp_path: Path) -> None:
    registry = process_registry("ends", folder=tmp_path)
    with traces.start_under(None, "a"):
        pass
    shown = render(registry).decode()
    assert 'groundplane_trace_spans_total{outcome="ended"} 1.0' in shown
    assert 'groundplane_trace_spans_total{outcome="failed"} 0.0' in shown
