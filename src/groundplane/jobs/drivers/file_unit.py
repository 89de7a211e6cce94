"""One transaction of the embedded job store: decisions run in it step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from groundplane.backends.sqlite import Transaction
from groundplane.jobs.drivers import unit
from groundplane.jobs.drivers.unit import FOUND, Bindings, Row, Scope, Steps, as_json

T = TypeVar("T")

_FIND = f"SELECT {FOUND} FROM jobs WHERE namespace = ? AND job_id = ?"


class FileUnit:
    """What a work of the store needs. `now` is the store's clock, Unix milliseconds."""

    __slots__ = ("now", "scope", "trees", "tx")

    def __init__(self, tx: Transaction, scope: Scope, now: int) -> None:
        self.tx = tx
        self.scope = scope
        self.now = now
        self.trees: dict[int, Any] = {}

    def run(self, steps: Steps[T]) -> T:
        """Each step at once; what they come to."""
        execute = self.tx.execute
        try:
            sql, bindings = next(steps)
            while True:
                sql, bindings = steps.send(execute(sql, bindings))
        except StopIteration as end:
            value: T = end.value
            return value

    def tell(self, sql: str, bindings: Bindings = ()) -> None:
        """See `Unit`."""
        self.tx.execute(sql, bindings)

    def tell_each(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """See `Unit`."""
        self.tx.executemany(sql, rows)

    def event(self, seq: int, kind: str, data: Mapping[str, Any], *, final: bool = False) -> int:
        """See `Unit`; the id of the event."""
        rows = self.tx.execute(
            "INSERT INTO job_events (job, kind, final, data, created_at) VALUES (?, ?, ?, ?, ?) RETURNING id",
            (seq, kind, final, as_json(kind, data), self.now),
        )
        if final:
            self.tx.wake(self.scope.topic("ends"))
        self.tx.wake(self.scope.topic("events"))
        event_id: int = rows[0][0]
        return event_id

    def ring_outbox(self) -> None:
        """See `Unit`."""
        self.tx.wake(self.scope.topic("outbox"))

    def find(self, job_id: str) -> Steps[Row | None]:
        """See `Unit`."""
        return unit.one(_FIND, self.scope.number, job_id)

    def remember(self, job_id: str, row: Row) -> None:
        """See `Unit`. A look costs less here than the care."""

    def told_late(self, seq: int, envelope_id: str) -> Steps[bool]:
        """See `Unit`."""
        rows = yield (
            "SELECT 1 FROM job_events WHERE job = ? AND kind = 'late' AND data ->> '$.envelope_id' = ? LIMIT 1",
            (seq, envelope_id),
        )
        return bool(rows)

    def one(self, sql: str, *bindings: Any) -> Row | None:
        """The first row, or None."""
        rows = self.tx.execute(sql, bindings)
        return rows[0] if rows else None


_: type[unit.Unit] = FileUnit
