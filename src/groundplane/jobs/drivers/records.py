"""Creating jobs, reading them, listing them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from groundplane.backends.sqlite import Row, Transaction
from groundplane.core.errors import AlreadyExists, Conflict, ErrorRecord, InvalidArgument, NotFound
from groundplane.jobs.drivers.file_unit import FileUnit
from groundplane.jobs.drivers.outbox import FileQueues, insert
from groundplane.jobs.drivers.unit import Scope, pack
from groundplane.jobs.port import Created, Job, JobPage, JobQuery, JobState, NewJob, OutboxMessage

_LAST_EVENT = "max(trimmed_to, coalesce((SELECT max(id) FROM job_events WHERE job = jobs.seq), 0))"
_HEAD = f"""seq, job_id, tool, state, progress, message, actor, steps_completed, total_steps, created_at, updated_at,
  finished_at, deadline_at, paused_at, route, owner, token_hash, trace, aborted, result_key, error, {_LAST_EVENT}"""
_WHOLE = f"{_HEAD}, result, arguments"

_unpack = msgspec.msgpack.Decoder().decode
_unpack_error = msgspec.msgpack.Decoder(ErrorRecord).decode
_unpack_route = msgspec.msgpack.Decoder(list[str]).decode


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
            max(1, len(new.route)),
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
        raise AlreadyExists(f"job_id: {new.job_id!r} is taken; use a new id for a new job")
    seq: int = rows[0][0]
    steps = max(1, len(new.route))
    event_id = unit.event(
        seq,
        "created",
        {"state": "pending", "progress": 0.0, "steps_completed": 0, "total_steps": steps, "tool": new.tool},
    )
    numbers: list[int] = []
    if queues is not None:
        queues.send_within(unit.tx, messages)
    else:
        numbers = insert(unit, messages, lease_ms)
    return Created(_new(unit, new, steps, event_id), True, numbers if lease_ms else [], queues is not None)


def get(tx: Transaction, scope: Scope, job_id: str) -> Job:
    """The job, or `not_found`."""
    return _job(tx, "namespace = ? AND job_id = ?", (scope.number, job_id), job_id)


def state(tx: Transaction, scope: Scope, job_id: str) -> JobState | None:
    """The job's state, or None."""
    rows = tx.execute("SELECT state FROM jobs WHERE namespace = ? AND job_id = ?", (scope.number, job_id))
    return JobState(rows[0][0]) if rows else None


def list_jobs(tx: Transaction, scope: Scope, query: JobQuery) -> JobPage:
    """Newest first. The cursor is the `seq` of the last job of the page before."""
    wanted = ["namespace = ?" if query.owner is not None else "+namespace = ?"]  # "+": by seq, not by an index to sort
    values: list[int | str] = [scope.number]
    for column, value in (("owner", query.owner), ("tool", query.tool)):
        if value is not None:
            wanted.append(f"{column} = ?")
            values.append(value)
    if query.states:
        wanted.append(f"state IN ({', '.join('?' * len(query.states))})")
        values += [state.value for state in query.states]
        if not any(state.terminal for state in query.states):
            wanted.append("finished_at IS NULL")  # the index of what is live
    if query.cursor is not None:
        wanted.append("seq < ?")
        values.append(_position(query.cursor))
    rows = tx.execute(
        f"SELECT {_HEAD} FROM jobs WHERE {' AND '.join(wanted)} ORDER BY seq DESC LIMIT ?",
        (*values, query.limit + 1),
    )
    items = rows[: query.limit]
    return JobPage(items=[_record(row) for row in items], cursor=str(items[-1][0]) if len(rows) > query.limit else None)


def _new(unit: FileUnit, new: NewJob, steps: int, event_id: int) -> Job:
    """The record of a job that was created just now."""
    return Job(
        job_id=new.job_id,
        tool=new.tool,
        state=JobState.PENDING,
        progress=0.0,
        message="",
        actor="",
        steps_completed=0,
        total_steps=steps,
        created_at=unit.now,
        updated_at=unit.now,
        deadline_at=new.deadline_at,
        route=list(new.route),
        arguments=_unpack(pack(new.arguments)),
        owner=new.owner,
        token_hash=new.token_hash,
        trace=new.trace,
        last_event_id=event_id,
    )


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
    if (row[1], row[2]) != (new.tool, new.arguments_hash):
        raise Conflict(
            f"idempotency_key: {new.idempotency_key!r} was used for other work; use a new key, or the same arguments",
            reason="idempotency_mismatch",
            details={"tool": row[1]},
        )
    return _job(unit.tx, "seq = ?", (row[0],))


def _job(tx: Transaction, where: str, bindings: tuple[int | str, ...], job_id: str = "") -> Job:
    rows = tx.execute(f"SELECT {_WHOLE} FROM jobs WHERE {where}", bindings)
    if not rows:
        raise NotFound(f"job_id: no job has the id {job_id!r}; look at the list of jobs", reason="job_not_found")
    return _record(rows[0])


def _record(row: Row) -> Job:
    whole = row[22:]
    return Job(
        job_id=row[1],
        tool=row[2],
        state=JobState(row[3]),
        progress=row[4],
        message=row[5],
        actor=row[6],
        steps_completed=row[7],
        total_steps=row[8],
        created_at=row[9],
        updated_at=row[10],
        finished_at=row[11],
        deadline_at=row[12],
        paused_at=row[13],
        route=_unpack_route(row[14]),
        owner=row[15],
        token_hash=row[16],
        trace=row[17],
        aborted=bool(row[18]),
        result_key=row[19],
        error=_unpack_error(row[20]) if row[20] is not None else None,
        last_event_id=row[21],
        result=_unpack(whole[0]) if whole and whole[0] is not None else None,
        arguments=_unpack(whole[1]) if whole else None,
    )


def _position(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdecimal() or len(cursor) > 18:
        raise InvalidArgument(f"cursor: {cursor!r} is not a cursor of this store; take it from the page before")
    return int(cursor)
