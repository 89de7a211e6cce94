"""What a work may do inside a transaction."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import apsw

from groundplane.backends.sqlite.errors import translate
from groundplane.backends.sqlite.wake import check_topic
from groundplane.core.errors import Closed, FailedPrecondition, GroundplaneError

Value: TypeAlias = int | float | str | bytes | None
Row: TypeAlias = tuple[Any, ...]
Bindings: TypeAlias = Sequence[Value] | Mapping[str, Value]

_ROWS_AT_ONCE = (64, 8, 1)


class Transaction:
    """The file as one work sees it: a savepoint of a write, or a snapshot for a read.

    Valid only while the work runs and only in its thread. Errors of SQLite arrive as `GroundplaneError`
    (`already_exists` for a unique key, `resource_exhausted` for a full disk, …) with the cause kept.
    """

    __slots__ = ("_connection", "_cursor", "_path", "_writable", "topics")

    def __init__(self, connection: apsw.Connection, cursor: apsw.Cursor, path: str, *, writable: bool) -> None:
        self._connection = connection
        self._cursor: apsw.Cursor | None = cursor
        self._path = path
        self._writable = writable
        self.topics: dict[str, bool] | None = None

    def execute(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """Runs one or more statements to the end and returns all rows."""
        try:
            return self._live().execute(sql, bindings).fetchall()
        except apsw.Error as error:
            raise self._explain(error) from error

    def executemany(self, sql: str, rows: Iterable[Bindings]) -> list[Row]:
        """Runs the statements once for each of `rows`; returns the rows of all runs, one after another."""
        try:
            return self._live().executemany(sql, rows).fetchall()
        except apsw.Error as error:
            raise self._explain(error) from error

    def insert(self, into: str, rows: Sequence[Sequence[Value]]) -> None:
        """Inserts rows that have a value for each column: `insert("INSERT INTO t", rows)`.

        Many with each statement: every step of a statement gives up the interpreter's lock, and beside a busy loop it
        takes up to 5 ms to have it back.
        """
        start = 0
        for at_once in _ROWS_AT_ONCE:
            while len(rows) - start >= at_once:
                some = rows[start : start + at_once]
                self.execute(_insert(into, len(some[0]), at_once), [value for row in some for value in row])
                start += at_once

    def changes(self) -> int:
        """Rows changed by the last INSERT, UPDATE or DELETE (of `executemany`: by its last run)."""
        self._live()
        return self._connection.changes()

    def wake(self, topic: str, *, early: bool = False) -> None:
        """Rings the listeners of `topic` in every process once this write is as durable as it was asked to be; `early`
        once it is committed, as others see its rows from then on. Topics are rung in the order of the calls.

        A topic with a slash also rings the listeners of the part before the first slash. Nothing is rung
        when the work fails. `invalid_argument`: `wake.check_topic`.
        """
        self._live()
        if not self._writable:
            raise FailedPrecondition("topic: a read cannot ring; call wake in a write")
        if self.topics is None:
            self.topics = {}
        if topic not in self.topics:
            check_topic(topic)
        self.topics[topic] = early and self.topics.get(topic, True)

    def end(self) -> None:
        """The work is over; every later call raises `closed`."""
        self._cursor = None

    def _explain(self, error: apsw.Error) -> GroundplaneError:
        if not self._writable and isinstance(error, apsw.ReadOnlyError):
            return FailedPrecondition("sql: a read cannot change anything; use write")
        return translate(error, self._path)

    def _live(self) -> apsw.Cursor:
        if self._cursor is None:
            raise Closed("transaction: it ended with its work; use it only inside the function given to write or read")
        return self._cursor


@functools.lru_cache(maxsize=64)
def _insert(into: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"{into} VALUES {', '.join([row] * rows)}"
