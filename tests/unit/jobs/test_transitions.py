"""The state machine as the tables themselves enforce it: every transition by raw SQL, allowed and forbidden."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import apsw
import psycopg
import pytest

from groundplane.jobs.drivers.embedded import MIGRATIONS
from groundplane.jobs.drivers.postgres import MIGRATIONS as POSTGRES_MIGRATIONS
from groundplane.jobs.port import JobState

_TERMINAL = {"succeeded", "failed", "cancelled", "timed_out"}
_ALLOWED = {
    "pending": {"running", "paused", "succeeded", "failed", "cancelled", "timed_out"},
    "running": {"paused", "succeeded", "failed", "cancelled", "timed_out"},
    "paused": {"pending", "running", "succeeded", "failed", "cancelled"},
    "succeeded": set(),
    "failed": set(),
    "cancelled": set(),
    "timed_out": set(),
}
_PAIRS = list(itertools.product(JobState, JobState))


class Refused(Exception):
    """The tables did not take a row."""


class Tables(Protocol):
    """The tables of a store with one pending job, spoken to in SQLite's SQL."""

    def execute(self, sql: str, bindings: Any = ()) -> list[tuple[Any, ...]]: ...


class _Sqlite:
    def __init__(self) -> None:
        self.connection = apsw.Connection(":memory:")
        for migration in MIGRATIONS.load():
            self.connection.execute(migration.sql).fetchall()

    def execute(self, sql: str, bindings: Any = ()) -> list[tuple[Any, ...]]:
        try:
            return self.connection.execute(sql, bindings).fetchall()
        except apsw.ConstraintError as error:
            raise Refused(str(error)) from error


class _Postgres:
    """Everything in one transaction, which is never committed."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.connection = connection
        connection.execute("CREATE SCHEMA transitions")
        connection.execute("SET search_path TO transitions")
        for migration in POSTGRES_MIGRATIONS.load():
            connection.execute(migration.sql.encode())

    def execute(self, sql: str, bindings: Any = ()) -> list[tuple[Any, ...]]:
        sql = re.sub(r"x'([0-9a-f]+)'", r"'\\x\1'::bytea", sql)
        sql = re.sub(r":([a-z]+)\b(?<!:bytea)", r"%(\1)s", sql).replace(":%(bytea)s", "::bytea").replace("?", "%s")
        try:
            with self.connection.transaction():
                cursor = self.connection.execute(sql.encode(), bindings or None)
                return cursor.fetchall() if cursor.description is not None else []
        except (psycopg.IntegrityError, psycopg.errors.DatatypeMismatch) as error:
            raise Refused(str(error)) from error


@contextmanager
def _sqlite(request: pytest.FixtureRequest) -> Iterator[_Sqlite]:
    tables = _Sqlite()
    yield tables
    tables.connection.close()


@contextmanager
def _postgres(request: pytest.FixtureRequest) -> Iterator[_Postgres]:
    server = request.getfixturevalue("postgres_server")
    with psycopg.connect(server.url) as connection:
        yield _Postgres(connection)
        connection.rollback()


@pytest.fixture(params=[_sqlite, _postgres], ids=["sqlite", "postgres"])
def tables(request: pytest.FixtureRequest) -> Iterator[Tables]:
    with request.param(request) as opened:
        opened.execute(
            "INSERT INTO jobs (namespace, job_id, tool, owner, arguments_hash, total_steps, route, arguments, "
            "created_at, updated_at) VALUES (1, 'j', 't', '', '', 2, x'90', x'c0', 1, 1)"
        )
        yield opened


def _move(tables: Tables, state: str) -> None:
    """The whole row as the state wants it, so that only the transition itself can be refused."""
    tables.execute(
        """UPDATE jobs SET state = :state,
             progress = CASE :state WHEN 'succeeded' THEN 100 ELSE progress END,
             result = CASE :state WHEN 'succeeded' THEN x'c0' END,
             error = CASE WHEN :state IN ('failed', 'timed_out') THEN x'80' END,
             paused_at = CASE :state WHEN 'paused' THEN 2 END,
             finished_at = CASE WHEN :state IN ('succeeded', 'failed', 'cancelled', 'timed_out') THEN 2 END""",
        {"state": state},
    )


def _state(tables: Tables) -> str:
    ((state,),) = tables.execute("SELECT state FROM jobs")
    return str(state)


@pytest.mark.req("JOB-01.1", "JOB-01.2", "JOB-10.2")
@pytest.mark.parametrize(("before", "after"), [pair for pair in _PAIRS if pair[1] in _ALLOWED[pair[0]]])
def test_an_allowed_transition_is_made(tables: Tables, before: JobState, after: JobState) -> None:
    if before is not JobState.PENDING:
        _move(tables, before)
    _move(tables, after)
    assert _state(tables) == after


@pytest.mark.req("JOB-01.1", "JOB-01.2", "JOB-10.2")
@pytest.mark.parametrize(
    ("before", "after"), [pair for pair in _PAIRS if pair[1] not in _ALLOWED[pair[0]] and pair[0] is not pair[1]]
)
def test_a_forbidden_transition_is_refused(tables: Tables, before: JobState, after: JobState) -> None:
    if before is not JobState.PENDING:
        _move(tables, before)
    with pytest.raises(Refused, match=r"has ended|does not change like that"):
        tables.execute("UPDATE jobs SET state = ?", (after,))
    with pytest.raises(Refused):
        _move(tables, after)
    assert _state(tables) == before


def test_the_table_of_transitions_is_the_documented_one() -> None:
    stored = set(_Sqlite().execute("SELECT before, after FROM job_transitions"))
    assert stored == {(before, after) for before, targets in _ALLOWED.items() for after in targets}
    assert {state for state in JobState if state.terminal} == _TERMINAL


@pytest.mark.req("JOB-10.2", "JOB-05.3", "JOB-05.4")
@pytest.mark.parametrize(
    "change",
    [
        "progress = -1",
        "progress = 101",
        "progress = 100",
        "progress = 40",
        "state = 'odd'",
        "state = 'succeeded', finished_at = 2, result = x'c0'",
        "state = 'succeeded', finished_at = 2, progress = 100",
        "state = 'succeeded', result = x'c0', progress = 100",
        "state = 'failed', finished_at = 2",
        "state = 'failed', error = x'80'",
        "state = 'failed', finished_at = 2, error = x'80', progress = 100",
        "state = 'paused'",
        "paused_at = 2",
        "finished_at = 2",
        "result = x'c0'",
        "steps_completed = 3",
        "total_steps = 0",
        "aborted = 2",
        "open_questions = -1",
        "open_questions = 1",
        "stays_paused = TRUE",
        "state = 'paused', paused_at = 2, stays_paused = TRUE",
    ],
)
def test_a_row_that_contradicts_itself_is_refused(tables: Tables, change: str) -> None:
    tables.execute("UPDATE jobs SET state = 'running', progress = 50")
    with pytest.raises(Refused):
        tables.execute(f"UPDATE jobs SET {change}")
    assert tables.execute("SELECT state, progress, finished_at FROM jobs") == [("running", 50.0, None)]


@pytest.mark.req("JOB-01.2", "JOB-10.2")
@pytest.mark.parametrize("state", sorted(_TERMINAL))
@pytest.mark.parametrize(
    "change",
    ["progress = 100", "result = x'c3'", "error = x'81'", "finished_at = 9", "result_key = 'k'", "finished_by = 'e'"],
)
def test_nothing_of_an_outcome_can_be_rewritten(tables: Tables, state: str, change: str) -> None:
    _move(tables, state)
    with pytest.raises(Refused):
        tables.execute(f"UPDATE jobs SET {change}")


@pytest.mark.req("JOB-01.2")
def test_the_outcome_of_a_job_that_an_envelope_ended_is_filed_later_and_once(tables: Tables) -> None:
    tables.execute(
        "UPDATE jobs SET state = 'succeeded', progress = 100, result = x'c0', finished_at = 2, finished_by = 'e'"
    )
    tables.execute("UPDATE jobs SET result_key = 'k'")
    with pytest.raises(Refused, match="filed once"):
        tables.execute("UPDATE jobs SET result_key = 'other'")


@pytest.mark.req("JOB-10.2")
@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.PENDING])
def test_a_job_cannot_begin_in_another_state(tables: Tables, state: JobState) -> None:
    with pytest.raises(Refused, match="begins as pending"):
        tables.execute(
            "INSERT INTO jobs (namespace, job_id, tool, owner, arguments_hash, total_steps, route, arguments,"
            " created_at, updated_at, state) VALUES (1, 'k', 't', '', '', 2, x'90', x'c0', 1, 1, ?)",
            (state,),
        )


@pytest.mark.req("JOB-03.1")
def test_the_log_cannot_be_rewritten_and_has_one_final_event_a_job(tables: Tables) -> None:
    of_one = isinstance(tables, _Postgres)  # its ids are of a namespace, and given by the store
    columns, values = ("namespace, id, ", "1, ?, ") if of_one else ("id, ", "?, ")
    insert = (
        f"INSERT INTO job_events ({columns}job, kind, final, data, created_at) VALUES ({values}1, 'x', TRUE, '{{}}', 1)"
    )
    tables.execute(insert, (1,))
    with pytest.raises(Refused, match="append-only"):
        tables.execute("UPDATE job_events SET kind = 'y'")
    with pytest.raises(Refused):
        tables.execute(insert, (2,))


_QUESTION_STATES = ("open", "answered", "closed")


def _ask(tables: Tables, state: str = "open") -> None:
    tables.execute(
        "INSERT INTO job_questions (job, question_id, number, kind, state, message, params, actor, envelope_id,"
        " asked_at) VALUES (1, 'q', 0, 'elicit', ?, '', x'80', '', 'e', 1)",
        (state,),
    )


def _settle(tables: Tables, state: str) -> None:
    """The whole row as the state wants it, so that only the transition itself can be refused."""
    tables.execute(
        """UPDATE job_questions SET state = :state,
             answered_at = CASE :state WHEN 'answered' THEN 2 END,
             action = CASE :state WHEN 'answered' THEN 'accept' END,
             content = CASE :state WHEN 'answered' THEN x'c0' END,
             answered_by = CASE :state WHEN 'answered' THEN '' END""",
        {"state": state},
    )


@pytest.mark.req("JOB-10.2", "GATE-16.1")
@pytest.mark.parametrize(("before", "after"), list(itertools.product(_QUESTION_STATES, _QUESTION_STATES)))
def test_a_question_is_answered_or_closed_once(tables: Tables, before: str, after: str) -> None:
    _ask(tables)
    if before != "open":
        _settle(tables, before)
    if before == "open":
        _settle(tables, after)
    else:
        with pytest.raises(Refused, match="does not change"):
            _settle(tables, after)
    assert tables.execute("SELECT state FROM job_questions") == [(after if before == "open" else before,)]


@pytest.mark.req("JOB-10.2")
@pytest.mark.parametrize("state", ["answered", "closed", "odd"])
def test_a_question_cannot_begin_in_another_state(tables: Tables, state: str) -> None:
    with pytest.raises(Refused, match="begins as open"):
        _ask(tables, state)


@pytest.mark.req("JOB-10.2", "GATE-16.1")
@pytest.mark.parametrize(
    "change",
    [
        "question_id = 'other'",
        "message = 'other'",
        "schema = x'80'",
        "params = x'81'",
        "asked_at = 9",
        "envelope_id = 'f'",
        "action = 'accept'",
        "answered_at = 2",
        "answered_by = ''",
        "content = x'c0'",
        "state = 'answered'",
        "state = 'answered', answered_at = 2, action = 'accept'",
        "state = 'answered', answered_at = 2, answered_by = ''",
        "state = 'answered', answered_at = 2, answered_by = '', action = 'odd'",
        "state = 'answered', answered_at = 2, answered_by = '', action = 'decline', content = x'c0'",
        "state = 'closed', action = 'cancel'",
    ],
)
def test_a_question_that_contradicts_itself_is_refused(tables: Tables, change: str) -> None:
    _ask(tables)
    with pytest.raises(Refused):
        tables.execute(f"UPDATE job_questions SET {change}")
    assert tables.execute("SELECT state, action, message FROM job_questions") == [("open", None, "")]


@pytest.mark.req("JOB-10.2", "GATE-16.1")
@pytest.mark.parametrize("state", list(JobState))
def test_only_a_paused_job_has_open_questions(tables: Tables, state: JobState) -> None:
    if state is not JobState.PENDING:
        _move(tables, state)
    change = "UPDATE jobs SET open_questions = 1, stays_paused = TRUE"
    if state is JobState.PAUSED:
        tables.execute(change)
        for after in JobState:
            if after is not state:
                with pytest.raises(Refused):
                    _move(tables, after)  # not while one is open
    else:
        with pytest.raises(Refused):
            tables.execute(change)
    assert _state(tables) == state
