"""One delivery, from receipt to settlement."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from groundplane.core import failpoints
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.deadline import effective_timeout_s
from groundplane.core.envelope import Envelope
from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument, NotFound, Unavailable
from groundplane.core.lazily import Lazily
from groundplane.jobs.port import Ask, Change, JobState, Note, OutboxMessage, Park
from groundplane.mesh import tracing
from groundplane.mesh.claims import Claims
from groundplane.mesh.ledger.port import Ledger
from groundplane.mesh.repeats import Repeats, Sender, key_of, marked, may_repeat
from groundplane.mesh.reporting import Reporter
from groundplane.mesh.routing import (
    RECEIVED,
    Decision,
    Failure,
    Outcome,
    Result,
    Router,
    dedup_key,
    finished,
    note,
)
from groundplane.mesh.runtime_client import CallRequest, RuntimeClient
from groundplane.mesh.settling import Settler
from groundplane.mesh.sidecar.bus import ServiceBus
from groundplane.mesh.sidecar.calls import Active, CallWatch, Telling
from groundplane.mesh.sidecar.outgoing import Outgoing, told_of
from groundplane.mesh.sidecar.work import Suspended, Work, token_of
from groundplane.mesh.start import outbox_message
from groundplane.mesh.tracing import about_job
from groundplane.queues.port import MAY_REPEAT, Ack, Carried, Delivery, Nack, OutgoingMessage, Reject, Settlement
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces
from groundplane.telemetry.logs import Logger
from groundplane.telemetry.metrics import ActorMetrics, CustomMetrics

T = TypeVar("T")

HAND_BACK_S = 1.0
_SETTLE_BACKOFF_S = (0.1, 0.2, 0.5, 1.0)


class Staged(msgspec.Struct, frozen=True, kw_only=True):
    """What a hop needs where the queues neither settle atomically nor drop repeats: see `mesh.repeats`."""

    repeats: Repeats
    sender: Sender


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What handling needs; opened once by the process. `staged` is there where the queues do not drop repeats."""

    router: Router
    client: RuntimeClient
    settler: Settler
    active: Active
    metrics: ActorMetrics
    custom: CustomMetrics
    log: Logger
    reporter: Reporter | None = None
    claims: Claims | None = None
    ledger: Ledger | None = None
    bus: Lazily[ServiceBus] | None = None
    staged: Staged | None = None
    in_place: bool = False
    clock: Clock = SYSTEM_CLOCK


class Handling:
    """Handles deliveries, many at once. Never raises but for cancellation: each delivery gets an end."""

    def __init__(self, parts: Parts, start_slots: asyncio.Semaphore) -> None:
        self._p = parts
        self._slots = start_slots
        self._outgoing = Outgoing(parts.claims)

    async def handle(self, delivery: Delivery) -> None:
        """Decode, and handle the envelope."""
        envelope = await self.opened(delivery)
        if envelope is not None:
            await self.handle_envelope(delivery, envelope)

    async def handle_envelope(self, delivery: Delivery, envelope: Envelope) -> None:
        """Handle what was opened."""
        await self.run(self.work_of(delivery, envelope))

    def work_of(self, delivery: Delivery, envelope: Envelope) -> Work:
        """The work that a plain delivery is."""
        claims = [envelope.claim] if envelope.claim is not None else []
        telling = Telling(self._p.reporter, token_of(envelope))
        return Work(
            delivery=delivery,
            envelope=envelope,
            claims=claims,
            attempt=delivery.attempt,
            telling=telling,
            key=key_of(delivery, envelope) if self._p.staged is not None else "",
            doubtful=self._p.staged is not None and may_repeat(delivery),
        )

    async def opened(self, delivery: Delivery) -> Envelope | None:
        """The envelope in a delivery; what is none becomes a dead letter, and None is returned."""
        parts = self._p
        parts.metrics.received.inc()
        parts.metrics.size.observe(len(delivery.payload))
        try:
            envelope = Envelope.from_bytes(delivery.payload)
        except InvalidArgument as error:
            parts.metrics.failed(error.reason)
            decision = parts.router.unreadable(
                delivery.id,
                delivery.payload,
                error.message,
                reason=error.reason or "msg_parsing_error",
                now_ms=parts.clock.now_ms(),
            )
            work = self.work_of(delivery, decision.sends[0].envelope)
            await self.guarded(delivery, lambda: self.finish(work, decision))
            return None
        failpoints.hit("received")
        return tracing.opened(delivery, envelope)

    async def run(self, work: Work) -> bool:
        """Admit, call, decide, settle. True when the envelope went on (a join may be released then)."""
        done = False

        async def steps() -> None:
            nonlocal done
            done = await self._steps(work)

        await self.guarded(work.delivery, steps)
        return done

    async def guarded(self, delivery: Delivery, steps: Callable[[], Awaitable[object]]) -> None:
        """Whatever goes wrong, the delivery gets an end: handed back where trying again may help."""
        started = time.perf_counter()
        self._p.metrics.active.inc()
        try:
            await steps()
            self._p.active.at_ease()
        except GroundplaneError as error:
            self._p.active.troubled(error)
            lost = error.reason in ("delivery_lost", "delivery_settled")
            traces.current().fail(error.reason or error.code)
            self._p.log.warning("delivery_not_finished", message_id=delivery.id, error=str(error), lost=lost)
            if not lost:
                await self._hand_back(Nack(delivery, HAND_BACK_S, counts=not error.retryable, error=error.to_record()))
        except Exception as error:  # noqa: BLE001 - a fault of ours must not stop the queue; it ends as a dead letter
            traces.current().fail("sidecar_fault", type(error).__name__)
            self._p.log.error("sidecar_fault", message_id=delivery.id, traceback=traceback.format_exc())
            record = Failure(reason="processing_error", message=f"sidecar: {error!r}").record()
            await self._hand_back(Nack(delivery, HAND_BACK_S, error=record))
        finally:
            self._p.metrics.active.dec()
            self._p.metrics.processing.observe(time.perf_counter() - started)

    async def _hand_back(self, settlement: Settlement) -> None:
        try:
            await self._p.settler.settle(settlement)
        except GroundplaneError as error:  # the consumer hands it back when it closes
            self._p.log.warning("hand_back_failed", message_id=settlement.delivery.id, error=str(error))

    async def _steps(self, work: Work) -> bool:
        parts = self._p
        if not await self.admitted(work):
            return False
        while True:
            refused = parts.router.refuse(work.envelope, attempt=work.attempt, now_ms=parts.clock.now_ms())
            if refused is not None:
                return await self.finish(work, refused)
            outcome = await self._outcome(work)
            if outcome is None:
                return False
            if isinstance(outcome, Suspended):
                return await self._suspend(work, outcome)
            decision = parts.router.decide(work.envelope, outcome, attempt=work.attempt, now_ms=parts.clock.now_ms())
            if parts.in_place and decision.settlement == "nack":
                parts.metrics.retries.inc()
                tracing.decided(decision, work.attempt, parts.log, ends=False)
                if not await self._still_wanted(work, decision):
                    return True
                await asyncio.sleep(decision.delay_s)
                work.attempt += 1
                continue
            return await self.finish(work, decision)

    async def admitted(self, work: Work) -> bool:
        """Ask the job whether it still wants this. A finished job's envelope is acked, a paused one's is parked. The
        envelope gets the deadline that counts now: pauses have moved it.

        A redriven one runs although its job has ended: somebody has asked for it.
        """
        parts, envelope = self._p, work.envelope
        if parts.reporter is None or envelope.job_id is None:
            return True
        token = token_of(envelope)
        received = parts.router.progress(envelope, RECEIVED, "received", attempt=work.attempt)
        standing, untold = await parts.reporter.begin(received, token)
        if standing is not None and standing.deadline_at is not None:
            work.envelope = msgspec.structs.replace(envelope, deadline_at=standing.deadline_at)
        state = standing.state if standing is not None else None
        if state is None or not (state.terminal or state is JobState.PAUSED):
            work.telling.add(untold)
            return True
        if state.terminal:
            data = {"envelope_id": envelope.id, "actor": parts.router.spec.name, "state": state.value}
            if work.delivery.redrives:
                parts.reporter.post([Note(job_id=envelope.job_id, kind="redriven", data=data)], token)
                work.leave_job()
                return True
            parts.reporter.post([Note(job_id=envelope.job_id, kind="skipped", data=data)], token)
            traces.current().event(names.SKIPPED, {names.JOB_STATE: state.value})
            await self.settle(work, Ack(work.delivery))
            await self.release_claims(work, ())
            return False
        await parts.reporter.apply([Park(job_id=envelope.job_id, message=self._parked(work))], token)
        traces.current().event(names.PARKED)
        await self.settle(work, Ack(work.delivery), handled=False)
        return False

    def _parked(self, work: Work) -> OutboxMessage:
        """The delivery as it comes again when its job goes on: the same for each copy of it."""
        delivery = work.delivery
        own = Envelope.from_bytes(delivery.payload)
        key = f"{dedup_key(own)}:parked:{delivery.enqueued_at}"
        message = outbox_message(delivery.queue, own, delivery.payload, dedup=key)
        if self._p.staged is not None:  # should this be handed out again after the job went on, there are two of it
            message = msgspec.structs.replace(message, headers={**message.headers, MAY_REPEAT: "1"})
        return message

    async def _suspend(self, work: Work, call: Suspended) -> bool:
        """Ask, pause and park in one step, and ack. What is left in a process after that is nothing. The claims of the
        delivery stay: it comes again.
        """
        parts, job_id = self._p, work.envelope.job_id
        assert parts.reporter is not None
        assert job_id is not None
        failpoints.hit("asking")
        ask = Ask(job_id=job_id, questions=call.questions, message=self._parked(work))
        changes = [*work.telling.take(), ask]
        reporter, token = parts.reporter, token_of(work.envelope)
        outcomes = await self._persist(work, lambda again: reporter.apply(changes, token))
        failpoints.hit("asked")
        outcome = outcomes[-1]
        if outcome.state is not None and (outcome.applied or outcome.detail == "repeated"):
            traces.current().event(names.PARKED)
            await self.settle(work, Ack(work.delivery), handled=False)
            return False
        failure = Failure(
            reason="question_refused",
            message=f"ask: the job does not take the question ({outcome.detail})",
            retryable=False,
            details={"detail": outcome.detail},
        )
        decision = parts.router.decide(work.envelope, failure, attempt=work.attempt, now_ms=parts.clock.now_ms())
        if outcome.state is not None and outcome.state.terminal:
            return await self._too_late(work, decision, outcome.state)
        return await self.finish(work, decision)

    async def _outcome(self, work: Work) -> Outcome | Suspended | None:
        """Call the runtime. None when the work was handed back or skipped before it began."""
        parts, envelope = self._p, work.envelope
        if work.resolve and envelope.claim is not None:
            try:
                work.payload = await self._claims().payload(envelope)
            except GroundplaneError as error:
                if error.retryable:
                    raise
                return Failure(
                    reason=error.reason or "msg_parsing_error", code=error.code, message=error.message, retryable=False
                )
        elif work.resolve:
            work.payload = envelope.payload
        watch = CallWatch(
            parts.router,
            envelope,
            work.telling,
            parts.custom,
            parts.metrics,
            parts.ledger,
            work.attempt,
            parts.reporter,
            parts.bus,
        )
        with parts.active.calling(work.delivery, watch):
            async with self._slots:
                watch.started()
                outcome: Outcome | Suspended = Failure(
                    reason="cancelled", message="job: ended before the call", retryable=False
                )
                if watch.ticket.reason is None:
                    outcome = await self._called(work, watch)
        if watch.ticket.reason == "drain":  # told to stop half-way: whatever it says, it may not have finished
            traces.current().event(names.HANDED_BACK)
            await self.settle(work, Nack(work.delivery, counts=False))
            return None
        return outcome

    async def _called(self, work: Work, watch: CallWatch) -> Outcome | Suspended:
        parts, envelope = self._p, work.envelope
        watch.called()
        timeout_s = effective_timeout_s(parts.router.spec.timeout_s, envelope.deadline_at, parts.clock)
        with traces.start(names.call(parts.router.spec.name)) as span:
            work.trace = span.context
            watch.outside.began(span.context, timeout_s)
            try:
                outcome = await self._answered(work, watch, timeout_s)
            finally:
                watch.outside.stop("it has ended")
            asked = watch.asking.open  # the run was over when it asked, whatever it went on to say
            if span.recording:
                span.set({names.ACTOR: parts.router.spec.name, names.ATTEMPT: work.attempt, **about_job(envelope)})
                if isinstance(outcome, Failure) and not asked:
                    span.fail(outcome.reason, outcome.type)
        if asked:
            return Suspended(asked)
        if watch.away is not None and isinstance(outcome, Failure):
            raise watch.away
        if isinstance(outcome, Result):
            parts.metrics.processed.inc()
        else:
            parts.metrics.failed(outcome.reason)
        return outcome

    async def _answered(self, work: Work, watch: CallWatch, timeout_s: float | None) -> Outcome:
        """The call itself, timed."""
        parts, envelope = self._p, work.envelope
        request = CallRequest(
            envelope=work.shown(),
            timeout_s=timeout_s,
            deadline_ms=envelope.deadline_at,
            attempt=work.attempt,
            idempotency_key=dedup_key(envelope),
            join=work.join,
        )
        started = time.perf_counter()
        outcome = await parts.client.call(request, watch, watch.ticket)
        spent = time.perf_counter() - started
        parts.metrics.runtime.observe(spent)
        parts.active.spent(spent)
        failpoints.hit("handled")
        return outcome

    async def finish(self, work: Work, decision: Decision) -> bool:
        """Report, send and settle as decided, in one transaction where it can be. True when the envelope went on."""
        parts = self._p
        sending = tracing.Sending(decision, work.envelope, work.trace)
        decision = sending.decision
        try:
            kept, messages = await self._persist(work, lambda again: self._outgoing.messages(work, decision))
            state = await self._told_and_settled(work, decision, kept, messages)
        except (InvalidArgument, NotFound) as error:
            sending.refused(error.reason or error.code)
            return await self._undeliverable(work, decision, error)
        if state is not None:
            return await self._too_late(work, decision, state)
        sending.done()
        tracing.decided(decision, work.attempt, parts.log)
        if decision.settlement == "nack":
            parts.metrics.retries.inc()
            return False
        for send in decision.sends:
            parts.metrics.sent(send.queue)
        if decision.settlement == "reject":
            parts.metrics.dead.inc()
        else:
            await self.release_claims(work, kept)
        return decision.settlement == "ack"

    async def _still_wanted(self, work: Work, decision: Decision) -> bool:
        """Before an attempt in place: False when the job ended meanwhile, and the delivery is settled."""
        state = await self._told(work, [*work.telling.take(), *decision.reports])
        if state is not None:
            await self._too_late(work, decision, state)
        return state is None

    async def _told(self, work: Work, reports: list[Change]) -> JobState | None:
        """Tell the job. The state in which it ended before, if it has."""
        reporter = self._p.reporter
        if reporter is None or not reports:
            return None
        outcomes = await self._persist(work, lambda again: reporter.apply(reports, token_of(work.envelope)))
        state = outcomes[-1].state
        return state if state is not None and state.terminal else None

    async def _told_and_settled(
        self, work: Work, decision: Decision, kept: list[Envelope], messages: list[OutgoingMessage]
    ) -> JobState | None:
        """Tell the job, settle and send. Or, where the job has ended before, the state in which it did."""
        settlement = _settlement(work.delivery, decision)
        untold = work.telling.take()
        reports = [*untold, *decision.reports]
        last = self._last(decision, kept)
        carry = None
        if self._p.reporter is not None and reports:
            carry = await self._p.reporter.carried([*reports, *last])
        if carry is None:
            ended = await self._told(work, reports)
            if ended is None:
                await self.settle(work, settlement, messages)
            return ended
        if last:
            messages = [told_of(message) for message in messages]
        try:
            await self.settle(work, settlement, messages, carry)
        except GroundplaneError as error:
            if error.reason == "job_terminal":
                return JobState(error.details["state"])
            work.telling.add(untold)
            raise
        return None

    def _last(self, decision: Decision, kept: list[Envelope]) -> list[Change]:
        """The end of the branch, where this is its last hop and all of its result is at hand: nobody need wait for the
        end actor to read it. The end of what failed is not for the sidecar to tell: a join ahead may wait for it.
        """
        if decision.settlement != "ack" or len(decision.sends) != 1:
            return []
        (send,), (envelope,) = decision.sends, kept
        if send.queue != self._p.router.happy_end or envelope.job_id is None or envelope.claim is not None:
            return []
        return [finished(envelope, envelope.payload)]

    async def _too_late(self, work: Work, decision: Decision, state: JobState) -> bool:
        """The job ended meanwhile: the outcome is recorded and goes nowhere."""
        data = {"actor": self._p.router.spec.name, "state": state.value, "outcome": decision.reason or "completed"}
        work.telling.post(note(work.envelope, "late_outcome", data))
        traces.current().event(names.LATE, {names.JOB_STATE: state.value})
        await self.settle(work, Ack(work.delivery))
        await self.release_claims(work, ())
        return True

    async def _undeliverable(self, work: Work, decision: Decision, error: GroundplaneError) -> bool:
        """What was to be sent cannot be: an unknown actor, or too large. That is a failure of this hop."""
        if decision.settlement == "reject" or error.reason not in ("queue_not_found", "payload_too_large"):
            raise Unavailable(f"error end: {error.message}", details={"reason": error.reason}) from error
        reason = "route_error" if error.reason == "queue_not_found" else error.reason
        failure = Failure(reason=reason, message=error.message, retryable=False)
        self._p.metrics.failed(reason)
        failed = self._p.router.decide(work.envelope, failure, attempt=work.attempt, now_ms=self._p.clock.now_ms())
        return await self.finish(work, failed)

    async def settle(
        self,
        work: Work,
        settlement: Settlement,
        sends: Sequence[OutgoingMessage] = (),
        carry: Carried | None = None,
        *,
        handled: bool = True,
    ) -> None:
        """Send and settle; while the backend is away, keep trying: the outcome is known and must not be lost.

        With `handled` the delivery, acked or rejected, is remembered where repeats are dropped here.
        """
        started = time.perf_counter()
        settler, staged = self._p.settler, self._p.staged
        if staged is None:
            await self._persist(work, lambda again: settler.settle(settlement, sends, carry))
        else:
            await self._settle_staged(work, settlement, sends, staged, handled)
        self._p.active.progressed()
        self._p.metrics.send.observe(time.perf_counter() - started)

    async def _settle_staged(
        self, work: Work, settlement: Settlement, sends: Sequence[OutgoingMessage], staged: Staged, handled: bool
    ) -> None:
        """One after the other, each durable before the next: outputs, the delivery's key, the settlement. A dead letter
        comes before what tells the job of it, as the port promises: a repeat of a delivery whose job has ended is not
        begun, so nobody would write it later.
        """
        key = work.key if handled else ""

        def messages(again: bool) -> Sequence[OutgoingMessage]:
            return marked(sends) if again or work.doubtful else sends

        if isinstance(settlement, Reject):
            await self._persist(work, lambda again: self._p.settler.settle(settlement, messages(again)))
            if key:
                await self._persist(work, lambda again: staged.repeats.record(key))
            return
        if sends:
            await self._persist(work, lambda again: staged.sender.send(messages(again)))
            failpoints.hit("child_sent")
        if key and isinstance(settlement, Ack):
            await self._persist(work, lambda again: staged.repeats.record(key))
        await self._persist(work, lambda again: self._p.settler.settle(settlement))

    async def _persist(self, work: Work, step: Callable[[bool], Awaitable[T]]) -> T:
        """Take a step of what follows a call, with False at first; while its backend is away, again, with True: the
        outcome is known, and the handler must not run once more for want of a place to put it.
        """
        tries = 0
        while True:
            try:
                return await step(tries > 0)
            except GroundplaneError as error:
                if not error.retryable or isinstance(error, FailedPrecondition) or self._p.active.draining:
                    raise
                self._p.active.troubled(error)
                self._p.log.warning("settle_failed", message_id=work.delivery.id, error=str(error))
            await asyncio.sleep(_SETTLE_BACKOFF_S[min(tries, len(_SETTLE_BACKOFF_S) - 1)])
            tries += 1

    async def release_claims(self, work: Work, kept: list[Envelope] | tuple[()] = ()) -> None:
        """Delete the claims of a delivery that was acked, but those that `kept` envelopes carry on."""
        if work.claims and self._p.claims is not None:
            try:
                await self._p.claims.release(work.claims, kept)
            except GroundplaneError as error:  # the collector finds them by their age
                self._p.log.warning("claim_not_deleted", message_id=work.delivery.id, error=str(error))

    def _claims(self) -> Claims:
        if self._p.claims is None:
            raise InvalidArgument("claim: this sidecar has no blobs; give it --blobs", reason="msg_parsing_error")
        return self._p.claims


def _settlement(delivery: Delivery, decision: Decision) -> Settlement:
    if decision.settlement == "nack":
        return Nack(delivery, decision.delay_s, error=decision.error)
    if decision.settlement == "reject":
        return Reject(delivery, decision.reason, decision.error)
    return Ack(delivery)


__all__ = ["Handling", "Parts", "Staged"]
