"""One transaction of the embedded job store: the rows, the log, the bells, one moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from groundplane.backends.sqlite import Row, Transaction
from groundplane.core.errors import ErrorRecord, InvalidArgument
from groundplane.jobs.port import JobState, Topic

LIVE = "('pending', 'running', 'paused')"
"""The states that are not terminal, for a guard in SQL."""

SHOWN = "seq, state, progress, message, actor, steps_completed, total_steps"
"""The columns that an event tells, after `seq`."""

_to_json = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


class Scope(msgspec.Struct, frozen=True):
    """Whose jobs: the namespace's number and name."""

    number: int
    name: str

    def topic(self, name: Topic) -> str:
        """The bell of the engine for this topic of the store."""
        return f"job-{name}/{self.name}"


class Unit:
    """What a work of the store needs. `now` is the store's clock, Unix milliseconds."""

    __slots__ = ("now", "scope", "tx")

    def __init__(self, tx: Transaction, scope: Scope, now: int) -> None:
        self.tx = tx
        self.scope = scope
        self.now = now

    def event(self, seq: int, kind: str, data: Mapping[str, Any], *, final: bool = False) -> int:
        """Append to the log, and ring; its id."""
        rows = self.tx.execute(
            "INSERT INTO job_events (job, kind, final, data, created_at) VALUES (?, ?, ?, ?, ?) RETURNING id",
            (seq, kind, final, _json(kind, data), self.now),
        )
        if final:
            self.tx.wake(self.scope.topic("ends"))
        self.tx.wake(self.scope.topic("events"))
        event_id: int = rows[0][0]
        return event_id

    def one(self, sql: str, *bindings: Any) -> Row | None:
        """The first row, or None."""
        rows = self.tx.execute(sql, bindings)
        return rows[0] if rows else None


def pack(value: Any) -> bytes:
    """A user's value at rest, MessagePack. `invalid_argument` for what it cannot carry."""
    try:
        return _pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidArgument(f"value: it cannot be stored as MessagePack: {error}") from error


def _json(kind: str, data: Mapping[str, Any]) -> str:
    try:
        return _to_json(data).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidArgument(f"data: that of the event {kind!r} cannot be stored as JSON: {error}") from error


def shown(row: Row) -> dict[str, Any]:
    """What an event tells of its job, from the columns `SHOWN`."""
    return {
        "state": row[1],
        "progress": round(row[2], 3),
        "message": row[3],
        "actor": row[4],
        "steps_completed": row[5],
        "total_steps": row[6],
    }


def error_shown(error: ErrorRecord) -> dict[str, Any]:
    """What an event tells of an error; the rest of it is in the record of the job."""
    return {"code": error.code, "reason": error.reason, "message": error.message, "type": error.type}


def end(
    unit: Unit,
    seq: int,
    state: JobState,
    *,
    result: bytes | None = None,
    error: ErrorRecord | None = None,
    message: str = "",
    aborted: bool = False,
    result_key: str | None = None,
    finished_by: str | None = None,
) -> bool:
    """The one way into a terminal state, guarded in SQL. False where the job has ended before (or, for `timed_out`,
    is paused: its deadline stands still)."""
    rows = unit.tx.execute(
        f"""UPDATE jobs SET state = :state, finished_at = :now, updated_at = :now, paused_at = NULL,
              progress = CASE :state WHEN 'succeeded' THEN 100 ELSE progress END,
              steps_completed = CASE WHEN :state = 'succeeded' AND NOT :aborted THEN total_steps
                                     ELSE steps_completed END,
              message = CASE :message WHEN '' THEN message ELSE :message END,
              result = :result, error = :error, result_key = :result_key, aborted = :aborted,
              finished_by = :finished_by
            WHERE seq = :seq AND state IN {LIVE} AND NOT (:state = 'timed_out' AND state = 'paused')
            RETURNING {SHOWN}, pauses, fan_out""",
        {
            "state": state.value,
            "now": unit.now,
            "message": message,
            "result": result,
            "error": pack(error) if error is not None else None,
            "result_key": result_key,
            "aborted": aborted,
            "finished_by": finished_by,
            "seq": seq,
        },
    )
    if not rows:
        return False
    data = shown(rows[0])
    if error is not None:
        data["error"] = error_shown(error)
    if aborted:
        data["aborted"] = True
    unit.event(seq, state.value, data, final=True)
    pauses, fan_out = rows[0][7:]
    if pauses:
        unit.tx.execute("DELETE FROM job_outbox WHERE parked_for = ? AND held = 1", (seq,))
    if fan_out:
        unit.tx.execute("UPDATE job_branches SET result = NULL WHERE job = ? AND result IS NOT NULL", (seq,))
    return True
