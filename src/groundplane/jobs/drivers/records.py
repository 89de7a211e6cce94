"""Creating jobs, reading them, listing them."""

from __future__ import annotations

from collections.abc import Sequence

from groundplane.backends.sqlite import Transaction
from groundplane.core.fencing import Fence, term_old
from groundplane.jobs.drivers.file_unit import FileUnit
from groundplane.jobs.drivers.outbox import FileQueues, insert
from groundplane.jobs.drivers.rows import (
    COUNT_LIVE,
    QUESTION,
    WHOLE,
    created_shown,
    fresh,
    listing,
    question,
    record,
    steps_of,
)
from groundplane.jobs.drivers.unit import Scope, pack
from groundplane.jobs.port import Created, Job, JobPage, JobQuery, JobState, NewJob, OutboxMessage, Question, Standing
from groundplane.jobs.refusals import check_same_work, id_taken, no_job, too_many_live


def create(
    unit: FileUnit, new: NewJob, messages: Sequence[OutboxMessage], lease_ms: int = 0, queues: FileQueues | None = None
) -> Created:
    """The job, its first event, its first messages (in the outbox, or in their queues); or the job that has the
    idempotency key.
    """
    _check_term(unit, new.fence)
    known = _known(unit, new)
    if known is not None:
        return Created(known, False)
    _check_room(unit, new)
    rows = unit.tx.execute(
        """INSERT INTO jobs (namespace, job_id, tool, owner, idempotency_key, arguments_hash, total_steps, route,
                             arguments, created_at, updated_at, deadline_at, token_hash, trace)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
           ON CONFLICT (namespace, job_id) DO NOTHING RETURNING seq""",
        (
            unit.scope.number,
            new.job_id,
            new.tool,
            new.owner,
            new.idempotency_key,
            new.arguments_hash,
            steps_of(new),
            pack(new.route),
            pack(new.arguments),
            unit.now,
            unit.now,
            new.deadline_at,
            new.token_hash,
            new.trace,
        ),
    )
    if not rows:
        raise id_taken(new)
    event_id = unit.event(rows[0][0], "created", created_shown(new))
    numbers: list[int] = []
    if queues is not None:
        queues.send_within(unit.tx, messages)
    else:
        numbers = insert(unit, messages, lease_ms)
    return Created(fresh(new, unit.now, event_id), True, numbers if lease_ms else [], queues is not None)


def get(tx: Transaction, scope: Scope, job_id: str) -> Job:
    """The job, or `not_found`."""
    return _job(tx, "namespace = ? AND job_id = ?", (scope.number, job_id), job_id)


def standing(tx: Transaction, scope: Scope, job_id: str) -> Standing | None:
    """The job's state and deadline, or None."""
    rows = tx.execute("SELECT state, deadline_at FROM jobs WHERE namespace = ? AND job_id = ?", (scope.number, job_id))
    return Standing(JobState(rows[0][0]), rows[0][1]) if rows else None


def questions(tx: Transaction, scope: Scope, job_id: str, ids: Sequence[str] | None) -> list[Question]:
    """Its questions, or `not_found`."""
    found = tx.execute("SELECT seq FROM jobs WHERE namespace = ? AND job_id = ?", (scope.number, job_id))
    if not found:
        raise no_job(job_id)
    rows = tx.execute(f"SELECT {QUESTION} FROM job_questions WHERE job = ? ORDER BY number", found[0])
    return [question(row) for row in rows if ids is None or row[0] in ids]


def list_jobs(tx: Transaction, scope: Scope, query: JobQuery) -> JobPage:
    """Newest first."""
    sql, values = listing(query, scope.number, "+namespace = ?")  # "+": by seq, not by an index to sort
    rows = tx.execute(sql, values)
    items = rows[: query.limit]
    return JobPage(items=[record(row) for row in items], cursor=str(items[-1][0]) if len(rows) > query.limit else None)


def _check_term(unit: FileUnit, fence: Fence | None) -> None:
    """The file has one writer at a time: what is compared and written here is one step with the job."""
    if fence is None:
        return
    seen = unit.one("SELECT term FROM job_fences WHERE namespace = ? AND name = ?", unit.scope.number, fence.name)
    if seen is not None and seen[0] > fence.term:
        raise term_old(fence, seen[0])
    if seen is None or seen[0] < fence.term:
        unit.tx.execute(
            """INSERT INTO job_fences (namespace, name, term) VALUES (?, ?, ?)
               ON CONFLICT (namespace, name) DO UPDATE SET term = excluded.term""",
            (unit.scope.number, fence.name, fence.term),
        )


def _check_room(unit: FileUnit, new: NewJob) -> None:
    """The file has one writer at a time, so what is counted here is exact."""
    if new.live_max is None:
        return
    live = unit.one(COUNT_LIVE, unit.scope.number, new.owner, new.live_max)
    if live is not None and live[0] >= new.live_max:
        known = standing(unit.tx, unit.scope, new.job_id) is not None
        raise id_taken(new) if known else too_many_live(new)


def _known(unit: FileUnit, new: NewJob) -> Job | None:
    if new.idempotency_key is None:
        return None
    row = unit.one(
        "SELECT seq, tool, arguments_hash FROM jobs WHERE namespace = ? AND owner = ? AND idempotency_key = ?",
        unit.scope.number,
        new.owner,
        new.idempotency_key,
    )
    if row is None:
        return None
    check_same_work(new, row[1], row[2])
    return _job(unit.tx, "seq = ?", (row[0],))


def _job(tx: Transaction, where: str, bindings: tuple[int | str, ...], job_id: str = "") -> Job:
    rows = tx.execute(f"SELECT {WHOLE} FROM jobs WHERE {where}", bindings)
    if not rows:
        raise no_job(job_id)
    row = rows[0]
    if row[3] != JobState.PAUSED:
        return record(row)
    asked = f"SELECT {QUESTION} FROM job_questions WHERE job = ? AND state = 'open' ORDER BY number"
    return record(row, tx.execute(asked, (row[0],)))
