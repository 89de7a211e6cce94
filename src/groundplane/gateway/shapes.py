"""What clients see: jobs, events, dead letters and tools as JSON."""

from __future__ import annotations

import base64
from typing import Any

from groundplane.core import codec
from groundplane.core.clock import iso_z
from groundplane.core.dead_letters import DeadLetter
from groundplane.core.envelope import Envelope
from groundplane.core.errors import ErrorRecord, InvalidArgument
from groundplane.jobs.port import Job, JobEvent, Question
from groundplane.jobs.words import ASYA
from groundplane.mesh.spec import ToolSpec


def job_json(job: Job) -> dict[str, Any]:
    """A job; the names are fixed, other programs rely on them."""
    return {
        "job_id": job.job_id,
        "tool": job.tool,
        "state": job.state.value,
        "progress": job.progress,
        "message": job.message,
        "actor": job.actor,
        "steps_completed": job.steps_completed,
        "total_steps": job.total_steps,
        "result": carryable(job.result),
        "error": error_json(job.error),
        "created_at": iso_z(job.created_at),
        "updated_at": iso_z(job.updated_at),
        "finished_at": _time(job.finished_at),
        "deadline_at": _time(job.deadline_at),
        "questions": [question_json(question) for question in job.questions],
    }


def question_json(question: Question) -> dict[str, Any]:
    """A question, and its answer once it has one."""
    return {
        "question_id": question.question_id,
        "kind": question.kind,
        "state": question.state,
        "message": question.message,
        "schema": question.schema,
        "params": question.params,
        "actor": question.actor,
        "asked_at": iso_z(question.asked_at),
        "answered_at": _time(question.answered_at),
        "action": question.action,
        "content": carryable(question.content),
        "answered_by": question.answered_by,
    }


def error_json(error: ErrorRecord | None) -> dict[str, Any] | None:
    """Code, message, details. The reason and the exception's type are in the details; tracebacks stay in the store."""
    if error is None:
        return None
    details = dict(error.details)
    if error.reason:
        details.setdefault("reason", error.reason)
    if error.type:
        details.setdefault("type", error.type)
    return {"code": error.code, "message": error.message, "details": details}


def event_json(event: JobEvent) -> dict[str, Any]:
    """One event of a job: its id, kind and time, and what the store wrote with it, times as text. That a question of
    some kind was asked is `question_kind`: `kind` is the event's.
    """
    data = {key: value for key, value in event.data.items() if key != "traceback"}
    if "kind" in data:
        data["question_kind"] = data.pop("kind")
    if "deadline_at" in data:
        data["deadline_at"] = _time(data["deadline_at"])
    return {
        "event_id": event.id,
        "job_id": event.job_id,
        "kind": event.kind,
        "at": iso_z(event.created_at),
        **data,
    }


def asya_json(job: Job) -> dict[str, Any]:
    """The older words (`id`, `status`, `progress_percent`, `error` as text), with ours beside them."""
    return {
        **job_json(job),
        "id": job.job_id,
        "status": ASYA[job.state],
        "progress_percent": job.progress,
        "current_actor": job.actor,
        "actors_completed": job.steps_completed,
        "total_actors": job.total_steps,
        "error": job.error.message if job.error else "",
        "error_details": error_json(job.error),
    }


def dead_json(letter: DeadLetter, *, whole: bool = False) -> dict[str, Any]:
    """A dead letter; `whole` with its headers and its payload, decoded where it is an envelope."""
    shown: dict[str, Any] = {
        "id": letter.id,
        "queue": letter.queue,
        "message_id": letter.message_id,
        "reason": letter.reason,
        "error": error_json(letter.error),
        "attempts": letter.attempts,
        "redrives": letter.redrives,
        "enqueued_at": iso_z(letter.enqueued_at),
        "died_at": iso_z(letter.died_at),
        "trace": letter.trace,
        "job_id": None,
    }
    try:
        envelope = Envelope.from_bytes(letter.payload)
    except InvalidArgument:
        envelope = None
    if envelope is not None:
        shown["job_id"] = envelope.job_id
    if whole:
        shown["headers"] = letter.headers
        shown["payload"] = carryable(envelope.payload) if envelope is not None else None
        shown["payload_base64"] = base64.b64encode(letter.payload).decode() if envelope is None else None
    return shown


def carryable(payload: Any) -> Any:
    """The value where JSON carries it (binary becomes base64 on the wire), else what Python shows of it: NaN,
    infinities, keys that are no text.
    """
    if payload is None or isinstance(payload, str | bool | int):
        return payload
    try:
        codec.encode(payload, "json")
    except InvalidArgument:
        return repr(payload)
    return payload


def tool_json(spec: ToolSpec) -> dict[str, Any]:
    """A tool as it is listed."""
    return {
        "name": spec.name,
        "description": spec.description,
        "input_schema": spec.input_schema,
        "output_schema": spec.output_schema,
        "route": spec.route,
        "timeout": spec.timeout_s,
        "progress": spec.progress,
        "on_disconnect": spec.on_disconnect,
        "metadata": spec.metadata,
    }


def _time(moment: int | None) -> str | None:
    return iso_z(moment) if moment is not None else None
