"""Applying changes: each is guarded by the rows themselves; whoever comes too late leaves an event, not a change."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from groundplane.core.errors import ErrorRecord, FailedPrecondition
from groundplane.jobs import progress
from groundplane.jobs.drivers import branches, parking, questions
from groundplane.jobs.drivers.unit import LIVE, SHOWN, Row, Steps, Unit, end, error_shown, pack, shown
from groundplane.jobs.port import (
    Answer,
    Ask,
    Change,
    Control,
    Finish,
    JobState,
    Joined,
    Note,
    Outcome,
    Park,
    Progress,
    Split,
)

_CHILDREN_SHOWN = 256


def apply(unit: Unit, changes: Sequence[Change]) -> Steps[list[Outcome]]:
    """All of them, in order."""
    outcomes: list[Outcome] = []
    for kind, group in itertools.groupby(changes, key=_run_of):
        run = list(group)
        if isinstance(kind, str):
            outcomes += yield from _progress(unit, run)
            continue
        for change in run:
            outcomes.append((yield from _APPLY[kind](unit, change)))
    return outcomes


def _run_of(change: Change) -> type | str:
    """What goes together: the progress of one job is one update."""
    return change.job_id if isinstance(change, Progress) else type(change)


def apply_to_live(unit: Unit, changes: Sequence[Change]) -> Steps[None]:
    """All of them, or `failed_precondition` where their job had ended before, or does not take a question."""
    outcomes = yield from apply(unit, changes)
    for change, outcome in zip(changes, outcomes, strict=True):
        ended_now = outcome.applied and isinstance(change, Finish)
        if outcome.state is not None and outcome.state.terminal and not ended_now:
            raise FailedPrecondition(
                f"job_id: {change.job_id!r} has ended; what comes now is too late",
                reason="job_terminal",
                details={"state": outcome.state.value},
            )
        if isinstance(change, Ask) and not outcome.applied and outcome.detail != "repeated":
            raise FailedPrecondition(
                f"job_id: {change.job_id!r} does not take the question ({outcome.detail})",
                reason="question_refused",
                details={"detail": outcome.detail},
            )


def _progress(unit: Unit, run: Sequence[Any]) -> Steps[list[Outcome]]:
    """Each is an event; the row is written once."""
    job = yield from _find(unit, run[0].job_id)
    if job is None or job.state.terminal:
        return [_refused(job)] * len(run)
    before, row, outcomes = job.shown, job.shown, []
    for change in run:
        after = (yield from _after_in_branch(unit, row, change)) if job.fan_out else _after_alone(row, change)
        if isinstance(after, str):
            outcomes.append(Outcome(applied=False, state=JobState(row[1]), detail=after))
            continue
        row = after
        data = {**shown(row), "envelope_id": change.envelope_id, "hop": change.hop, "attempt": change.attempt}
        if change.status:
            data["status"] = change.status
        unit.event(row[0], "progress", data)
        outcomes.append(Outcome(applied=True, state=JobState(row[1])))
    if row is not before:
        unit.tell(
            "UPDATE jobs SET state = ?, progress = ?, message = ?, actor = ?, steps_completed = ?, total_steps = ?, "
            f"updated_at = ? WHERE seq = ? AND state IN {LIVE}",
            (*row[1:], unit.now, row[0]),
        )
        unit.remember(run[0].job_id, job.found(row))
    return outcomes


def _after_alone(row: Row, change: Progress) -> Row:
    """The row of a job of one branch, which most are."""
    percent = progress.of_branch(change.hop, change.hops, change.weight)
    return _after(row, change, percent, progress.steps(change.hop, change.hops, change.weight))


def _after_in_branch(unit: Unit, row: Row, change: Progress) -> Steps[Row | str]:
    """The row, or why the branch has nothing to report."""
    branch = yield from branches.find(unit, row[0], change.envelope_id)
    if branch is None or branch.state != "live":
        return "late" if branch is not None else "unknown_branch"
    percent = progress.of_branch(change.hop, change.hops, change.weight)
    root = min(progress.REPORTED_MAX, (yield from branches.advance(unit, row[0], branch, percent)))
    return _after(row, change, root, progress.steps_of_mean(root, change.hops))


def _after(row: Row, change: Progress, percent: float, steps: int) -> Row:
    """The columns `SHOWN`: nothing goes back."""
    seq, state, before, message, actor, behind, total = row
    if steps >= behind:
        behind, total = steps, max(change.hops, steps, 1)
    state = JobState.RUNNING.value if state == JobState.PENDING else state
    return (seq, state, max(before, percent), change.message or message, change.actor or actor, behind, total)


def _split(unit: Unit, change: Split) -> Steps[Outcome]:
    job = yield from _find(unit, change.job_id)
    if job is None or job.state.terminal:
        return _refused(job)
    branch = yield from branches.find(unit, job.seq, change.envelope_id)
    if branch is None and job.fan_out:
        return _refused(job, "unknown_branch")
    if branch is None:
        branch = branches.plant(unit, job.seq, change.envelope_id, job.progress)
    refused = yield from branches.split(unit, job.seq, branch, change)
    if refused:
        return _refused(job, refused)
    rows = yield (
        "UPDATE jobs SET fan_out = TRUE, updated_at = ?, "
        "state = CASE state WHEN 'pending' THEN 'running' ELSE state END "
        f"WHERE seq = ? AND state IN {LIVE} RETURNING {SHOWN}",
        (unit.now, job.seq),
    )
    children = {"total": len(change.children), "children": change.children[:_CHILDREN_SHOWN]}
    unit.event(job.seq, "split", {**shown(rows[0]), "envelope_id": change.envelope_id, **children})
    return Outcome(applied=True, state=JobState(rows[0][1]))


def _joined(unit: Unit, change: Joined) -> Steps[Outcome]:
    job = yield from _find(unit, change.job_id)
    if job is None or job.state.terminal:
        return _refused(job)
    parent = yield from branches.find(unit, job.seq, change.parent_id)
    if parent is None:
        return _refused(job, "unknown_branch")
    refused = yield from branches.join(unit, job.seq, parent, change)
    if refused:
        return _refused(job, refused)
    row = yield from _touch(unit, job.seq)
    data = {**shown(row), "envelope_id": change.envelope_id, "parent_id": change.parent_id}
    unit.event(job.seq, "joined", data)
    return Outcome(applied=True, state=job.state)


def _finish(unit: Unit, change: Finish) -> Steps[Outcome]:
    job = yield from _find(unit, change.job_id)
    if job is None:
        return _refused(job)
    if job.fan_out:
        return (yield from _finish_of_a_branch(unit, job, change))
    if job.state.terminal:
        own = job.finished_by == change.envelope_id
        if own:
            _filed(unit, job, change)
        return (yield from _late(unit, job, change, repeated=own))
    state = JobState.SUCCEEDED if change.error is None else JobState.FAILED
    return (yield from _ended(unit, job, state, change, pack(change.result), change.error))


def _finish_of_a_branch(unit: Unit, job: _Job, change: Finish) -> Steps[Outcome]:
    branch = yield from branches.find(unit, job.seq, change.envelope_id)
    split = branch is not None and branch.state == "split" and not job.state.terminal
    if branch is not None and split and (yield from branches.withdraw(unit, job.seq, branch)):
        # it split, crashed before it sent its children, ran again, and ended
        branch = yield from branches.find(unit, job.seq, change.envelope_id)
    if job.state.terminal or branch is None or branch.state != "live":
        known = branch is not None and branch.state in ("done", "failed", "held")
        if job.finished_by == change.envelope_id and (yield from branches.ending(job.seq)).single:
            _filed(unit, job, change)
        return (yield from _late(unit, job, change, repeated=known))
    state = branches.finish(unit, job.seq, branch, change)
    percent = job.progress
    if state == "done":
        root = yield from branches.advance(unit, job.seq, branch, 100.0)
        percent = max(percent, min(progress.REPORTED_MAX, root))
    row = (*job.shown[:2], percent, *job.shown[3:])
    unit.tell("UPDATE jobs SET updated_at = ?, progress = ? WHERE seq = ?", (unit.now, percent, job.seq))
    data: dict[str, Any] = {**shown(row), "envelope_id": branch.envelope_id, "parent_id": branch.parent}
    data |= {"index": branch.position, "total": branch.total, "outcome": state, "aborted": change.aborted}
    if change.error is not None:
        data["error"] = error_shown(change.error)
    unit.event(job.seq, "branch", data)
    if (yield from branches.any_live(unit, job.seq)):
        unit.remember(change.job_id, job.found(row))
        return Outcome(applied=True, state=job.state)
    tree = yield from branches.ending(job.seq)
    if tree.failures:
        return (yield from _ended(unit, job, JobState.FAILED, change, None, tree.error(tree.failures[0])))
    return (yield from _ended(unit, job, JobState.SUCCEEDED, change, pack(tree.results), None, single=tree.single))


def _ended(
    unit: Unit,
    job: _Job,
    state: JobState,
    change: Finish,
    result: bytes | None,
    error: ErrorRecord | None,
    *,
    single: bool = True,
) -> Steps[Outcome]:
    yield from end(
        unit,
        job.seq,
        state,
        result=result if error is None else None,
        error=error,
        message=error.message if error is not None else "",
        aborted=change.aborted and single and error is None,
        result_key=change.result_key if single else None,
        finished_by=change.envelope_id,
    )
    return Outcome(applied=True, state=state)


def _filed(unit: Unit, job: _Job, change: Finish) -> None:
    """The outcome was told before it was persisted; now it is."""
    if change.result_key is not None:
        unit.tell("UPDATE jobs SET result_key = ? WHERE seq = ? AND result_key IS NULL", (change.result_key, job.seq))


def _late(unit: Unit, job: _Job, change: Finish, *, repeated: bool) -> Steps[Outcome]:
    """The loser of a race: one event, however often it is delivered."""
    repeated = repeated or (yield from unit.told_late(job.seq, change.envelope_id))
    if not repeated:
        outcome = "succeeded" if change.error is None else "failed"
        data: dict[str, Any] = {"state": job.state, "envelope_id": change.envelope_id, "outcome": outcome}
        if change.error is not None:
            data["error"] = error_shown(change.error)
        unit.event(job.seq, "late", data)
    return _refused(job, "repeated" if repeated else "late")


def _control(unit: Unit, change: Control) -> Steps[Outcome]:
    job = yield from _find(unit, change.job_id)
    if job is None or job.state.terminal:
        return _refused(job)
    return (yield from {"cancel": _cancel, "pause": _pause, "resume": _resume}[change.action](unit, job, change))


def _cancel(unit: Unit, job: _Job, change: Control) -> Steps[Outcome]:
    yield from end(unit, job.seq, JobState.CANCELLED, message=change.reason)
    return Outcome(applied=True, state=JobState.CANCELLED)


def _pause(unit: Unit, job: _Job, change: Control) -> Steps[Outcome]:
    guard = "state IN ('pending', 'running')"
    changed = questions.PAUSED
    if job.state is JobState.PAUSED:  # it waits for answers, perhaps: it stays paused after the last one
        guard, changed = "open_questions > 0 AND NOT stays_paused", "stays_paused = TRUE"
    state = yield from questions.moved(unit, job.seq, "paused", changed, guard, reason=change.reason)
    return _refused(job, "job_state") if state is None else Outcome(applied=True, state=state)


def _resume(unit: Unit, job: _Job, change: Control) -> Steps[Outcome]:
    guard = "state = 'paused' AND open_questions = 0"
    state = yield from questions.moved(unit, job.seq, "resumed", questions.RESUMED, guard, reason=change.reason)
    if state is None:
        return _refused(job, "question_open" if job.state is JobState.PAUSED else "job_state")
    parking.release(unit, job.seq)
    return Outcome(applied=True, state=state)


def _park(unit: Unit, change: Park) -> Steps[Outcome]:
    job = yield from _find(unit, change.job_id)
    if job is None or job.state.terminal:
        return _refused(job)
    fresh = yield from parking.park(unit, change.message, job.seq, job.pauses, held=job.state is JobState.PAUSED)
    return Outcome(applied=fresh, state=job.state, detail="" if fresh else "repeated")


def _ask(unit: Unit, change: Ask) -> Steps[Outcome]:
    job = yield from _find(unit, change.job_id)
    if job is None or job.state.terminal:
        return _refused(job)
    if job.fan_out:
        branch = yield from branches.find(unit, job.seq, change.envelope_id)
        if branch is None or branch.state != "live":
            return _refused(job, "late" if branch is not None else "unknown_branch")
    state, refused = yield from questions.ask(unit, job.seq, job.state, job.pauses, change)
    return Outcome(applied=not refused, state=state, detail=refused)


def _answer(unit: Unit, change: Answer) -> Steps[Outcome]:
    job = yield from _find(unit, change.job_id)
    if job is None:
        return _refused(job)
    state = None if job.state.terminal else (yield from questions.answer(unit, job.seq, change))
    if state is not None:
        return Outcome(applied=True, state=state)
    refused = yield from questions.why_not(job.seq, change)
    return _refused(job, "job_terminal" if job.state.terminal and refused != "repeated" else refused)


def _note(unit: Unit, change: Note) -> Steps[Outcome]:
    job = yield from _find(unit, change.job_id)
    if job is None:
        return _refused(job)
    unit.event(job.seq, change.kind, {"state": job.state, **change.data})
    return Outcome(applied=True, state=job.state)


class _Job:
    """What a change needs to know of its job."""

    __slots__ = ("fan_out", "finished_by", "pauses", "progress", "seq", "shown", "state")

    def __init__(self, row: Row) -> None:
        self.shown = row[:7]
        self.seq: int = row[0]
        self.state = JobState(row[1])
        self.progress: float = row[2]
        self.fan_out = bool(row[7])
        self.finished_by: str | None = row[8]
        self.pauses: int = row[9]

    def found(self, row: Row) -> Row:
        """The columns `FOUND`, where those that are shown have become `row`."""
        return (*row, self.fan_out, self.finished_by, self.pauses)


def _find(unit: Unit, job_id: str) -> Steps[_Job | None]:
    row = yield from unit.find(job_id)
    return None if row is None else _Job(row)


def _refused(job: _Job | None, detail: str = "") -> Outcome:
    if job is None:
        return Outcome(applied=False, state=None, detail="job_not_found")
    return Outcome(applied=False, state=job.state, detail=detail or "job_terminal")


def _touch(unit: Unit, seq: int) -> Steps[Row]:
    """The job's progress becomes that of its root (never back, never 100), and it was heard of now."""
    rows = yield (
        f"""UPDATE jobs SET updated_at = :now, progress = max(progress, min(:most, coalesce(
              (SELECT max(progress) FROM job_branches WHERE job = :seq AND parent IS NULL AND state <> 'joined'), 0)))
            WHERE seq = :seq RETURNING {SHOWN}""",
        {"now": unit.now, "seq": seq, "most": progress.REPORTED_MAX},
    )
    return rows[0]


_APPLY: dict[type, Callable[[Unit, Any], Steps[Outcome]]] = {
    Split: _split,
    Joined: _joined,
    Finish: _finish,
    Control: _control,
    Park: _park,
    Ask: _ask,
    Answer: _answer,
    Note: _note,
}
