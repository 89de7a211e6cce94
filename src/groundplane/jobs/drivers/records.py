"""Creating jobs, reading them, listing them."""

from __future__ import annotations

from collections.abc import Sequence

from groundplane.backends.sqlite import Transaction
from groundplane.jobs.drivers.file_unit import FileUnit
from groundplane.jobs.drivers.outbox import FileQueues, insert
from groundplane.jobs.drivers.rows import (
    WHOLE,
    check_same_work,
    created_shown,
    fresh,
    id_taken,
    listing,
    no_job,
    record,
    steps_of,
)
from groundplane.jobs.drivers.unit import Scope, pack
from groundplane.jobs.port import Created, Job, JobPage, JobQuery, JobState, NewJob, OutboxMessage


def create(
    unit: FileUnit, new: NewJob, messages: Sequence[OutboxMessage], lease_ms: int = 0, queues: FileQueues | None = None
) -> Created:
    """The job, its first event, its first messages (in the outbox, or in their queues); or the job that has the
    idempotency key.
    """
    known = _known(unit, new)
    if known is not None:
        return Created(known, False)
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


def state(tx: Transaction, scope: Scope, job_id: str) -> JobState | None:
    """The job's state, or None."""
    rows = tx.execute("SELECT state FROM jobs WHERE namespace = ? AND job_id = ?", (scope.number, job_id))
    return JobState(rows[0][0]) if rows else None


def list_jobs(tx: Transaction, scope: Scope, query: JobQuery) -> JobPage:
    """Newest first."""
    sql, values = listing(query, scope.number, "+namespace = ?")  # "+": by seq, not by an index to sort
    rows = tx.execute(sql, values)
    items = rows[: query.limit]
    return JobPage(items=[record(row) for row in items], cursor=str(items[-1][0]) if len(rows) > query.limit else None)


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
    return record(rows[0])
