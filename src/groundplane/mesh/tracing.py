"""The spans of a hop, and the ids in the log lines about it.

A delivery has one span, `process <queue>`, from its receipt to its settlement, under the span that sent its message.
Each message that it sends has one, `send <queue>`, whose context the message's envelope carries. Where this process
makes no spans, an envelope keeps the trace context that it has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from groundplane.core.envelope import Envelope
from groundplane.core.trace_context import TRACEPARENT, TraceContext, carried
from groundplane.mesh.routing import Decision, Send
from groundplane.mesh.start import TOOL
from groundplane.queues.port import Delivery
from groundplane.telemetry import logs, traces
from groundplane.telemetry import trace_names as names

Handle = Callable[[Delivery], Awaitable[None]]


def followed(handle: Handle, actor: str) -> Handle:
    """`handle`, with a span around it, and its log lines about the delivery."""

    async def followed(delivery: Delivery) -> None:
        trace = delivery.headers.get(TRACEPARENT, "")[3:35]
        with logs.about(trace_id=trace, message_id=delivery.id):
            if traces.on():
                with _processing(delivery, actor):
                    await handle(delivery)
            else:
                await handle(delivery)

    return followed


def _processing(delivery: Delivery, actor: str) -> traces.Span:
    name = names.on_queue(names.PROCESS, delivery.queue)
    span = traces.start_under(carried(delivery.headers), name, names.CONSUMER)
    if span.recording:
        span.set(traces.about_message(names.PROCESS, delivery.queue, delivery.id))
        span.set({names.ACTOR: actor, names.ATTEMPT: delivery.attempt, names.BODY_SIZE: len(delivery.payload)})
        span.set({names.REDRIVES: delivery.redrives or None})
    return span


def opened(delivery: Delivery, envelope: Envelope) -> Envelope:
    """The envelope of a delivery is known: its job goes into the span and the log lines. An envelope without a trace
    context gets that of the message which brought it, as others may send one that way.
    """
    logs.also_about(job_id=envelope.job_id)
    span = traces.current()
    if span.recording:
        tool = envelope.headers.get(TOOL)
        span.set({**about_job(envelope), names.TOOL: tool if isinstance(tool, str) else None})
        span.set({names.HOP: envelope.route.current, names.HOPS: len(envelope.route.actors)})
    if TRACEPARENT in delivery.headers and TRACEPARENT not in envelope.headers:
        brought = carried(delivery.headers)
        if brought is not None:
            return msgspec.structs.replace(envelope, headers=brought.onto(envelope.headers))
    return envelope


def about_job(envelope: Envelope) -> dict[str, Any]:
    """The job that an envelope belongs to, if any."""
    if envelope.job_id is None:
        return {}
    return {names.JOB_ID: envelope.job_id, names.CONVERSATION_ID: envelope.job_id}


class Sending:
    """What a decision sends, each message with a span of its own, which is exported once it was sent.

    `shown` is the context that the handler saw. A handler that put another one into its output's headers is the parent
    of what it sent; otherwise the current span is.
    """

    def __init__(self, decision: Decision, received: Envelope, shown: TraceContext | None) -> None:
        self._spans: list[traces.Span] = []
        self.decision = decision
        if traces.on() and not _carries(traces.current(), received):
            known = {received.headers.get(TRACEPARENT), shown.traceparent if shown is not None else None}
            sends = [self._traced(send, known) for send in decision.sends]
            self.decision = msgspec.structs.replace(decision, sends=sends)

    def _traced(self, send: Send, known: set[Any]) -> Send:
        envelope = send.envelope
        chosen = carried(envelope.headers)
        parent = traces.current().context if chosen is None or chosen.traceparent in known else chosen
        span = traces.start_under(parent, names.on_queue(names.SEND, send.queue), names.PRODUCER)
        self._spans.append(span)
        if span.recording:
            span.set({**traces.about_message(names.SEND, send.queue, envelope.id), **about_job(envelope)})
            span.set({names.DELAY_S: send.delay_s or None})
        if span.context is None:
            return send
        headers = span.context.onto(envelope.headers)
        return msgspec.structs.replace(send, envelope=msgspec.structs.replace(envelope, headers=headers))

    def done(self) -> None:
        """All of it was sent."""
        for span in self._spans:
            span.end()

    def refused(self, reason: str) -> None:
        """None of it was sent, and it is not tried again."""
        for span in self._spans:
            span.fail(reason)
            span.end()


def _carries(span: traces.Span, envelope: Envelope) -> bool:
    """Whether what is sent carries the right context as it is: nothing is recorded, and the span is the envelope's."""
    context = span.context.traceparent if span.context is not None else None
    return not span.recording and envelope.headers.get(TRACEPARENT) == context


def decided(decision: Decision, attempt: int, log: logs.Logger, *, ends: bool = True) -> None:
    """Span and log are told what was decided; the span fails with an attempt that failed, where the delivery `ends` so.
    The text of the failure is in the job and the dead letter alone: it may hold what was worked on.
    """
    if decision.settlement == "ack":
        log.debug("handled", attempt=attempt, sent=[send.queue for send in decision.sends])
        return
    if decision.settlement == "nack":
        log.info("retry", attempt=attempt, reason=decision.reason, delay_s=round(decision.delay_s, 3))
    else:
        log.warning("dead_letter", attempts=attempt, reason=decision.reason)
    span = traces.current()
    if not span.recording:
        return
    said: dict[str, Any] = {names.REASON: decision.reason, names.ATTEMPT: attempt}
    if decision.settlement == "nack":
        span.event(names.RETRY, {**said, names.DELAY_S: decision.delay_s})
    else:
        span.event(names.DEAD_LETTER, said)
    if ends:
        span.fail(decision.reason)


__all__ = ["Sending", "about_job", "decided", "followed", "opened"]
