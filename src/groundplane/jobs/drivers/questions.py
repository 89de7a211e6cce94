"""Questions and answers, and the pauses that come with them.

A job is paused while it has open questions, or somebody has paused it. `stays_paused` tells that somebody has, of a job
that has open questions too: without it, the last answer lets the job go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groundplane.jobs.drivers import parking
from groundplane.jobs.drivers.unit import LIVE, SHOWN, Row, Steps, Unit, one, pack, shown
from groundplane.jobs.port import Answer, Ask, JobState, Question

QUESTIONS_MAX = 256
"""Of one job, over its life."""

PAUSED = "state = 'paused', paused_at = :now, pauses = pauses + 1"
_BEGUN = "CASE WHEN progress > 0 OR actor <> '' OR fan_out THEN 'running' ELSE 'pending' END"
_SHIFTED = "deadline_at + max(0, :now - paused_at)"
RESUMED = f"state = {_BEGUN}, deadline_at = {_SHIFTED}, paused_at = NULL"
_ASKED = """stays_paused = stays_paused OR (state = 'paused' AND open_questions = 0),
  open_questions = open_questions + :count,
  paused_at = CASE state WHEN 'paused' THEN paused_at ELSE :now END,
  pauses = pauses + CASE state WHEN 'paused' THEN 0 ELSE 1 END,
  state = 'paused'"""
_WAITS = "open_questions > 1 OR stays_paused"
_ANSWERED = f"""open_questions = open_questions - 1,
  stays_paused = (stays_paused AND open_questions > 1),
  deadline_at = CASE WHEN {_WAITS} THEN deadline_at ELSE {_SHIFTED} END,
  paused_at = CASE WHEN {_WAITS} THEN paused_at END,
  state = CASE WHEN {_WAITS} THEN 'paused' ELSE {_BEGUN} END"""


def moved(unit: Unit, seq: int, kind: str, changed: str, guard: str, *, reason: str = "") -> Steps[JobState | None]:
    """Pause or resume a job: an event of that kind, and the state afterwards; None where the guard does not let it."""
    rows = yield _update(changed, guard), {"now": unit.now, "seq": seq}
    if not rows:
        return None
    _tell(unit, kind, rows[0], reason)
    return JobState(rows[0][1])


def ask(unit: Unit, seq: int, state: JobState, pauses: int, change: Ask) -> Steps[tuple[JobState, str]]:
    """Pause a live job until there are answers, and park the envelope. The state afterwards, and '' or why nothing
    changed.
    """
    rows = yield "SELECT question_id FROM job_questions WHERE job = ?", (seq,)
    known = {row[0] for row in rows}
    fresh = [question for question in change.questions if question.question_id not in known]
    if len(known) + len(fresh) > QUESTIONS_MAX:
        return state, "too_many_questions"
    if fresh:
        _insert(unit, seq, len(known), fresh)
        values = {"now": unit.now, "seq": seq, "count": len(fresh)}
        rows = yield _update(_ASKED, f"state IN {LIVE}"), values
        pauses = rows[0][8]
        if state is not JobState.PAUSED:
            _tell(unit, "paused", rows[0], "question")
        state = JobState.PAUSED
        for question in fresh:
            unit.event(seq, "asked", _asked_shown(question))
    parked = yield from parking.park(unit, change.message, seq, pauses, held=state is JobState.PAUSED)
    return state, "" if fresh or parked else "repeated"


def answer(unit: Unit, seq: int, change: Answer) -> Steps[JobState | None]:
    """Answer an open question; with the last one a job goes on that nobody has paused. The state afterwards, or None:
    see `why_not`.
    """
    answered = yield (
        "UPDATE job_questions SET state = 'answered', answered_at = ?, action = ?, content = ?, answered_by = ? "
        "WHERE job = ? AND question_id = ? AND state = 'open' RETURNING question_id",
        (unit.now, change.action, _content(change), change.by, seq, change.question_id),
    )
    if not answered:
        return None
    rows = yield _update(_ANSWERED, "open_questions > 0"), {"now": unit.now, "seq": seq}
    state = JobState(rows[0][1])
    data = {"state": state.value, "question_id": change.question_id, "action": change.action, "by": change.by}
    unit.event(seq, "answered", data)
    if state is not JobState.PAUSED:
        _tell(unit, "resumed", rows[0])
        parking.release(unit, seq)
    return state


def why_not(seq: int, change: Answer) -> Steps[str]:
    """Why a question that is not open takes no answer: it has this very one, another, or there is no such question."""
    row = yield from one(
        "SELECT action, content, answered_by FROM job_questions WHERE job = ? AND question_id = ?",
        seq,
        change.question_id,
    )
    if row is None:
        return "question_not_found"
    return "repeated" if row == (change.action, _content(change), change.by) else "question_answered"


def _update(changed: str, guard: str) -> str:
    return (
        f"UPDATE jobs SET {changed}, updated_at = :now WHERE seq = :seq AND {guard} "
        f"RETURNING {SHOWN}, deadline_at, pauses"
    )


def _tell(unit: Unit, kind: str, row: Row, reason: str = "") -> None:
    data = {**shown(row), "deadline_at": row[7]}
    if reason:
        data["reason"] = reason
    unit.event(row[0], kind, data)


def _insert(unit: Unit, seq: int, number: int, fresh: Sequence[Question]) -> None:
    unit.tell_each(
        "INSERT INTO job_questions (job, question_id, number, kind, message, schema, params, actor, envelope_id, "
        "asked_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                seq,
                question.question_id,
                number + at,
                question.kind,
                question.message,
                pack(question.schema) if question.schema is not None else None,
                pack(question.params),
                question.actor,
                question.envelope_id,
                unit.now,
            )
            for at, question in enumerate(fresh)
        ],
    )


def _asked_shown(question: Question) -> dict[str, Any]:
    names = ("question_id", "kind", "message", "schema", "params", "actor", "envelope_id")
    return {"state": "paused", **{name: getattr(question, name) for name in names}}


def _content(change: Answer) -> bytes | None:
    return pack(change.content) if change.action == "accept" else None
