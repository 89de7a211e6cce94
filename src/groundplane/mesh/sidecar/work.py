"""One call to be made, and how its handler sees it."""

from __future__ import annotations

from typing import Any

import msgspec

from groundplane.core.envelope import Claim, Envelope
from groundplane.core.trace_context import TraceContext
from groundplane.jobs.port import Question
from groundplane.mesh.sidecar.calls import Telling
from groundplane.mesh.start import ENDED_JOB, JOB_TOKEN
from groundplane.queues.port import Delivery


class Suspended(msgspec.Struct, frozen=True):
    """A call that ended with questions nobody has answered yet: not an outcome, and not an attempt."""

    questions: list[Question]


class Work(msgspec.Struct, kw_only=True):
    """One call to be made: a delivery, the envelope it is about (a joined one is not the delivery's own).

    `key` is the delivery's where repeats are dropped here; `doubtful` that it may be one, and so may what it sends.
    `trace` is the context that the handler sees, where this process makes spans.
    """

    delivery: Delivery
    envelope: Envelope
    payload: Any = None
    join: dict[str, Any] | None = None
    resolve: bool = True
    claims: list[Claim] = []
    attempt: int = 1
    telling: Telling
    key: str = ""
    doubtful: bool = False
    trace: TraceContext | None = None

    def leave_job(self) -> None:
        """A redriven dead letter whose job has ended runs on by itself, the job stays as it ended.

        What becomes of it is persisted by the end actors like the outcome of any envelope without a job.
        """
        envelope = self.envelope
        headers = {key: value for key, value in envelope.headers.items() if key != JOB_TOKEN}
        headers[ENDED_JOB] = envelope.job_id
        self.envelope = msgspec.structs.replace(envelope, job_id=None, deadline_at=None, headers=headers)

    def shown(self) -> dict[str, Any]:
        """The envelope as the handler sees it: with its payload, without the job's token, under its own call's span."""
        envelope = self.envelope
        headers = envelope.headers
        if JOB_TOKEN in headers:
            headers = {key: value for key, value in headers.items() if key != JOB_TOKEN}
        if self.trace is not None:
            headers = self.trace.onto(headers)
        shown: dict[str, Any] = {
            "id": envelope.id,
            "route": {"actors": envelope.route.actors, "current": envelope.route.current},
            "headers": headers,
            "payload": self.payload,
            "attempt": self.attempt,
            "created_at": envelope.created_at,
            "root_id": envelope.root_id or envelope.id,
        }
        for field in ("parent_id", "job_id", "deadline_at"):
            value = getattr(envelope, field)
            if value is not None:
                shown[field] = value
        return shown


def token_of(envelope: Envelope) -> str:
    """The token of its job; empty where it has none."""
    token = envelope.headers.get(JOB_TOKEN, "")
    return token if isinstance(token, str) else ""


__all__ = ["Suspended", "Work", "token_of"]
