"""What becomes of an envelope: pure, synchronous decisions. The input and output happen elsewhere, after them.

One call of the runtime has one outcome (`Result` or `Failure`), and one `Decision` follows from it: which envelopes are
sent where, how the delivery is settled, what is reported to the job. Nothing here reads a clock or rolls dice: both are
passed in, so that every rule can be tested by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import msgspec

from groundplane.core.envelope import ERROR_END, HAPPY_END, Envelope, Route
from groundplane.core.errors import ErrorRecord
from groundplane.core.reasons import REASONS
from groundplane.jobs.port import Change, Finish, Note, Progress, Split
from groundplane.mesh.spec import ActorSpec, Limits
from groundplane.queues.port import ATTEMPTS_MAX

RESERVED = "groundplane-"
"""Headers that begin so belong to the mesh: a handler can neither set nor drop them."""

CRASHES = frozenset({"connection_error", "runtime_crashed"})
OUT_OF_MEMORY = frozenset({"oom_error", "cuda_oom_error"})
OOM_ATTEMPTS = 2
RETRY_SIGNAL = "groundplane.mesh.runtime.Retry"
RECEIVED, PROCESSING, COMPLETED = 10.0, 50.0, 100.0


class Output(msgspec.Struct, frozen=True):
    """One thing that a handler returned. `route` and `headers` are there when the handler edited them."""

    payload: Any
    route: Route | None = None
    headers: dict[str, Any] | None = None


class Result(msgspec.Struct, frozen=True):
    """The call succeeded. Without outputs the route ends here, with the input payload or with `stopped_with`."""

    outputs: list[Output] = []
    fanout: bool = False
    stopped_with: Any = msgspec.UNSET


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The call failed. `types` is the exception's ancestry; `retryable` None leaves it to the reason and the policy."""

    reason: str
    message: str
    type: str = ""
    types: list[str] = []
    traceback: str = ""
    details: dict[str, Any] = {}
    retryable: bool | None = None
    retry_after_s: float | None = None
    code: str = ""

    def record(self, **details: Any) -> ErrorRecord:
        """The error as it is kept and sent."""
        row = REASONS.get(self.reason)
        return ErrorRecord(
            code=self.code or (row.code if row else "internal"),
            message=self.message,
            reason=self.reason,
            details={**self.details, **details},
            retryable=self.retryable if self.retryable is not None else bool(row and row.retryable),
            type=self.type,
            traceback=self.traceback,
        )


Outcome: TypeAlias = Result | Failure


class Send(msgspec.Struct, frozen=True):
    """An envelope for a queue."""

    queue: str
    envelope: Envelope
    delay_s: float = 0.0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done. `sends` and the settlement happen together, and `reports` are durable before or with them.

    `reject` carries the dead letter's reason; `nack` waits `delay_s`, costing an attempt. `error` is the last error.
    """

    settlement: Literal["ack", "nack", "reject"]
    sends: list[Send] = []
    reports: list[Change] = []
    delay_s: float = 0.0
    reason: str = ""
    error: ErrorRecord | None = None


class Router:
    """The rules of one actor. Stateless: may be shared."""

    def __init__(
        self,
        spec: ActorSpec,
        limits: Limits | None = None,
        *,
        happy_end: str = HAPPY_END,
        error_end: str = ERROR_END,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.spec = spec
        self.limits = limits or Limits()
        self.happy_end = happy_end
        self.error_end = error_end
        self._rand = rand

    def decide(self, envelope: Envelope, outcome: Outcome, *, attempt: int, now_ms: int) -> Decision:
        """The decision for one outcome. `attempt` is the delivery's, 1-based; `now_ms` Unix milliseconds."""
        if isinstance(outcome, Failure):
            return self._failed(envelope, outcome, attempt, now_ms)
        if not outcome.outputs:
            return self._ended(envelope, outcome, attempt)
        wrong = self._wrong_route(envelope, outcome)
        if wrong is not None:
            return self._failed(envelope, wrong, attempt, now_ms)
        return self._succeeded(envelope, outcome, attempt)

    def refuse(self, envelope: Envelope, *, attempt: int, now_ms: int) -> Decision | None:
        """The decision for an envelope that must not be started, or None: its turn is not here, its time is over, or
        its attempts are used up by crashes."""
        failure = self._refusal(envelope, attempt, now_ms)
        return None if failure is None else self._failed(envelope, failure, attempt, now_ms)

    def unreadable(self, message_id: str, data: bytes, message: str, *, reason: str, now_ms: int) -> Decision:
        """The decision for bytes that are no envelope: a dead letter with these bytes, and news to the error end."""
        failure = Failure(reason=reason, message=message, retryable=False)
        envelope = Envelope(id=message_id, route=Route([self.spec.name]), payload=_shown(data), created_at=now_ms)
        return self._final(envelope, failure, 1, reason)

    def _succeeded(self, envelope: Envelope, result: Result, attempt: int) -> Decision:
        outputs = result.outputs
        reports: list[Change] = self.progress(envelope, COMPLETED, "completed", attempt=attempt)
        if len(outputs) == 1 and not result.fanout:
            one = outputs[0]
            following = msgspec.structs.replace(
                envelope,
                route=self._next_route(envelope, one),
                payload=one.payload,
                headers=_headers(envelope, one),
                claim=None,
                attempt=1,
                error=None,
            )
            return Decision(settlement="ack", sends=[self._forward(following)], reports=reports)
        children = [
            msgspec.structs.replace(
                envelope.child(index, len(outputs), one.payload, self._next_route(envelope, one)),
                headers=_headers(envelope, one),
                error=None,
            )
            for index, one in enumerate(outputs)
        ]
        if envelope.job_id is not None:
            ids = [child.id for child in children]
            reports.append(Split(job_id=envelope.job_id, envelope_id=envelope.id, children=ids))
        return Decision(settlement="ack", sends=[self._forward(child) for child in children], reports=reports)

    def _ended(self, envelope: Envelope, result: Result, attempt: int) -> Decision:
        """The handler ended the route: the happy end gets the input payload (or the one given), marked as aborted."""
        last = msgspec.structs.replace(envelope, aborted=True, attempt=1, error=None)
        if result.stopped_with is not msgspec.UNSET:
            last = msgspec.structs.replace(last, payload=result.stopped_with, claim=None)
        return Decision(
            settlement="ack",
            sends=[Send(self.happy_end, last)],
            reports=self.progress(envelope, COMPLETED, "completed", attempt=attempt),
        )

    def _failed(self, envelope: Envelope, failure: Failure, attempt: int, now_ms: int) -> Decision:
        final = self._final_reason(failure, attempt)
        if final is not None:
            return self._final(envelope, failure, attempt, final)
        delay_s = failure.retry_after_s
        if delay_s is None:
            delay_s = self.spec.retry.delay_s(attempt, self._rand)
        if envelope.deadline_at is not None and now_ms + delay_s * 1000 >= envelope.deadline_at:
            return self._final(envelope, failure, attempt, "deadline_exceeded")
        data = {"actor": self.spec.name, "attempt": attempt, "reason": failure.reason, "delay_s": delay_s}
        return Decision(
            settlement="nack",
            delay_s=delay_s,
            error=failure.record(),
            reason=failure.reason,
            reports=note(envelope, "retry", {**data, "message": failure.message[:500]}),
        )

    def _final(self, envelope: Envelope, failure: Failure, attempt: int, final: str) -> Decision:
        record = failure.record(final=final, attempts=attempt, actor=self.spec.name)
        told = msgspec.structs.replace(envelope, error=msgspec.to_builtins(record), attempt=1, aborted=False)
        data = {"actor": self.spec.name, "attempts": attempt, "reason": final, "message": failure.message[:500]}
        return Decision(
            settlement="reject",
            sends=[Send(self.error_end, told)],
            reason=final,
            error=record,
            reports=note(envelope, "dead_letter", data),
        )

    def _final_reason(self, failure: Failure, attempt: int) -> str | None:
        """Why there is no further attempt, or None when there is one."""
        row = REASONS.get(failure.reason)
        if failure.retryable is False:
            return failure.reason if row is not None and not row.retryable else "non_retryable"
        if self.spec.retry.refuses(failure.types):
            return "non_retryable"
        allowed = self._attempts(failure)
        if allowed == 0:
            return failure.reason
        return None if attempt < allowed else "max_retries_exhausted"

    def _attempts(self, failure: Failure) -> int:
        """How many attempts a failure of this kind may use in all; 0 when it is never tried again."""
        row = REASONS.get(failure.reason)
        asked = RETRY_SIGNAL in failure.types
        if failure.reason in CRASHES:
            return max(ATTEMPTS_MAX, self.spec.retry.attempts)
        if failure.reason in OUT_OF_MEMORY:
            return OOM_ATTEMPTS
        if failure.reason == "timeout_error":
            return self.spec.retry.attempts if self.spec.retry_timeouts else 0
        if asked:  # the handler raised Retry: that is a wish, not a failure
            return max(ATTEMPTS_MAX, self.spec.retry.attempts)
        if row is not None and not row.retryable and failure.retryable is None:
            return 0
        return self.spec.retry.attempts

    def _refusal(self, envelope: Envelope, attempt: int, now_ms: int) -> Failure | None:
        route = envelope.route
        if route.actor != self.spec.name:
            message = (
                f"route.current: {route.current!r} names {route.actor!r}, but this is the queue of {self.spec.name!r}"
            )
            return Failure(reason="route_error", message=message)
        if len(route.actors) > self.limits.hops_max:
            return self._too_long(route)
        if envelope.deadline_at is not None and envelope.deadline_at <= now_ms:
            late = now_ms - envelope.deadline_at
            return Failure(reason="deadline_exceeded", message=f"deadline_at: passed {late} ms ago; it was not started")
        allowed = max(ATTEMPTS_MAX, self.spec.retry.attempts)
        if attempt > allowed:
            message = f"attempt: {attempt} of {allowed}; the ones before ended without an outcome (crashes)"
            return Failure(reason="attempts_exhausted", message=message)
        return None

    def _wrong_route(self, envelope: Envelope, result: Result) -> Failure | None:
        if len(result.outputs) > self.limits.fanout_max:
            message = f"outputs: {len(result.outputs)} are more than fanout_max {self.limits.fanout_max}"
            return Failure(reason="payload_too_large", message=message)
        for output in result.outputs:
            new = output.route
            if new is None:
                continue
            old = envelope.route
            if new.current not in (old.current, old.current + 1) or new.actors[: old.current + 1] != old.past:
                message = (
                    f"route: {new.actors!r} at {new.current} does not keep the past {old.past!r}; only actors that "
                    "are still to come may be edited"
                )
                return Failure(reason="route_error", message=message)
            if len(new.actors) > self.limits.hops_max:
                return self._too_long(new)
        return None

    def _too_long(self, route: Route) -> Failure:
        message = f"route: {len(route.actors)} actors are more than hops_max {self.limits.hops_max}; does it loop?"
        return Failure(reason="route_error", message=message)

    def _next_route(self, envelope: Envelope, output: Output) -> Route:
        actors = output.route.actors if output.route is not None else envelope.route.actors
        return Route(actors, envelope.route.current + 1)

    def _forward(self, envelope: Envelope) -> Send:
        return Send(envelope.route.actor or self.happy_end, envelope)

    def progress(
        self, envelope: Envelope, weight: float, status: str, message: str = "", *, attempt: int = 1
    ) -> list[Change]:
        """The report that this hop is so far (weights of the progress formula), or nothing without a job."""
        if envelope.job_id is None:
            return []
        change = Progress(
            job_id=envelope.job_id,
            envelope_id=envelope.id,
            hop=envelope.route.current,
            hops=len(envelope.route.actors),
            actor=self.spec.name,
            weight=weight,
            message=message,
            status=status,
            attempt=attempt,
        )
        return [change]


def note(envelope: Envelope, kind: str, data: dict[str, Any]) -> list[Change]:
    """An event for the job's log, or nothing without a job."""
    if envelope.job_id is None:
        return []
    return [Note(job_id=envelope.job_id, kind=kind, data={"envelope_id": envelope.id, **data})]


def finished(envelope: Envelope, result: Any, key: str | None = None) -> Finish:
    """The end of a branch that succeeded. `key` names the blob with its outcome, once there is one."""
    assert envelope.job_id is not None
    return Finish(
        job_id=envelope.job_id, envelope_id=envelope.id, result=result, aborted=envelope.aborted, result_key=key
    )


def dedup_key(envelope: Envelope, *, redrives: int = 0) -> str:
    """`<id>:<hop>`; a dead letter that was redriven may fail again within the window, so its news differ."""
    plain = f"{envelope.id}:{envelope.route.current}"
    return f"{plain}:r{redrives}" if redrives else plain


def last_actor(envelope: Envelope) -> str:
    """The actor that handled it last: the present one, or the last of a finished route."""
    return envelope.route.actor or (envelope.route.actors[-1] if envelope.route.actors else "unknown")


def _headers(envelope: Envelope, output: Output) -> dict[str, Any]:
    """Headers survive every hop; a handler adds and changes its own, never those of the mesh."""
    if output.headers is None:
        return envelope.headers
    own = {key: value for key, value in output.headers.items() if not key.startswith(RESERVED)}
    return {**envelope.headers, **own}


def _shown(data: bytes) -> Any:
    """Unreadable bytes as a payload that JSON can carry; the dead letter has the bytes themselves."""
    try:
        return {"text": data.decode("utf-8")[:65536]}
    except UnicodeDecodeError:
        import base64

        return {"base64": base64.b64encode(data[:65536]).decode()}
