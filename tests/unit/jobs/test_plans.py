"""What SQLite does for each statement of the store: looks things up, and neither scans nor sorts a growing table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apsw
import pytest

from groundplane.jobs.conformance.subjects import message, new_job, report
from groundplane.jobs.drivers import changes, expiry, log, outbox, records
from groundplane.jobs.drivers.embedded import MIGRATIONS
from groundplane.jobs.drivers.file_unit import FileUnit
from groundplane.jobs.drivers.unit import Scope
from groundplane.jobs.port import (
    Answer,
    Ask,
    Change,
    Control,
    Finish,
    JobQuery,
    JobState,
    Joined,
    Note,
    Outcome,
    Park,
    Question,
    Retention,
    Split,
)

_SCOPE = Scope(1, "plans")
_NOW = 1_000
_HARMLESS = ("SCAN below", "SCAN CONSTANT ROW")  # a list made by the statement itself, and no table at all


class _Explaining:
    """A transaction that asks for the plan of each statement before it runs it."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.plans: dict[str, list[str]] = {}

    def execute(self, sql: str, bindings: Any = ()) -> list[tuple[Any, ...]]:
        plan = [row[3] for row in self._connection.execute(f"EXPLAIN QUERY PLAN {sql}", bindings)]
        self.plans[" ".join(sql.split())] = plan
        return self._connection.execute(sql, bindings).fetchall()

    def executemany(self, sql: str, rows: Iterable[Any]) -> None:
        for row in rows:
            self.execute(sql, row)

    def changes(self) -> int:
        return self._connection.changes()

    def wake(self, topic: str) -> None:
        assert topic.endswith("/plans")

    def bad(self) -> dict[str, list[str]]:
        """Statements that scan or sort."""
        return {
            sql: plan
            for sql, plan in self.plans.items()
            if any((step.startswith("SCAN ") and step not in _HARMLESS) or "TEMP B-TREE" in step for step in plan)
        }


@pytest.fixture
def tx() -> Iterator[_Explaining]:
    connection = apsw.Connection(":memory:")
    for migration in MIGRATIONS.load():
        connection.execute(migration.sql).fetchall()
    connection.execute("INSERT INTO job_namespaces (name) VALUES ('plans')").fetchall()
    yield _Explaining(connection)
    connection.close()


@pytest.fixture
def unit(tx: _Explaining) -> FileUnit:
    return FileUnit(tx, _SCOPE, _NOW)  # type: ignore[arg-type]


def apply(unit: FileUnit, work: list[Change]) -> list[Outcome]:
    return unit.run(changes.apply(unit, work))


def test_the_life_of_a_job_is_looked_up(tx: _Explaining, unit: FileUnit) -> None:
    job = new_job(idempotency_key="k", deadline_at=_NOW + 1)
    records.create(unit, job, [message("e")])
    records.create(unit, job, [])
    (taken,) = outbox.take(unit, 10, 10)
    outbox.done(unit, [taken[0]])
    one = job.job_id
    apply(
        unit,
        [
            report(one, 0, 50),
            Note(job_id=one, kind="retry"),
            Control(job_id=one, action="pause"),
            Park(job_id=one, message=message("e")),
            Control(job_id=one, action="resume"),
            Finish(job_id=one, envelope_id="root"),
            Finish(job_id=one, envelope_id="late"),
        ],
    )
    log.of_job(unit.tx, _SCOPE, one, 0, 10, final=False)
    log.of_all(unit.tx, _SCOPE, 0, 10, final=False)
    records.get(unit.tx, _SCOPE, one)
    assert len(tx.plans) > 20
    assert tx.bad() == {}


def test_questions_are_looked_up(tx: _Explaining, unit: FileUnit) -> None:
    one = records.create(unit, new_job(), []).job.job_id
    asked = [Question(question_id=key, envelope_id="root") for key in ("q1", "q2")]
    apply(unit, [Ask(job_id=one, questions=asked, message=message("root"))])
    assert len(records.get(unit.tx, _SCOPE, one).questions) == 2
    records.questions(unit.tx, _SCOPE, one, ["q2"])
    outcomes = apply(unit, [Answer(job_id=one, question_id=key) for key in ("q1", "q2", "q2", "q3")])
    assert [outcome.detail for outcome in outcomes] == ["", "", "repeated", "question_not_found"]
    apply(unit, [Ask(job_id=one, questions=asked, message=message("root")), Finish(job_id=one, envelope_id="root")])
    expiry.delete_finished(unit, Retention(jobs_s=-1))
    assert tx.bad() == {}


def test_a_fan_out_is_looked_up_and_only_its_end_sorts_its_branches(tx: _Explaining, unit: FileUnit) -> None:
    job = new_job()
    records.create(unit, job, [])
    one = job.job_id
    apply(
        unit,
        [
            Split(job_id=one, envelope_id="root", children=["a", "b"]),
            Split(job_id=one, envelope_id="root", children=["a", "b", "c"]),
            report(one, 0, 50, envelope_id="a"),
            Finish(job_id=one, envelope_id="a"),
            Joined(job_id=one, parent_id="root", envelope_id="j"),
        ],
    )
    assert tx.bad() == {}
    apply(unit, [Finish(job_id=one, envelope_id="j")])
    assert [sql.partition(" FROM ")[2].split()[0] for sql in tx.bad()] == ["job_branches"]


@pytest.mark.parametrize(
    "query",
    [
        JobQuery(owner="me"),
        JobQuery(owner="me", states=[JobState.PENDING, JobState.RUNNING], cursor="9"),
        JobQuery(owner="me", tool="t"),
    ],
)
def test_an_owners_jobs_are_looked_up(tx: _Explaining, query: JobQuery) -> None:
    records.list_jobs(tx, _SCOPE, query)  # type: ignore[arg-type]
    assert tx.bad() == {}


def test_the_jobs_of_all_are_walked_from_the_newest_without_sorting(tx: _Explaining) -> None:
    records.list_jobs(tx, _SCOPE, JobQuery())  # type: ignore[arg-type]
    ((plan,),) = [[steps[0] for steps in tx.plans.values()]]
    assert plan == "SCAN jobs"


def test_what_passes_with_time_is_looked_up(tx: _Explaining, unit: FileUnit) -> None:
    retention = Retention(jobs_s=0.0, events_s=0.0)
    records.create(unit, new_job(deadline_at=1), [])
    late = FileUnit(unit.tx, _SCOPE, _NOW + 10)
    expiry.look(late.tx, _SCOPE, retention, late.now)
    assert len(expiry.end_overdue(late)) == 1
    assert expiry.trim_events(FileUnit(unit.tx, _SCOPE, _NOW + 20), retention) == 1
    assert expiry.delete_finished(FileUnit(unit.tx, _SCOPE, _NOW + 20), retention) == (1, 1)
    assert tx.bad() == {}
