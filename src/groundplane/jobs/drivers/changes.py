"""Applying changes: each is guarded by the rows themselves; whoever comes too late leaves an event, not a change."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from groundplane.backends.sqlite import Row
from groundplane.core.errors import ErrorRecord, FailedPrecondition
from groundplane.jobs import progress
from groundplane.jobs.drivers import branches, outbox
from groundplane.jobs.drivers.unit import LIVE, SHOWN, Unit, end, error_shown, pack, shown
from groundplane.jobs.port import (
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


def apply(unit: Unit, changes: Sequence[Change]) -> list[Outcome]:
    """All of them, in order."""
    outcomes: list[Outcome] = []
    for kind, group in itertools.groupby(changes, key=_run_of):
        run = list(group)
        outcomes += _progress(unit, run) if isinstance(kind, str) else [_APPLY[kind](unit, change) for change in run]
    return outcomes


def _run_of(change: Change) -> type | str:
    """What goes together: the progress of one job is one update."""
    return change.job_id if isinstance(change, Progress) else type(change)


def apply_to_live(unit: Unit, changes: Sequence[Change]) -> None:
    """All of them, or `failed_precondition` where their job had ended before."""
    for change, outcome in zip(changes, apply(unit, changes), strict=True):
        ended_now = outcome.applied and isinstance(change, Finish)
        if outcome.state is not None and outcome.state.terminal and not ended_now:
            raise FailedPrecondition(
                f"job_id: {change.job_id!r} has ended; what comes now is too late",
                reason="job_terminal",
                details={"state": outcome.state.value},
            )


def _progress(unit: Unit, run: Sequence[Any]) -> list[Outcome]:
    """Each is an event; the row is written once."""
    rows = unit.tx.execute(
        f"SELECT {SHOWN}, fan_out FROM jobs WHERE namespace = ? AND job_id = ? AND state IN {LIVE}",
        (unit.scope.number, run[0].job_id),
    )
    if not rows:
        return [_refused(_find(unit, run[0].job_id))] * len(run)
    before, fan_out = rows[0][:-1], rows[0][-1]
    row, outcomes = before, []
    for change in run:
        after = _after_in_branch(unit, row, change) if fan_out else _after_alone(row, change)
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
        unit.tx.execute(
            "UPDATE jobs SET state = ?, progress = ?, message = ?, actor = ?, steps_completed = ?, total_steps = ?, "
            f"updated_at = ? WHERE seq = ? AND state IN {LIVE}",
            (*row[1:], unit.now, row[0]),
        )
    return outcomes


def _after_alone(row: Row, change: Progress) -> Row:
    """The row of a job of one branch, which most are."""
    percent = progress.of_branch(change.hop, change.hops, change.weight)
    return _after(row, change, percent, progress.steps(change.hop, change.hops, change.weight))


def _after_in_branch(unit: Unit, row: Row, change: Progress) -> Row | str:
    """The row, or why the branch has nothing to report."""
    branch = branches.find(unit, row[0], change.envelope_id)
    if branch is None or branch.state != "live":
        return "late" if branch is not None else "unknown_branch"
    percent = progress.of_branch(change.hop, change.hops, change.weight)
    root = min(progress.REPORTED_MAX, branches.advance(unit, row[0], branch, percent))
    return _after(row, change, root, progress.steps_of_mean(root, change.hops))


def _after(row: Row, change: Progress, percent: float, steps: int) -> Row:
    """The columns `SHOWN`: nothing goes back."""
    seq, state, before, message, actor, behind, total = row
    if steps >= behind:
        behind, total = steps, max(change.hops, steps, 1)
    state = JobState.RUNNING.value if state == JobState.PENDING else state
    return (seq, state, max(before, percent), change.message or message, change.actor or actor, behind, total)


def _split(unit: Unit, change: Split) -> Outcome:
    job = _find(unit, change.job_id)
    if job is None or job.state.terminal:
        return _refused(job)
    branch = branches.find(unit, job.seq, change.envelope_id)
    if branch is None and job.fan_out:
        return _refused(job, "unknown_branch")
    if branch is None:
        branch = branches.plant(unit, job.seq, change.envelope_id, job.progress)
    refused = branches.split(unit, job.seq, branch, change)
    if refused:
        return _refused(job, refused)
    rows = unit.tx.execute(
        f"UPDATE jobs SET fan_out = 1, updated_at = ?, state = CASE state WHEN 'pending' THEN 'running' ELSE state END "
        f"WHERE seq = ? AND state IN {LIVE} RETURNING {SHOWN}",
        (unit.now, job.seq),
    )
    children = {"total": len(change.children), "children": change.children[:_CHILDREN_SHOWN]}
    unit.event(job.seq, "split", {**shown(rows[0]), "envelope_id": change.envelope_id, **children})
    return Outcome(applied=True, state=JobState(rows[0][1]))


def _joined(unit: Unit, change: Joined) -> Outcome:
    job = _find(unit, change.job_id)
    if job is None or job.state.terminal:
        return _refused(job)
    parent = branches.find(unit, job.seq, change.parent_id)
    if parent is None:
        return _refused(job, "unknown_branch")
    refused = branches.join(unit, job.seq, parent, change)
    if refused:
        return _refused(job, refused)
    row = _touch(unit, job.seq)
    data = {**shown(row), "envelope_id": change.envelope_id, "parent_id": change.parent_id}
    unit.event(job.seq, "joined", data)
    return Outcome(applied=True, state=job.state)


def _finish(unit: Unit, change: Finish) -> Outcome:
    job = _find(unit, change.job_id)
    if job is None:
        return _refused(job)
    if job.fan_out:
        return _finish_of_a_branch(unit, job, change)
    if job.state.terminal:
        own = job.finished_by == change.envelope_id
        if own:
            _filed(unit, job, change)
        return _late(unit, job, change, repeated=own)
    state = JobState.SUCCEEDED if change.error is None else JobState.FAILED
    return _ended(unit, job, state, change, pack(change.result), change.error)


def _finish_of_a_branch(unit: Unit, job: _Job, change: Finish) -> Outcome:
    branch = branches.find(unit, job.seq, change.envelope_id)
    split = branch is not None and branch.state == "split" and not job.state.terminal
    if branch is not None and split and branches.withdraw(unit, job.seq, branch):
        # it split, crashed before it sent its children, ran again, and ended
        branch = branches.find(unit, job.seq, change.envelope_id)
    if job.state.terminal or branch is None or branch.state != "live":
        known = branch is not None and branch.state in ("done", "failed", "held")
        if job.finished_by == change.envelope_id and branches.ending(unit, job.seq).single:
            _filed(unit, job, change)
        return _late(unit, job, change, repeated=known)
    state = branches.finish(unit, job.seq, branch, change)
    if state == "done":
        branches.advance(unit, job.seq, branch, 100.0)
    row = _touch(unit, job.seq)
    data: dict[str, Any] = {**shown(row), "envelope_id": branch.envelope_id, "parent_id": branch.parent}
    data |= {"index": branch.position, "total": branch.total, "outcome": state, "aborted": change.aborted}
    if change.error is not None:
        data["error"] = error_shown(change.error)
    unit.event(job.seq, "branch", data)
    if branches.any_live(unit, job.seq):
        return Outcome(applied=True, state=job.state)
    tree = branches.ending(unit, job.seq)
    if tree.failures:
        return _ended(unit, job, JobState.FAILED, change, None, tree.error(tree.failures[0]))
    return _ended(unit, job, JobState.SUCCEEDED, change, pack(tree.results), None, single=tree.single)


def _ended(
    unit: Unit,
    job: _Job,
    state: JobState,
    change: Finish,
    result: bytes | None,
    error: ErrorRecord | None,
    *,
    single: bool = True,
) -> Outcome:
    end(
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
        unit.tx.execute(
            "UPDATE jobs SET result_key = ? WHERE seq = ? AND result_key IS NULL", (change.result_key, job.seq)
        )


def _late(unit: Unit, job: _Job, change: Finish, *, repeated: bool) -> Outcome:
    """The loser of a race: one event, however often it is delivered."""
    repeated = (
        repeated
        or unit.one(
            "SELECT 1 FROM job_events WHERE job = ? AND kind = 'late' AND data ->> '$.envelope_id' = ? LIMIT 1",
            job.seq,
            change.envelope_id,
        )
        is not None
    )
    if not repeated:
        outcome = "succeeded" if change.error is None else "failed"
        data: dict[str, Any] = {"state": job.state, "envelope_id": change.envelope_id, "outcome": outcome}
        if change.error is not None:
            data["error"] = error_shown(change.error)
        unit.event(job.seq, "late", data)
    return _refused(job, "repeated" if repeated else "late")


def _control(unit: Unit, change: Control) -> Outcome:
    job = _find(unit, change.job_id)
    if job is None or job.state.terminal:
        return _refused(job)
    return {"cancel": _cancel, "pause": _pause, "resume": _resume}[change.action](unit, job, change)


def _cancel(unit: Unit, job: _Job, change: Control) -> Outcome:
    end(unit, job.seq, JobState.CANCELLED, message=change.reason)
    return Outcome(applied=True, state=JobState.CANCELLED)


def _pause(unit: Unit, job: _Job, change: Control) -> Outcome:
    return _moved(
        unit,
        job,
        change,
        "paused",
        "state = 'paused', paused_at = :now, pauses = pauses + 1",
        "state IN ('pending', 'running')",
    )


def _resume(unit: Unit, job: _Job, change: Control) -> Outcome:
    outcome = _moved(
        unit,
        job,
        change,
        "resumed",
        "state = CASE WHEN progress > 0 OR actor <> '' OR fan_out THEN 'running' ELSE 'pending' END, "
        "deadline_at = deadline_at + max(0, :now - paused_at), paused_at = NULL",
        "state = 'paused'",
    )
    if outcome.applied:
        outbox.release(unit, job.seq)
    return outcome


def _moved(unit: Unit, job: _Job, change: Control, kind: str, changed: str, guard: str) -> Outcome:
    rows = unit.tx.execute(
        f"UPDATE jobs SET {changed}, updated_at = :now WHERE seq = :seq AND {guard} RETURNING {SHOWN}, deadline_at",
        {"now": unit.now, "seq": job.seq},
    )
    if not rows:
        return _refused(job, "job_state")
    data = {**shown(rows[0]), "deadline_at": rows[0][7]}
    if change.reason:
        data["reason"] = change.reason
    unit.event(job.seq, kind, data)
    return Outcome(applied=True, state=JobState(rows[0][1]))


def _park(unit: Unit, change: Park) -> Outcome:
    job = _find(unit, change.job_id)
    if job is None or job.state.terminal:
        return _refused(job)
    fresh = outbox.park(unit, change.message, job.seq, job.pauses, held=job.state is JobState.PAUSED)
    return Outcome(applied=fresh, state=job.state, detail="" if fresh else "repeated")


def _note(unit: Unit, change: Note) -> Outcome:
    job = _find(unit, change.job_id)
    if job is None:
        return _refused(job)
    unit.event(job.seq, change.kind, {"state": job.state, **change.data})
    return Outcome(applied=True, state=job.state)


class _Job:
    """What a change needs to know of its job."""

    __slots__ = ("fan_out", "finished_by", "pauses", "progress", "seq", "state")

    def __init__(self, row: Row) -> None:
        self.seq: int = row[0]
        self.state = JobState(row[1])
        self.progress: float = row[2]
        self.fan_out = bool(row[3])
        self.finished_by: str | None = row[4]
        self.pauses: int = row[5]


def _find(unit: Unit, job_id: str) -> _Job | None:
    row = unit.one(
        "SELECT seq, state, progress, fan_out, finished_by, pauses FROM jobs WHERE namespace = ? AND job_id = ?",
        unit.scope.number,
        job_id,
    )
    return None if row is None else _Job(row)


def _refused(job: _Job | None, detail: str = "") -> Outcome:
    if job is None:
        return Outcome(applied=False, state=None, detail="job_not_found")
    return Outcome(applied=False, state=job.state, detail=detail or "job_terminal")


def _touch(unit: Unit, seq: int) -> Row:
    """The job's progress becomes that of its root (never back, never 100), and it was heard of now."""
    return unit.tx.execute(
        f"""UPDATE jobs SET updated_at = :now, progress = max(progress, min(:most, coalesce(
              (SELECT max(progress) FROM job_branches WHERE job = :seq AND parent IS NULL AND state <> 'joined'), 0)))
            WHERE seq = :seq RETURNING {SHOWN}""",
        {"now": unit.now, "seq": seq, "most": progress.REPORTED_MAX},
    )[0]


_APPLY: dict[type, Callable[[Unit, Any], Outcome]] = {
    Split: _split,
    Joined: _joined,
    Finish: _finish,
    Control: _control,
    Park: _park,
    Note: _note,
}
