"""What the decisions of every store in SQL are written in: steps of one transaction, one moment.

A decision is a generator: it yields a statement whose rows it needs and is sent them (`Steps`), and tells the unit what
is to be written without an answer. It does no input or output itself: the embedded store runs each step in its
transaction, PostgreSQL those of many jobs together. Statements are written once for both, with `?` or `:name`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec

from groundplane.core.errors import ErrorRecord, InvalidArgument
from groundplane.jobs.port import JobState, Topic

LIVE = "('pending', 'running', 'paused')"
"""The states that are not terminal, for a guard in SQL."""

SHOWN = "seq, state, progress, message, actor, steps_completed, total_steps"
"""The columns that an event tells, after `seq`."""

FOUND = f"{SHOWN}, fan_out, finished_by, pauses"
"""The columns that a change needs to know of its job."""

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]
Bindings: TypeAlias = Sequence[Any] | Mapping[str, Any]
Steps: TypeAlias = Generator[tuple[str, Bindings], list[Row], T]

_to_json = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


class Scope(msgspec.Struct, frozen=True):
    """Whose jobs: the namespace's number and name."""

    number: int
    name: str

    def topic(self, name: Topic) -> str:
        """The bell of the engine for this topic of the store."""
        return f"job-{name}/{self.name}"


class Unit(Protocol):
    """One transaction of a store. `now` is the store's clock, Unix milliseconds."""

    scope: Scope
    trees: dict[int, Any]
    """What the transaction knows of trees of branches, by job (`branches.Tree`)."""

    @property
    def now(self) -> int:
        """The moment of the transaction."""
        ...

    def tell(self, sql: str, bindings: Bindings = ()) -> None:
        """Write, before the next step."""
        ...

    def tell_each(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Write with each of these bindings, before the next step."""
        ...

    def event(self, seq: int, kind: str, data: Mapping[str, Any], *, final: bool = False) -> int | None:
        """Append to the log of a job, and ring; the event's id where it is known before the commit."""
        ...

    def ring_outbox(self) -> None:
        """Ring the bell of the outbox."""
        ...

    def find(self, job_id: str) -> Steps[Row | None]:
        """The columns `FOUND` of a job as they are now, or None."""
        ...

    def remember(self, job_id: str, row: Row) -> None:
        """The columns `FOUND` of a job as they are now: the next `find` need not ask."""
        ...

    def told_late(self, seq: int, envelope_id: str) -> Steps[bool]:
        """Whether the log has an event `late` of this envelope."""
        ...


def one(sql: str, *bindings: Any) -> Steps[Row | None]:
    """The first row, or None."""
    rows = yield sql, bindings
    return rows[0] if rows else None


def pack(value: Any) -> bytes:
    """A user's value at rest, MessagePack. `invalid_argument` for what it cannot carry."""
    try:
        return _pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidArgument(f"value: it cannot be stored as MessagePack: {error}") from error


def as_json(kind: str, data: Mapping[str, Any]) -> str:
    """The data of an event at rest. `invalid_argument` for what it cannot carry."""
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
) -> Steps[bool]:
    """The one way into a terminal state, guarded in SQL. False where the job has ended before (or, for `timed_out`,
    is paused: its deadline stands still)."""
    rows = yield (
        f"""UPDATE jobs SET state = :state, finished_at = :now, updated_at = :now, paused_at = NULL,
              open_questions = 0, stays_paused = FALSE,
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
        unit.tell("DELETE FROM job_outbox WHERE parked_for = ? AND held = TRUE", (seq,))
        unit.tell("UPDATE job_questions SET state = 'closed' WHERE job = ? AND state = 'open'", (seq,))
    if fan_out:
        unit.tell("UPDATE job_branches SET result = NULL WHERE job = ? AND result IS NOT NULL", (seq,))
    return True
