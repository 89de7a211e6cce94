"""What passes with time: deadlines, retention, and the counts that are exported. Any replica, at any time."""

from __future__ import annotations

import msgspec

from groundplane.backends.sqlite import Transaction
from groundplane.jobs.drivers.deadlines import end_overdue_job
from groundplane.jobs.drivers.file_unit import FileUnit
from groundplane.jobs.drivers.unit import Scope
from groundplane.jobs.port import Retention

BATCH = 500
_EVENTS_BATCH = 5_000


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """What a look without writing found: whether there is work, when the next deadline is, and the oldest message of
    the outbox that is not held.
    """

    deadlines: bool
    jobs: bool
    events: bool
    next_deadline_at: int | None
    outbox_head: int | None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of the namespace."""

    jobs: int
    events: int
    outbox: int
    outbox_due: int


def look(tx: Transaction, scope: Scope, retention: Retention, now: int) -> Due:
    """Whether anything is to be done, so that an idle plane writes nothing."""
    next_deadline = tx.execute(
        "SELECT min(deadline_at) FROM jobs WHERE namespace = ? AND deadline_at IS NOT NULL "
        "AND state IN ('pending', 'running')",
        (scope.number,),
    )[0][0]
    jobs = tx.execute(
        "SELECT EXISTS (SELECT 1 FROM jobs WHERE namespace = ? AND finished_at IS NOT NULL AND finished_at < ?)",
        (scope.number, _cutoff(now, retention.jobs_s)),
    )[0][0]
    oldest = tx.execute(
        """SELECT one.created_at FROM job_events AS one CROSS JOIN jobs ON jobs.seq = one.job
           WHERE one.id > (SELECT trimmed_to FROM job_namespaces WHERE id = :namespace)
             AND one.final = 0 AND jobs.namespace = :namespace ORDER BY one.id LIMIT 1""",
        {"namespace": scope.number},
    )
    head = tx.execute("SELECT min(id) FROM job_outbox WHERE namespace = ? AND held = 0", (scope.number,))[0][0]
    return Due(
        deadlines=next_deadline is not None and next_deadline <= now,
        jobs=bool(jobs),
        events=bool(oldest) and oldest[0][0] < _cutoff(now, retention.events_s),
        next_deadline_at=next_deadline,
        outbox_head=head,
    )


def end_overdue(unit: FileUnit) -> list[str]:
    """End jobs past their deadline: at most `BATCH`, their ids. A paused job's deadline stands still."""
    rows = unit.tx.execute(
        "SELECT seq, job_id, fan_out, deadline_at FROM jobs WHERE namespace = ? AND deadline_at <= ? "
        "AND deadline_at IS NOT NULL AND state IN ('pending', 'running') ORDER BY deadline_at LIMIT ?",
        (unit.scope.number, unit.now, BATCH),
    )
    for seq, _, fan_out, deadline_at in rows:
        unit.run(end_overdue_job(unit, seq, deadline_at, fan_out=bool(fan_out)))
    return [row[1] for row in rows]


def delete_finished(unit: FileUnit, retention: Retention) -> tuple[int, int]:
    """Delete jobs that ended long ago with all that is theirs: at most `BATCH`; how many, and how many events."""
    doomed = unit.tx.execute(
        "SELECT seq FROM jobs WHERE namespace = ? AND finished_at IS NOT NULL AND finished_at < ? "
        "ORDER BY finished_at LIMIT ?",
        (unit.scope.number, _cutoff(unit.now, retention.jobs_s), BATCH),
    )
    events = 0
    for row in doomed:
        unit.tx.execute("DELETE FROM job_events WHERE job = ?", row)
        events += unit.tx.changes()
        unit.tx.execute("DELETE FROM job_branches WHERE job = ?", row)
        unit.tx.execute("DELETE FROM job_questions WHERE job = ?", row)
        unit.tx.execute("DELETE FROM job_outbox WHERE parked_for = ?", row)
        unit.tx.execute("DELETE FROM jobs WHERE seq = ?", row)
    return len(doomed), events


def trim_events(unit: FileUnit, retention: Retention) -> int:
    """Delete old events but final ones, from the oldest on; remember how far, for readers who come with an older id."""
    cutoff = _cutoff(unit.now, retention.events_s)
    rows = unit.tx.execute(
        """SELECT one.id, one.job, one.created_at FROM job_events AS one CROSS JOIN jobs ON jobs.seq = one.job
           WHERE one.id > (SELECT trimmed_to FROM job_namespaces WHERE id = :namespace)
             AND one.final = 0 AND jobs.namespace = :namespace ORDER BY one.id LIMIT :limit""",
        {"namespace": unit.scope.number, "limit": _EVENTS_BATCH},
    )
    last: dict[int, int] = {}
    doomed: list[tuple[int]] = []
    for event, job, created_at in rows:
        if created_at >= cutoff:
            break
        last[job] = event
        doomed.append((event,))
    if doomed:
        unit.tx.executemany("DELETE FROM job_events WHERE id = ?", doomed)
        unit.tx.executemany("UPDATE jobs SET trimmed_to = ? WHERE seq = ?", [(at, job) for job, at in last.items()])
        unit.tx.execute("UPDATE job_namespaces SET trimmed_to = ? WHERE id = ?", (doomed[-1][0], unit.scope.number))
    return len(doomed)


def count(tx: Transaction, scope: Scope) -> Counts:
    """How many rows there are."""
    number = (scope.number,)
    jobs = tx.execute("SELECT count(*) FROM jobs WHERE namespace = ?", number)[0][0]
    events = tx.execute(
        "SELECT count(*) FROM job_events AS one CROSS JOIN jobs ON jobs.seq = one.job WHERE jobs.namespace = ?", number
    )[0][0]
    outbox = tx.execute("SELECT count(*) FROM job_outbox WHERE namespace = ?", number)[0][0]
    due = tx.execute("SELECT count(*) FROM job_outbox WHERE namespace = ? AND held = 0", number)[0][0]
    return Counts(jobs=jobs, events=events, outbox=outbox, outbox_due=due)


def _cutoff(now: int, seconds: float) -> int:
    return now - round(seconds * 1000)
