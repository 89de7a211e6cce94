"""What PostgreSQL does for each statement of the store: looks things up, and scans no growing table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from psycopg import AsyncConnection

from groundplane.jobs.conformance.subjects import message, new_job, report
from groundplane.jobs.drivers.postgres import PostgresJobs
from groundplane.jobs.port import (
    Answer,
    Ask,
    Control,
    Finish,
    JobQuery,
    JobState,
    Joined,
    Note,
    Park,
    Question,
    Retention,
    Split,
)

pytestmark = pytest.mark.anyio

_MANY = """
    INSERT INTO {schema}.jobs (namespace, job_id, tool, owner, arguments_hash, total_steps, route, arguments,
      created_at, updated_at, deadline_at)
    SELECT 1, 'j' || n, 't' || n % 3, 'o' || n % 500, '', 2, '\\x90', '\\xc0', n, n, 9000000000000 + n
    FROM generate_series(1, 20000) AS n;
    UPDATE {schema}.jobs SET state = 'succeeded', progress = 100, result = '\\xc0', finished_at = 9000000000000 + seq
    WHERE seq % 10 <> 0;
    INSERT INTO {schema}.job_events
    SELECT 1, n, 1 + n % 20000, 'progress', FALSE, '{{}}', 9000000000000 FROM generate_series(1, 60000) AS n;
    UPDATE {schema}.job_namespaces SET last_event = 60000;
    INSERT INTO {schema}.job_outbox (namespace, queue, message_id, payload, headers, dedup_key)
    SELECT 1, 'q', 'm' || n, '', '\\x80', 'k' || n FROM generate_series(1, 10000) AS n;
    INSERT INTO {schema}.job_branches
    SELECT n % 100 + 1, 'b' || n, 'root', n / 100, 300, 'done', 100, TRUE FROM generate_series(1, 20000) AS n;
    INSERT INTO {schema}.job_questions (job, question_id, number, kind, message, params, actor, envelope_id, asked_at)
    SELECT n % 5000 + 1, 'q' || n, n / 5000, 'elicit', '', '\\x80', 'a', 'e', 1 FROM generate_series(1, 20000) AS n;
    ANALYZE {schema}.job_questions;
    ANALYZE {schema}.jobs; ANALYZE {schema}.job_events; ANALYZE {schema}.job_outbox; ANALYZE {schema}.job_branches;
"""


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresJobs]:
    mark = "&" if "?" in postgres_url else "?"
    opened = await PostgresJobs.open(f"{postgres_url}{mark}prepare_threshold=none&call_timeout=60", namespace="plans")
    for statement in _MANY.format(schema=opened.native.schema).split(";"):
        if statement.strip():
            await opened.native.query(statement)
    yield opened
    await opened.aclose()


@pytest.fixture
def statements(store: PostgresJobs, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is sent from now on."""
    sent: list[tuple[str, Any]] = []
    execute = AsyncConnection.execute

    async def recorded(self: AsyncConnection[Any], query: Any, params: Any = None, **more: Any) -> Any:
        if isinstance(query, str) and query.split()[0] in ("SELECT", "WITH", "UPDATE", "DELETE", "INSERT"):
            sent.append((query, params))
        return await execute(self, query, params, **more)

    monkeypatch.setattr(AsyncConnection, "execute", recorded)
    return sent


async def _scans(store: PostgresJobs, statements: list[tuple[str, Any]]) -> dict[str, list[str]]:
    """The statements that scan a table, but the small one of namespaces. Counting does; it is done as seldom as it is
    dear.
    """
    found: dict[str, list[str]] = {}
    for sql, bindings in [(sql, bindings) for sql, bindings in statements if "(SELECT count(*) FROM gr" not in sql]:
        plan = [row[0].strip() for row in await store.native.query(f"EXPLAIN {sql}", bindings or ())]
        if bad := [line for line in plan if "Seq Scan" in line and "job_namespaces" not in line]:
            found[" ".join(sql.split())] = bad
    return found


async def test_the_life_of_a_job_is_looked_up(store: PostgresJobs, statements: list[tuple[str, Any]]) -> None:
    job = new_job(idempotency_key="k")
    one = job.job_id
    await store.create(job, [message("e")], lease_s=5.0)
    await store.create(job, [])
    taken = await store.outbox.take(10)
    await store.outbox.done([number for number, _ in taken])
    for change in (
        report(one, 0, 50),
        Note(job_id=one, kind="retry"),
        Control(job_id=one, action="pause"),
        Park(job_id=one, message=message("e")),
        Control(job_id=one, action="resume"),
        Split(job_id=one, envelope_id="root", children=["a", "b"]),
        report(one, 0, 80, envelope_id="a"),
        Finish(job_id=one, envelope_id="a"),
        Joined(job_id=one, parent_id="root", envelope_id="j"),
        Finish(job_id=one, envelope_id="j"),
        Finish(job_id=one, envelope_id="late"),
    ):
        await store.apply([change])
    await store.get(one)
    await store.hops.standing(one)
    for final in (False, True):
        await store.events(after=59_000, final=final)
        await store.events(after=0, job_id=one, final=final)
    assert len(statements) > 40
    assert await _scans(store, statements) == {}


async def test_questions_are_looked_up(store: PostgresJobs, statements: list[tuple[str, Any]]) -> None:
    one = (await store.create(new_job(), [])).job.job_id
    asked = [Question(question_id=key, envelope_id="root") for key in ("q1", "q2")]
    await store.apply([Ask(job_id=one, questions=asked, message=message("root"))])
    assert len((await store.get(one)).questions) == 2
    await store.hops.questions(one)
    await store.hops.questions(one, ["q2"])
    outcomes = await store.apply([Answer(job_id=one, question_id=key) for key in ("q1", "q2", "q2", "q3")])
    assert [outcome.detail for outcome in outcomes] == ["", "", "repeated", "question_not_found"]
    await store.apply(
        [Ask(job_id=one, questions=asked[:1], message=message("root")), Finish(job_id=one, envelope_id="e")]
    )
    assert len(statements) > 15
    assert await _scans(store, statements) == {}


async def test_what_passes_with_time_is_looked_up(store: PostgresJobs, statements: list[tuple[str, Any]]) -> None:
    await store.create(new_job(deadline_at=1), [])
    swept = await store.sweep(Retention())
    assert len(swept.timed_out) == 1
    await store.sweep(Retention(jobs_s=0.0, events_s=0.0))
    assert await _scans(store, statements) == {}


@pytest.mark.parametrize(
    "query",
    [
        JobQuery(),
        JobQuery(cursor="500"),
        JobQuery(owner="o5"),
        JobQuery(owner="o5", states=[JobState.PENDING, JobState.RUNNING]),
        JobQuery(owner="o5", tool="t1"),
    ],
)
async def test_pages_of_jobs_are_looked_up(
    store: PostgresJobs, statements: list[tuple[str, Any]], query: JobQuery
) -> None:
    await store.list_jobs(query)
    assert await _scans(store, statements) == {}


async def test_where_counting_takes_too_long_the_servers_estimate_is_told(
    store: PostgresJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = await store.sweep(Retention())
    assert (exact.jobs, exact.events, exact.outbox) == (20_000, 60_000, 10_000)
    monkeypatch.setattr("groundplane.jobs.drivers.postgres.expiry._COUNT_MS", 1)
    store._count_again_at = 0.0
    about = await store.sweep(Retention())
    assert store.native.statistics().failures == 1  # the count that was given up
    for found, known in ((about.jobs, 20_000), (about.events, 60_000), (about.outbox, 10_000)):
        assert 0.5 * known <= found <= 2 * known
