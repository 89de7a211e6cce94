"""The state machine as the tables themselves enforce it: every transition by raw SQL, allowed and forbidden."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import apsw
import pytest

from groundplane.jobs.drivers.embedded import MIGRATIONS
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


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    opened = apsw.Connection(":memory:")
    for migration in MIGRATIONS.load():
        opened.execute(migration.sql).fetchall()
    opened.execute(
        "INSERT INTO jobs (namespace, job_id, tool, owner, arguments_hash, total_steps, route, arguments, created_at,"
        " updated_at) VALUES (1, 'j', 't', '', '', 2, x'90', x'c0', 1, 1)"
    ).fetchall()
    yield opened
    opened.close()


def _move(connection: apsw.Connection, state: str) -> None:
    """The whole row as the state wants it, so that only the transition itself can be refused."""
    connection.execute(
        """UPDATE jobs SET state = :state,
             progress = CASE :state WHEN 'succeeded' THEN 100 ELSE progress END,
             result = CASE :state WHEN 'succeeded' THEN x'c0' END,
             error = CASE WHEN :state IN ('failed', 'timed_out') THEN x'80' END,
             paused_at = CASE :state WHEN 'paused' THEN 2 END,
             finished_at = CASE WHEN :state IN ('succeeded', 'failed', 'cancelled', 'timed_out') THEN 2 END""",
        {"state": state},
    ).fetchall()


def _state(connection: apsw.Connection) -> str:
    (state,) = next(connection.execute("SELECT state FROM jobs"))
    return str(state)


@pytest.mark.req("JOB-01.1", "JOB-01.2", "JOB-10.2")
@pytest.mark.parametrize(("before", "after"), [pair for pair in _PAIRS if pair[1] in _ALLOWED[pair[0]]])
def test_an_allowed_transition_is_made(connection: apsw.Connection, before: JobState, after: JobState) -> None:
    if before is not JobState.PENDING:
        _move(connection, before)
    _move(connection, after)
    assert _state(connection) == after


@pytest.mark.req("JOB-01.1", "JOB-01.2", "JOB-10.2")
@pytest.mark.parametrize(
    ("before", "after"), [pair for pair in _PAIRS if pair[1] not in _ALLOWED[pair[0]] and pair[0] is not pair[1]]
)
def test_a_forbidden_transition_is_refused(connection: apsw.Connection, before: JobState, after: JobState) -> None:
    if before is not JobState.PENDING:
        _move(connection, before)
    with pytest.raises(apsw.ConstraintError, match=r"has ended|does not change like that"):
        connection.execute("UPDATE jobs SET state = ?", (after,)).fetchall()
    with pytest.raises(apsw.ConstraintError):
        _move(connection, after)
    assert _state(connection) == before


def test_the_table_of_transitions_is_the_documented_one(connection: apsw.Connection) -> None:
    stored = set(connection.execute("SELECT before, after FROM job_transitions"))
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
    ],
)
def test_a_row_that_contradicts_itself_is_refused(connection: apsw.Connection, change: str) -> None:
    connection.execute("UPDATE jobs SET state = 'running', progress = 50").fetchall()
    with pytest.raises(apsw.ConstraintError):
        connection.execute(f"UPDATE jobs SET {change}").fetchall()
    assert next(connection.execute("SELECT state, progress, finished_at FROM jobs")) == ("running", 50.0, None)


@pytest.mark.req("JOB-01.2", "JOB-10.2")
@pytest.mark.parametrize("state", sorted(_TERMINAL))
@pytest.mark.parametrize(
    "change",
    ["progress = 100", "result = x'c3'", "error = x'81'", "finished_at = 9", "result_key = 'k'", "finished_by = 'e'"],
)
def test_nothing_of_an_outcome_can_be_rewritten(connection: apsw.Connection, state: str, change: str) -> None:
    _move(connection, state)
    with pytest.raises(apsw.ConstraintError):
        connection.execute(f"UPDATE jobs SET {change}").fetchall()


@pytest.mark.req("JOB-01.2")
def test_the_outcome_of_a_job_that_an_envelope_ended_is_filed_later_and_once(connection: apsw.Connection) -> None:
    connection.execute(
        "UPDATE jobs SET state = 'succeeded', progress = 100, result = x'c0', finished_at = 2, finished_by = 'e'"
    ).fetchall()
    connection.execute("UPDATE jobs SET result_key = 'k'").fetchall()
    with pytest.raises(apsw.ConstraintError, match="filed once"):
        connection.execute("UPDATE jobs SET result_key = 'other'").fetchall()


@pytest.mark.req("JOB-10.2")
@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.PENDING])
def test_a_job_cannot_begin_in_another_state(connection: apsw.Connection, state: JobState) -> None:
    with pytest.raises(apsw.ConstraintError, match="begins as pending"):
        connection.execute(
            "INSERT INTO jobs (namespace, job_id, tool, owner, arguments_hash, total_steps, route, arguments,"
            " created_at, updated_at, state) VALUES (1, 'k', 't', '', '', 2, x'90', x'c0', 1, 1, ?)",
            (state,),
        ).fetchall()


@pytest.mark.req("JOB-03.1")
def test_the_log_cannot_be_rewritten_and_has_one_final_event_a_job(connection: apsw.Connection) -> None:
    insert = "INSERT INTO job_events (job, kind, final, data, created_at) VALUES (1, 'x', ?, '{}', 1)"
    connection.execute(insert, (1,)).fetchall()
    with pytest.raises(apsw.ConstraintError, match="append-only"):
        connection.execute("UPDATE job_events SET kind = 'y'").fetchall()
    with pytest.raises(apsw.ConstraintError):
        connection.execute(insert, (1,)).fetchall()
