"""What a hop sends, and the context that it carries: with spans, without, and where the handler chose another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from groundplane.core.envelope import Envelope
from groundplane.core.trace_context import TraceContext, carried
from groundplane.mesh.routing import Decision, Send
from groundplane.mesh.tracing import Sending, followed, opened
from groundplane.queues.port import Delivery
from groundplane.telemetry import otel, traces

pytestmark = [pytest.mark.anyio, pytest.mark.req("TEL-05.1", "MESH-11")]

SENT = TraceContext("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "vendor=1")
QUIET = TraceContext("00-" + "a" * 32 + "-" + "b" * 16 + "-00")
OTHER = TraceContext("00-" + "c" * 32 + "-" + "d" * 16 + "-01")


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    found = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(found))
    with traces.made_by(otel.OtelTracer(provider, otel.Counts())):
        yield found


def envelope(context: TraceContext | None, **more: str) -> Envelope:
    headers = {**more, **(context.headers() if context is not None else {})}
    return Envelope.new(["a", "b"], {"x": 1}, headers=headers, job_id="j", envelope_id="e")


def sending(received: Envelope, sent: Envelope | None = None, shown: TraceContext | None = None) -> Sending:
    return Sending(Decision(settlement="ack", sends=[Send("b", sent or received)]), received, shown)


def context(one: Sending) -> TraceContext | None:
    return carried(one.decision.sends[0].envelope.headers)


def names(exporter: InMemorySpanExporter) -> list[str]:
    return [span.name for span in exporter.get_finished_spans()]


def test_without_spans_what_is_sent_is_what_was_decided() -> None:
    received = envelope(SENT, mine="1")
    decision = Decision(settlement="ack", sends=[Send("b", received)])
    assert Sending(decision, received, None).decision is decision


def test_a_message_carries_the_span_that_sends_it_under_the_span_of_its_hop(exporter: InMemorySpanExporter) -> None:
    with traces.start_under(SENT, "process a") as process:
        one = sending(envelope(SENT, mine="1"))
        one.done()
    (sent, hop) = exporter.get_finished_spans()
    assert (sent.name, hop.name) == ("send b", "process a")
    assert sent.parent == hop.context
    found, made = context(one), process.context
    assert found is not None
    assert made is not None
    assert (found.span_id, found.trace_id, found.tracestate) == (f"{sent.context.span_id:016x}", "a" * 32, "vendor=1")
    assert one.decision.sends[0].envelope.headers["mine"] == "1"


def test_what_was_not_sent_after_all_has_no_span_and_what_was_refused_an_error(exporter: InMemorySpanExporter) -> None:
    with traces.start_under(SENT, "process a"):
        sending(envelope(SENT))
        assert names(exporter) == []
        sending(envelope(SENT)).refused("queue_not_found")
    refused = exporter.get_finished_spans()[0]
    assert (refused.name, dict(refused.attributes or {})["error.type"]) == ("send b", "queue_not_found")


def test_a_context_that_the_handler_chose_is_the_parent_of_what_it_sends(exporter: InMemorySpanExporter) -> None:
    with traces.start_under(SENT, "process a"):
        with traces.start("call a") as call:
            pass
        sending(envelope(SENT), envelope(OTHER), call.context).done()
        sending(envelope(SENT), envelope(call.context), call.context).done()
    chosen, plain = (span for span in exporter.get_finished_spans() if span.name == "send b")
    hop = next(span for span in exporter.get_finished_spans() if span.name == "process a")
    assert chosen.parent is not None
    assert f"{chosen.parent.span_id:016x}" == OTHER.span_id
    assert plain.parent == hop.context  # it returned the headers that it was shown: that is no choice


def test_a_hop_of_an_unsampled_trace_sends_its_context_on_unchanged(exporter: InMemorySpanExporter) -> None:
    with traces.start_under(QUIET, "process a"):
        one = sending(envelope(QUIET))
        one.done()
    assert context(one) == QUIET
    assert names(exporter) == []


def test_work_that_came_without_a_trace_gets_one_here(exporter: InMemorySpanExporter) -> None:
    with traces.start_under(None, "process a") as process:
        one = sending(envelope(None))
        one.done()
    found, made = context(one), process.context
    assert found is not None
    assert made is not None
    assert found.trace_id == made.trace_id


async def test_a_trace_that_only_the_message_has_becomes_the_envelopes() -> None:
    seen: list[Envelope] = []
    bare = envelope(None)

    async def handle(delivery: Delivery) -> None:
        seen.append(opened(delivery, bare))

    delivery = Delivery(
        tag=1, queue="a", id="e", payload=b"x", headers=SENT.headers(), attempt=1, enqueued_at=1
    )  # fmt: skip
    await followed(handle, "a")(delivery)
    assert [carried(one.headers) for one in seen] == [SENT]
