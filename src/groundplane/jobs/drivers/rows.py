"""Rows of jobs and of their events as values of the port, alike in every store in SQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from groundplane.core.errors import ErrorRecord, InvalidArgument
from groundplane.jobs.drivers.unit import Row, pack
from groundplane.jobs.port import Events, Job, JobEvent, JobQuery, JobState, NewJob, Question

_LAST_EVENT = "max(trimmed_to, coalesce((SELECT max(id) FROM job_events WHERE job = jobs.seq), 0))"
HEAD = f"""seq, job_id, tool, state, progress, message, actor, steps_completed, total_steps, created_at, updated_at,
  finished_at, deadline_at, paused_at, route, owner, token_hash, trace, aborted, result_key, error, {_LAST_EVENT}"""
"""The columns of a listing."""
WHOLE = f"{HEAD}, result, arguments"
"""All columns that the record shows."""
COUNT_LIVE = """SELECT count(*) FROM (
  SELECT 1 FROM jobs WHERE namespace = ? AND owner = ? AND finished_at IS NULL LIMIT ?) AS live"""
"""How many jobs of an owner have not ended, counted no further than the last binding."""
QUESTION = """question_id, kind, message, schema, params, actor, envelope_id, state, asked_at, answered_at, action,
  content, answered_by"""
"""The columns of a question."""

_unpack = msgspec.msgpack.Decoder().decode
_unpack_error = msgspec.msgpack.Decoder(ErrorRecord).decode
_unpack_route = msgspec.msgpack.Decoder(list[str]).decode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def record(row: Row, questions: Iterable[Row] = ()) -> Job:
    """The job of the columns `HEAD` or `WHOLE`, with questions of the columns `QUESTION`."""
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
        questions=[question(row) for row in questions],
    )


def question(row: Row) -> Question:
    """The question of the columns `QUESTION`."""
    return Question(
        question_id=row[0],
        kind=row[1],
        message=row[2],
        schema=_unpack(row[3]) if row[3] is not None else None,
        params=_unpack(row[4]),
        actor=row[5],
        envelope_id=row[6],
        state=row[7],
        asked_at=row[8],
        answered_at=row[9],
        action=row[10],
        content=_unpack(row[11]) if row[11] is not None else None,
        answered_by=row[12],
    )


def _position(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdecimal() or len(cursor) > 18:
        raise InvalidArgument(f"cursor: {cursor!r} is not a cursor of this store; take it from the page before")
    return int(cursor)


def fresh(new: NewJob, now: int, event_id: int) -> Job:
    """The record of a job that was created just now."""
    return Job(
        job_id=new.job_id,
        tool=new.tool,
        state=JobState.PENDING,
        progress=0.0,
        message="",
        actor="",
        steps_completed=0,
        total_steps=steps_of(new),
        created_at=now,
        updated_at=now,
        deadline_at=new.deadline_at,
        route=list(new.route),
        arguments=_unpack(pack(new.arguments)),
        owner=new.owner,
        token_hash=new.token_hash,
        trace=new.trace,
        last_event_id=event_id,
    )


def steps_of(new: NewJob) -> int:
    """How many steps a new job has."""
    return max(1, len(new.route))


def created_shown(new: NewJob) -> dict[str, Any]:
    """The data of the event `created`."""
    return {
        "state": "pending",
        "progress": 0.0,
        "steps_completed": 0,
        "total_steps": steps_of(new),
        "tool": new.tool,
    }


def listing(query: JobQuery, namespace: int, of_all: str) -> tuple[str, list[Any]]:
    """The statement of a page and its bindings: one row more than asked for. `of_all` is how the namespace is compared
    where jobs of every owner are walked by `seq`. The cursor is the `seq` of the last job of the page before.
    """
    wanted = ["namespace = ?" if query.owner is not None else of_all]
    values: list[Any] = [namespace]
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
    sql = f"SELECT {HEAD} FROM jobs WHERE {' AND '.join(wanted)} ORDER BY seq DESC LIMIT ?"
    return sql, [*values, query.limit + 1]


def page_of_events(rows: Sequence[Row], after: int, limit: int, newest: int, *, truncated: bool) -> Events:
    """Rows of id, job id, kind, data, time; `newest` is the newest id in the snapshot that they are from."""
    items = [JobEvent(id=row[0], job_id=row[1], kind=row[2], data=_decode(row[3]), created_at=row[4]) for row in rows]
    # an incomplete page has seen all that was committed: the next one begins after the newest id of the snapshot
    last = items[-1].id if items and len(items) == limit else max(after, newest)
    return Events(items=items, last_id=last, truncated=truncated)
