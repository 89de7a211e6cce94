"""What the store in PostgreSQL promises beyond the suite: ids, order, groups, texts, clocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from psycopg import AsyncConnection

from groundplane.backends.postgres import Transaction
from groundplane.core.errors import AlreadyExists, Conflict, GroundplaneError, InvalidArgument, Unavailable, Unsupported
from groundplane.core.ids import new_id
from groundplane.jobs import Jobs, JobState
from groundplane.jobs.conformance.subjects import (
    BROKEN,
    eventually,
    history,
    message,
    new_job,
    report,
    started,
    succeed,
)
from groundplane.jobs.drivers.postgres import PostgresJobs, sequence
from groundplane.jobs.drivers.postgres.sequence import IDS_LEFT_OUT
from groundplane.jobs.port import Change, Created, Finish, NewJob, Note, OutboxMessage, Retention, Split
from groundplane.testing.servers.contract import Running

pytestmark = pytest.mark.anyio


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server lets a transaction stand idle longer than a machine may stall, not two seconds as it does."""
    monkeypatch.setattr("groundplane.backends.postgres.engine._IDLE_MS", 60_000)


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresJobs]:
    opened = await PostgresJobs.open(_with(postgres_url), namespace="promises")
    yield opened
    await opened.aclose()


@pytest.fixture
async def second(postgres_url: str, store: PostgresJobs) -> AsyncIterator[PostgresJobs]:
    """Another process, as far as the server can tell."""
    opened = await PostgresJobs.open(_with(postgres_url, "&application_name=second"), namespace="promises")
    yield opened
    await opened.aclose()


def _with(url: str, more: str = "") -> str:
    """The URL, with calls that outlast any stall."""
    return f"{url}{'&' if '?' in url else '?'}call_timeout=60{more}"


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000_000

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1000


@pytest.mark.req("JOB-03.1", "JOB-03.3")
@pytest.mark.usefixtures("patient")
async def test_an_event_of_a_transaction_that_is_still_open_is_neither_seen_nor_passed_by(
    store: PostgresJobs, second: PostgresJobs
) -> None:
    one, other = new_job(), new_job()
    for job in (one, other):
        await store.create(job, [])
    before = (await store.events(after=0, limit=0)).last_id
    schema, entered, go = store.native.schema, asyncio.Event(), asyncio.Event()

    async def slow(tx: Transaction) -> None:
        """The naive way: an id is taken long before the commit."""
        await tx.execute(f"SELECT FROM {schema}.jobs WHERE job_id = %s FOR NO KEY UPDATE", (one.job_id,))
        entered.set()
        await go.wait()

    holder = asyncio.create_task(store.native.write(slow))
    await entered.wait()
    held = asyncio.create_task(store.apply([Note(job_id=one.job_id, kind="retry")]))
    await second.apply([Note(job_id=other.job_id, kind="retry")])
    page = await store.events(after=before)
    assert [(event.id, event.job_id) for event in page.items] == [(before + 1, other.job_id)]
    go.set()
    await asyncio.gather(holder, held)
    later = await store.events(after=page.last_id)
    assert [(event.id, event.job_id) for event in later.items] == [(before + 2, one.job_id)]


@pytest.mark.req("JOB-03.1")
async def test_a_crash_of_the_server_leaves_a_gap_behind_ids_that_may_have_been_seen(
    own_server: Callable[..., Running],
) -> None:
    server = await asyncio.to_thread(own_server, "postgres")
    async with Jobs.open(server.url) as jobs:
        job_id = await started(jobs)
        await jobs.apply(report(job_id, 0, 50))
        seen = (await jobs.events(limit=0)).last_id
        assert seen == 2
        await asyncio.to_thread(server.restart)
        await _note(jobs, job_id)
        assert (await jobs.events(limit=0)).last_id == seen + 1  # nothing was lost, nothing is left out
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await _note(jobs, job_id)
        after = (await jobs.events(limit=0)).last_id
        assert after > IDS_LEFT_OUT
        await _note(jobs, job_id)
        assert (await jobs.events(limit=0)).last_id == after + 1


@pytest.mark.req("JOB-01.2")
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("same", ["key", "id"])
async def test_a_repeated_creation_lets_go_of_the_log_for_who_changes_the_job(
    own_server: Callable[..., Running], same: str
) -> None:
    """It waits for the change of its job, and the change for the lock that ends every transaction: no deadlock."""
    server = await asyncio.to_thread(own_server, "postgres")
    store = await PostgresJobs.open(_with(server.url), namespace="promises")
    try:
        await _repeated_while_changed(store, same)
    finally:
        await store.aclose()
    assert "deadlock detected" not in server.logs(1000)


async def _repeated_while_changed(store: PostgresJobs, same: str) -> None:
    job = msgspec.structs.replace(new_job(), idempotency_key="order 1")
    await store.create(job, [])
    schema, changed, go = store.native.schema, asyncio.Event(), asyncio.Event()

    async def change(tx: Transaction) -> None:
        await tx.execute(f"UPDATE {schema}.jobs SET message = 'changed' WHERE job_id = %s", (job.job_id,))
        changed.set()
        await go.wait()
        await tx.execute(*sequence.lock(schema, store.scope.number))

    async def waits() -> bool:
        return bool(await store.native.query("SELECT 1 FROM pg_locks WHERE NOT granted"))

    changing = asyncio.create_task(store.native.write(change))
    await changed.wait()
    again = {"key": {"job_id": new_id()}, "id": {"idempotency_key": None}}[same]
    creating = asyncio.create_task(store.create(msgspec.structs.replace(job, **again), []))
    await eventually(waits, 30.0)
    go.set()
    await changing
    if same == "key":
        created = await creating
        assert (created.created, created.job.job_id, created.job.message) == (False, job.job_id, "changed")
    else:
        with pytest.raises(AlreadyExists, match=job.job_id):
            await creating


async def _note(jobs: Jobs, job_id: str) -> None:
    async def noted() -> bool:
        try:
            await jobs.apply(Note(job_id=job_id, kind="retry"))
        except Unavailable:
            return False
        return True

    await eventually(noted)


@pytest.mark.req("JOB-01.2")
async def test_calls_that_come_together_go_in_few_transactions(store: PostgresJobs) -> None:
    jobs = [new_job() for _ in range(100)]
    before = store.native.statistics()
    created = await asyncio.gather(*(store.create(job, [message(job.job_id)], lease_s=5.0) for job in jobs))
    middle = store.native.statistics()
    assert middle.queries - before.queries <= 10
    assert [one.job.job_id for one in created] == [job.job_id for job in jobs]
    outcomes = await asyncio.gather(*(store.apply([report(job.job_id, 0, 50)]) for job in jobs))
    assert all(outcome.applied for (outcome,) in outcomes)
    assert store.native.statistics().transactions - middle.transactions <= 5


@pytest.mark.req("JOB-01.2")
@pytest.mark.parametrize("kind", ["finish", "note", "split", "with progress", "progress"])
async def test_every_change_but_progress_waits_for_the_disk(
    store: PostgresJobs, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    job_id = (await store.create(new_job(), [])).job.job_id
    finish = Finish(job_id=job_id, envelope_id="root", result=1)
    changes: dict[str, list[Change]] = {
        "finish": [finish],
        "note": [Note(job_id=job_id, kind="retry")],
        "split": [Split(job_id=job_id, envelope_id="root", children=["a"])],
        "with progress": [report(job_id, 1, 100), finish],
        "progress": [report(job_id, 1, 50)],
    }
    sent: list[str] = []
    execute = AsyncConnection.execute

    async def recorded(self: AsyncConnection[Any], query: Any, *rest: Any, **more: Any) -> Any:
        sent.append(str(query))
        return await execute(self, query, *rest, **more)

    monkeypatch.setattr(AsyncConnection, "execute", recorded)
    await store.apply(changes[kind])
    unsynced = any("synchronous_commit" in one for one in sent)
    assert unsynced is (kind == "progress")


@pytest.mark.req("JOB-02.1")
async def test_the_messages_that_are_taken_with_a_job_are_its_own(store: PostgresJobs) -> None:
    jobs = [new_job() for _ in range(30)]
    sent = [[message(f"{job.job_id}-{n}") for n in range(number % 4)] for number, job in enumerate(jobs)]
    created: list[Created] = await asyncio.gather(
        *(store.create(job, some, lease_s=5.0) for job, some in zip(jobs, sent, strict=True))
    )
    rows: dict[int, str] = dict(
        await store.native.query(f"SELECT id, message_id FROM {store.native.schema}.job_outbox")
    )
    for one, some in zip(created, sent, strict=True):
        assert [rows[number] for number in one.taken] == [each.id for each in some]
    assert len(rows) == sum(map(len, sent))


async def test_a_call_that_is_at_fault_fails_alone(store: PostgresJobs) -> None:
    job_id = (await store.create(new_job(), [])).job.job_id
    calls = [store.apply([Note(job_id=job_id, kind="retry", data={"n": n})]) for n in range(9)]
    bad = store.apply([Note(job_id=job_id, kind="retry", data={"n": object()})])
    outcomes = await asyncio.gather(*calls, bad, return_exceptions=True)
    assert isinstance(outcomes[-1], InvalidArgument)
    assert all(isinstance(one, list) and one[0].applied for one in outcomes[:-1])
    events = (await store.events(after=0, job_id=job_id)).items
    assert sorted(event.data["n"] for event in events if event.kind == "retry") == list(range(9))


@pytest.mark.req("JOB-06.1")
async def test_refused_jobs_in_a_group_are_refused_alone(store: PostgresJobs) -> None:
    taken = new_job(idempotency_key="k")
    await store.create(taken, [])
    outcomes = await asyncio.gather(
        store.create(new_job(), []),
        store.create(new_job(idempotency_key="k"), []),
        store.create(new_job(idempotency_key="k", arguments_hash="other"), []),
        store.create(new_job(job_id=taken.job_id), []),
        store.create(new_job(), []),
        return_exceptions=True,
    )
    first, known, conflict, repeated, last = outcomes
    assert [one.created for one in (first, last) if isinstance(one, Created)] == [True, True]
    assert isinstance(known, Created)
    assert (known.created, known.job.job_id) == (False, taken.job_id)
    assert isinstance(conflict, Conflict)
    assert isinstance(repeated, AlreadyExists)


async def test_the_same_id_twice_at_once_is_one_job(store: PostgresJobs) -> None:
    job = new_job()
    jobs = [each for _ in range(5) for each in (job, job, new_job())]
    outcomes = await asyncio.gather(*(store.create(each, [message("e")]) for each in jobs), return_exceptions=True)
    assert [type(one) for one in outcomes].count(Created) == 6
    assert [type(one) for one in outcomes].count(AlreadyExists) == 9
    assert len(await store.outbox.take(10)) == 6


@pytest.mark.req("JOB-06.1", "JOB-02.1")
async def test_a_creation_whose_answer_was_lost_is_made_once_and_told_as_made(postgres_url: str) -> None:
    async with Jobs.open(postgres_url) as jobs:
        make = jobs.driver.create

        async def lost(job: NewJob, messages: list[OutboxMessage], *, lease_s: float = 0.0) -> Created:
            jobs.driver.create = make  # type: ignore[method-assign]
            await make(job, messages, lease_s=lease_s)
            raise Unavailable("database: the connection broke after the commit")

        for job in (new_job(), new_job(idempotency_key="k")):
            jobs.driver.create = lost  # type: ignore[method-assign, assignment]
            created = await jobs.create(job, [message(job.job_id)])
            assert (created.created, created.job.job_id) == (True, job.job_id)
        assert len(await jobs.driver.outbox.take(10)) == 2


@pytest.mark.usefixtures("patient")
async def test_changes_of_many_jobs_in_opposite_orders_wait_for_each_other_in_no_circle(
    store: PostgresJobs, second: PostgresJobs
) -> None:
    jobs = [(await store.create(new_job(), [])).job.job_id for _ in range(30)]
    async with asyncio.timeout(20):
        for _ in range(10):
            outcomes = await asyncio.gather(
                store.apply([report(job_id, 0, 50) for job_id in jobs]),
                second.apply([report(job_id, 0, 50) for job_id in reversed(jobs)]),
            )
            assert all(one.applied for some in outcomes for one in some)


async def test_a_process_that_freezes_with_a_job_in_its_hands_holds_it_for_two_seconds(
    store: PostgresJobs, second: PostgresJobs
) -> None:
    job_id = (await store.create(new_job(), [])).job.job_id
    frozen, thaw = asyncio.Event(), asyncio.Event()

    async def freeze(tx: Transaction) -> None:
        await tx.execute(f"SELECT FROM {store.native.schema}.jobs WHERE job_id = %s FOR NO KEY UPDATE", (job_id,))
        frozen.set()
        await thaw.wait()
        tx.tell("SELECT 1")

    holder = asyncio.create_task(store.native.write(freeze))
    await frozen.wait()
    async with asyncio.timeout(8):
        (outcome,) = await second.apply([report(job_id, 0, 50)])
    assert outcome.applied
    thaw.set()
    with pytest.raises(Unavailable):
        await holder


async def test_texts_with_nul_are_stored_without_it_and_fail_no_job(store: PostgresJobs) -> None:
    job = (await store.create(new_job(trace="a\0b"), [message("e\0")])).job
    await store.apply(
        [report(job.job_id, 0, 50, message="half\0way"), Note(job_id=job.job_id, kind="retry", data={"a": "\0"})]
    )
    assert (await store.get(job.job_id)).message == "half\ufffdway"
    (outcome,) = await store.apply([Finish(job_id=job.job_id, envelope_id="root", result="\0")])
    assert outcome.state is JobState.SUCCEEDED
    assert (await store.get(job.job_id)).result == "\0"
    (late,) = await store.apply([Finish(job_id=job.job_id, envelope_id="root", result="\0")])
    assert (late.applied, late.detail) == (False, "repeated")


async def test_the_clock_of_the_server_decides_or_the_one_that_was_given(postgres_url: str) -> None:
    clock = _Clock()
    store = await PostgresJobs.open(postgres_url, namespace="clock", clock=clock)
    try:
        job = (await store.create(new_job(deadline_at=1_000_500), [message("e")], lease_s=1.0)).job
        assert job.created_at == clock.now
        assert await store.outbox.take(10) == []
        clock.now += 400
        await store.apply([report(job.job_id, 0, 50)])
        assert (await store.get(job.job_id)).updated_at == clock.now
        assert (await store.sweep(Retention())).timed_out == []
        clock.now += 600
        assert (await store.sweep(Retention())).timed_out == [job.job_id]
        ((_, again),) = await store.outbox.take(10)
        assert again.taken_before
        swept = await store.sweep(Retention(jobs_s=0.0, events_s=0.0))
        assert (swept.jobs_deleted, swept.events_deleted) == (0, 2)
        clock.now += 1
        assert (await store.sweep(Retention(jobs_s=0.0))).jobs_deleted == 1
    finally:
        await store.aclose()


async def test_queues_share_no_transaction_with_it(store: PostgresJobs) -> None:
    assert not store.hops.share_transactions(object())
    with pytest.raises(Unsupported):
        store.hops.carried([])


async def test_namespaces_of_one_schema_know_nothing_of_each_other(postgres_url: str) -> None:
    async with Jobs.open(postgres_url, namespace="a") as one, Jobs.open(postgres_url, namespace="b") as other:
        job = new_job(idempotency_key="k")
        assert (await one.create(job, [message("e")])).created
        assert (await other.create(msgspec.structs.replace(job, tool="else"))).created
        await succeed(one, job.job_id)
        assert (await other.get(job.job_id)).state is JobState.PENDING
        assert [event.id for event in await history(other, job.job_id)] == [1]
        assert await other.driver.outbox.take(10) == []
        assert (await other.sweep()).jobs == 1


@pytest.mark.usefixtures("patient")
async def test_a_fan_out_of_many_children_is_told_in_few_transactions(store: PostgresJobs) -> None:
    job_id = (await store.create(new_job(), [])).job.job_id
    children = [new_id() for _ in range(300)]
    await store.apply([Split(job_id=job_id, envelope_id="root", children=children)])
    await asyncio.gather(
        *(store.apply([Finish(job_id=job_id, envelope_id=one, result=n)]) for n, one in enumerate(children))
    )
    job = await store.get(job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, list(range(300)))
    events = (await store.events(after=0, job_id=job_id)).items
    told = [event.data["progress"] for event in events if "progress" in event.data]
    assert told == sorted(told)
    assert [event.kind for event in events].count("succeeded") == 1


@pytest.mark.req("JOB-05.3", "JOB-12.2")
async def test_a_success_and_then_a_failure_in_one_call_are_judged_one_after_the_other(store: PostgresJobs) -> None:
    job_id = (await store.create(new_job(), [])).job.job_id
    await store.apply([Split(job_id=job_id, envelope_id="root", children=["a", "b", "c"])])
    outcomes = await store.apply(
        [
            report(job_id, 0, 50, envelope_id="c"),
            Finish(job_id=job_id, envelope_id="a", result=1),
            Finish(job_id=job_id, envelope_id="b", error=BROKEN),
            report(job_id, 1, 50, envelope_id="c"),
        ]
    )
    assert all(outcome.applied for outcome in outcomes)
    told = [event.data["progress"] for event in (await store.events(after=0, job_id=job_id)).items]
    assert told == sorted(told)
    assert round((await store.get(job_id)).progress, 3) == told[-1]


async def test_what_is_called_after_closing_is_refused(postgres_url: str) -> None:
    store = await PostgresJobs.open(postgres_url, namespace="closed")
    await asyncio.gather(store.aclose(), store.aclose())
    for call in (
        store.create(new_job(), []),
        store.apply([Note(job_id="j", kind="retry")]),
        store.get("j"),
        store.outbox.take(1),
    ):
        with pytest.raises(GroundplaneError) as caught:
            await call
        assert caught.value.code == "closed"
