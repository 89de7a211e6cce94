"""What a store of jobs answers to what cannot be done. No input or output."""

from __future__ import annotations

from groundplane.core.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    GroundplaneError,
    NotFound,
    ResourceExhausted,
)
from groundplane.jobs.port import Answer, Control, NewJob, Outcome


def check_same_work(new: NewJob, tool: str, arguments_hash: str) -> None:
    """`conflict` where the idempotency key of a new job stands for other work than this."""
    if (tool, arguments_hash) != (new.tool, new.arguments_hash):
        raise Conflict(
            f"idempotency_key: {new.idempotency_key!r} was used for other work; use a new key, or the same arguments",
            reason="idempotency_mismatch",
            details={"tool": tool},
        )


def id_taken(new: NewJob) -> AlreadyExists:
    """The error for a job id that is known."""
    return AlreadyExists(f"job_id: {new.job_id!r} is taken; use a new id for a new job")


def too_many_live(new: NewJob) -> ResourceExhausted:
    """The error for an owner who has as many jobs that have not ended as it may have."""
    return ResourceExhausted(
        f"live_jobs: {new.live_max} jobs of this caller have not ended, which is the limit; wait for one, or cancel it",
        reason="live_jobs",
        details={"limit": "live_jobs", "max": new.live_max},
    )


def no_job(job_id: str) -> NotFound:
    """The error for a job id that is not known."""
    return NotFound(f"job_id: no job has the id {job_id!r}; look at the list of jobs", reason="job_not_found")


def control_refused(change: Control, outcome: Outcome) -> GroundplaneError:
    """The error for a job that was not cancelled, paused or resumed."""
    if outcome.state is None:
        return no_job(change.job_id)
    details = {"state": outcome.state.value, "action": change.action}
    if outcome.detail == "question_open":
        message = f"job_id: {change.job_id!r} waits for an answer and goes on with it; answer its questions"
        return FailedPrecondition(message, reason="question_open", details=details)
    ended = outcome.state.terminal
    why = "has ended" if ended else f"is {outcome.state.value}"
    message = f"job_id: {change.job_id!r} {why} and cannot be changed by {change.action!r}; look at its state first"
    return FailedPrecondition(message, reason="job_terminal" if ended else "job_state", details=details)


def answer_refused(change: Answer, outcome: Outcome) -> GroundplaneError:
    """The error for an answer that was not taken."""
    if outcome.state is None:
        return no_job(change.job_id)
    if outcome.detail == "question_not_found":
        return NotFound(
            f"question_id: {change.job_id!r} has no question {change.question_id!r}; look at the job's questions",
            reason="question_not_found",
        )
    details = {"state": outcome.state.value, "question_id": change.question_id}
    if outcome.detail == "question_answered":
        message = f"question_id: {change.question_id!r} was answered before; an answer never changes"
        return FailedPrecondition(message, reason="question_answered", details=details)
    message = f"job_id: {change.job_id!r} has ended; its questions were closed with it"
    return FailedPrecondition(message, reason="job_terminal", details=details)
