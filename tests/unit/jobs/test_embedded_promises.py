"""What the embedded store promises beyond the port: syncs before answers, ids after a boot, one transaction with the
queues of the same file.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from groundplane.backends.sqlite import Database, Options, Transaction
from groundplane.core.errors import AlreadyExists, Conflict, FailedPrecondition, GroundplaneError, InvalidArgument
from groundplane.jobs import Jobs
from groundplane.jobs.conformance.subjects import message, new_job, report, started
from groundplane.jobs.drivers.embedded import MIGRATIONS, EmbeddedJobs
from groundplane.jobs.port import Change, Control, Finish, JobState, Joined, Note, OutboxMessage, Split
from groundplane.queues import Consumer, Queues, QueueSpec
from groundplane.queues.port import Ack, Delivery, OutgoingMessage

pytestmark = pytest.mark.anyio


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def queues(tmp_path: Path, stack: AsyncExitStack) -> Queues:
    opened = await stack.enter_async_context(Queues.open(state=tmp_path))
    await opened.declare(QueueSpec(name="first"), QueueSpec(name="full", depth_max=1))
    return opened


@pytest.fixture
async def jobs(tmp_path: Path, stack: AsyncExitStack) -> Jobs:
    return await stack.enter_async_context(Jobs.open(state=tmp_path))


async def ready(queues: Queues, name: str = "first") -> int:
    return (await queues.depth(name)).ready


async def waiting(jobs: Jobs) -> int:
    return (await jobs.sweep()).outbox


def syncs(jobs: Jobs) -> int:
    assert isinstance(jobs.driver, EmbeddedJobs)
    return jobs.driver.native.statistics().syncs


@pytest.mark.req("JOB-02.1")
async def test_in_one_file_a_job_and_its_messages_are_one_commit_and_need_no_relay(jobs: Jobs, queues: Queues) -> None:
    assert jobs.share_transactions(queues.driver)
    new, sent = new_job(), [message("e1"), message("e2")]
    assert isinstance(jobs.driver, EmbeddedJobs)
    before = jobs.driver.native.statistics()
    created = await jobs.create(new, sent)
    after = jobs.driver.native.statistics()
    assert (after.commits - before.commits, after.syncs - before.syncs) == (1, 1)
    assert (created.created, created.sent, created.taken) == (True, True, [])
    assert await waiting(jobs) == 0
    async with queues.consume("first", max_in_flight=9) as consumer:
        got = await consumer.receive(9, 5)
    assert [(one.id, one.payload, one.headers) for one in got] == [(one.id, one.payload, one.headers) for one in sent]


@pytest.mark.req("JOB-02.1", "JOB-06.1")
async def test_what_makes_no_job_sends_nothing(jobs: Jobs, queues: Queues) -> None:
    jobs.share_transactions(queues.driver)
    new = new_job(idempotency_key="k", owner="o")
    await jobs.create(new, [message("e1")])
    again = await jobs.create(new_job(idempotency_key="k", owner="o"), [message("e2")])
    assert (again.created, again.job.job_id) == (False, new.job_id)
    with pytest.raises(Conflict):
        await jobs.create(new_job(idempotency_key="k", owner="o", arguments_hash="other"), [message("e3")])
    with pytest.raises(AlreadyExists):
        await jobs.create(new_job(job_id=new.job_id), [message("e4")])
    assert (await ready(queues), await waiting(jobs)) == (1, 0)


@pytest.mark.req("JOB-02.2")
@pytest.mark.parametrize("queue", ["missing", "full"])
async def test_what_its_queue_does_not_take_waits_in_the_outbox_with_the_job_and_the_others(
    jobs: Jobs, queues: Queues, queue: str
) -> None:
    jobs.share_transactions(queues.driver)
    await jobs.create(new_job(), [message("e0", "full")])
    created = await jobs.create(new_job(), [message("e1"), message("e2", queue)])
    assert (created.created, created.sent) == (True, False)
    assert [one.id for _, one in await jobs.driver.outbox.take(9)] == ["e1", "e2"]
    assert await ready(queues) == 0  # both or none: the relay sends them together


class _Faulty:
    """The queues of the file, which break after they took the messages."""

    def __init__(self, native: Database, driver: object) -> None:
        self.native = native
        self._driver = driver

    def send_within(self, tx: Transaction, messages: Sequence[OutboxMessage]) -> None:
        self._driver.send_within(tx, messages)  # type: ignore[attr-defined]
        raise InvalidArgument("payload: too large")


@pytest.mark.req("JOB-02.1")
async def test_a_send_that_fails_takes_the_job_with_it(jobs: Jobs, queues: Queues) -> None:
    assert isinstance(jobs.driver, EmbeddedJobs)
    assert jobs.share_transactions(_Faulty(jobs.driver.native, queues.driver))
    new = new_job()
    with pytest.raises(InvalidArgument):
        await jobs.create(new, [message("e1")])
    with pytest.raises(GroundplaneError, match=new.job_id):
        await jobs.get(new.job_id)
    assert (await ready(queues), await waiting(jobs)) == (0, 0)


@pytest.mark.req("JOB-02.2")
async def test_queues_of_another_file_get_their_messages_through_the_outbox(
    jobs: Jobs, tmp_path: Path, stack: AsyncExitStack
) -> None:
    elsewhere = await stack.enter_async_context(Queues.open(state=tmp_path / "elsewhere"))
    await elsewhere.declare(QueueSpec(name="first"))
    assert not jobs.share_transactions(elsewhere.driver)
    assert await jobs.state("nobody") is None
    assert not (await jobs.create(new_job(), [message("e1")])).sent
    assert (await ready(elsewhere), await waiting(jobs)) == (0, 1)


def outgoing(name: str) -> OutgoingMessage:
    return OutgoingMessage(queue="next", id=name, payload=b"")


async def held(queues: Queues, stack: AsyncExitStack, count: int = 1) -> tuple[Consumer, list[Delivery]]:
    """So many deliveries of the queue `first`, and their consumer."""
    await queues.declare(QueueSpec(name="next"))
    await queues.send(*(OutgoingMessage(queue="first", id=f"{n}", payload=b"") for n in range(count)))
    consumer = await stack.enter_async_context(queues.consume("first"))
    return consumer, await consumer.receive(count, 5)


@pytest.mark.req("JOB-01.2", "QUEUE-02")
async def test_a_settlement_and_what_it_tells_the_job_are_one_commit(
    jobs: Jobs, queues: Queues, stack: AsyncExitStack
) -> None:
    assert jobs.share_transactions(queues.driver)
    assert isinstance(jobs.driver, EmbeddedJobs)
    job_id = await started(jobs)
    consumer, (delivery,) = await held(queues, stack)
    end = Finish(job_id=job_id, envelope_id="root", result=[1])
    changes: list[Change] = [report(job_id, 0, 10), report(job_id, 0, 100), end]
    before = jobs.driver.native.statistics()
    await consumer.settle([Ack(delivery)], [outgoing("e1")], [jobs.carried(*changes)])
    after = jobs.driver.native.statistics()
    assert (after.commits - before.commits, after.syncs - before.syncs) == (1, 1)
    job = await jobs.get(job_id)
    assert (job.state, job.result, await jobs.state(job_id)) == (JobState.SUCCEEDED, [1], JobState.SUCCEEDED)
    assert (await ready(queues), await ready(queues, "next")) == (0, 1)


@pytest.mark.req("JOB-01.2", "MESH-20.2")
async def test_what_comes_too_late_for_its_job_undoes_its_own_settlement_and_no_other(
    jobs: Jobs, queues: Queues, stack: AsyncExitStack
) -> None:
    jobs.share_transactions(queues.driver)
    ended, live = await started(jobs), await started(jobs)
    await jobs.cancel(ended)
    consumer, (one, two, three) = await held(queues, stack, 3)
    kinds = [event.kind for event in (await jobs.events(job_id=ended)).items]

    async def settle(delivery: Delivery, job_id: str) -> None:
        changes: list[Change] = [report(job_id, 0, 10), Note(job_id=job_id, kind="retry")]
        await consumer.settle([Ack(delivery)], [outgoing(delivery.id)], [jobs.carried(*changes)])

    outcomes = await asyncio.gather(settle(one, live), settle(two, ended), settle(three, live), return_exceptions=True)
    refused = outcomes[1]
    assert [outcomes[0], outcomes[2]] == [None, None]
    assert isinstance(refused, FailedPrecondition)
    assert (refused.reason, refused.details["state"]) == ("job_terminal", "cancelled")
    assert (await queues.depth("first")).in_flight == 1
    assert await ready(queues, "next") == 2
    with pytest.raises(FailedPrecondition, match="has ended"):
        await consumer.settle([Ack(two)], [outgoing("2")], [jobs.carried(report(ended, 0, 100))])
    assert await ready(queues, "next") == 2
    assert [event.kind for event in (await jobs.events(job_id=ended)).items] == kinds
    await consumer.settle([Ack(two)], (), [jobs.carried(Note(job_id=ended, kind="late_outcome"), of_live=False)])
    assert (await queues.depth("first")).in_flight == 0


@pytest.mark.req("JOB-01.2", "MESH-16.1")
async def test_an_outcome_that_was_told_before_it_was_persisted_is_filed_by_its_own_envelope_alone(jobs: Jobs) -> None:
    job_id = await started(jobs)

    async def finish(envelope_id: str, key: str | None) -> str | None:
        await jobs.apply(Finish(job_id=job_id, envelope_id=envelope_id, result=1, result_key=key))
        return (await jobs.get(job_id)).result_key

    assert await finish("root", None) is None
    assert await finish("another", "theirs") is None
    assert await finish("root", "results/1") == "results/1"
    assert await finish("root", "results/2") == "results/1"


@pytest.mark.req("JOB-12.1", "MESH-16.1")
@pytest.mark.parametrize("joined", [False, True])
async def test_the_outcome_of_a_branch_is_filed_as_that_of_its_job_only_where_it_stands_for_the_job(
    jobs: Jobs, joined: bool
) -> None:
    job_id, last = await started(jobs), "joined" if joined else "b"
    await jobs.apply(Split(job_id=job_id, envelope_id="root", children=["a", "b"]))
    await jobs.apply(Finish(job_id=job_id, envelope_id="a", result=1))
    if joined:
        await jobs.apply(Joined(job_id=job_id, parent_id="root", envelope_id=last))
    await jobs.apply(Finish(job_id=job_id, envelope_id=last, result=2))
    assert (await jobs.get(job_id)).result == (2 if joined else [1, 2])
    await jobs.apply(Finish(job_id=job_id, envelope_id=last, result=2, result_key="results/last"))
    assert (await jobs.get(job_id)).result_key == ("results/last" if joined else None)


@pytest.mark.req("JOB-01.2")
@pytest.mark.parametrize("kind", ["finish", "control", "split", "note", "with progress"])
async def test_every_change_but_progress_is_synced_when_it_is_told(jobs: Jobs, kind: str) -> None:
    job_id = await started(jobs)
    finish = Finish(job_id=job_id, envelope_id="root", result=1)
    changes: dict[str, list[Change]] = {
        "finish": [finish],
        "control": [Control(job_id=job_id, action="cancel")],
        "split": [Split(job_id=job_id, envelope_id="root", children=["a", "b"])],
        "note": [Note(job_id=job_id, kind="retry")],
        "with progress": [report(job_id, 1, 100), finish],
    }
    before = syncs(jobs)
    outcomes = await jobs.apply(*changes[kind])
    assert all(one.applied for one in outcomes)
    assert syncs(jobs) > before


@pytest.mark.req("JOB-09.2")
async def test_the_bell_of_ends_is_rung_by_ends_alone(tmp_path: Path) -> None:
    unpolled = Options(poll_s=3600.0)  # the safety poll would ring it all the same, a moment later
    async with Database.open(tmp_path / "plane.db", [MIGRATIONS], options=unpolled), Jobs.open(state=tmp_path) as jobs:
        job_id = await started(jobs)
        async with jobs.watch("ends") as ends, jobs.watch("events") as events:
            await jobs.apply(report(job_id, 0, 50), Note(job_id=job_id, kind="retry"))
            assert await events.wait(5)
            assert not await ends.wait(0.05)
            await jobs.apply(Finish(job_id=job_id, envelope_id="root", result=1))
            assert await ends.wait(5)


@pytest.mark.req("JOB-03.1")
async def test_who_follows_is_woken_by_what_is_synced(tmp_path: Path) -> None:
    go, entered = threading.Event(), threading.Event()

    def sync(fd: int) -> None:
        entered.set()
        assert go.wait(20)

    go.set()
    held = Options(poll_s=3600.0, sync=sync)
    async with Database.open(tmp_path / "plane.db", [MIGRATIONS], options=held), Jobs.open(state=tmp_path) as jobs:
        job_id = await started(jobs)
        async with jobs.watch("events") as events:
            await events.wait(0.05)  # what was rung for the new job
            go.clear()
            entered.clear()
            telling = asyncio.create_task(jobs.apply(Note(job_id=job_id, kind="retry")))
            assert await asyncio.to_thread(entered.wait, 10)
            assert not await events.wait(0.05)
            go.set()
            assert await events.wait(5)
            await telling


@pytest.mark.req("JOB-03.1")
async def test_ids_go_on_after_a_boot_though_no_event_was_ever_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ids(boot: str, jobs_made: int) -> list[int]:
        monkeypatch.setattr("groundplane.jobs.drivers.embedded.boot_id", lambda: boot)
        async with Jobs.open(state=tmp_path) as opened:
            for _ in range(jobs_made):
                await opened.create(new_job())
            return [one.id for one in (await opened.events()).items]

    assert await ids("one", 0) == []  # what was written was lost with the power
    (second,) = await ids("two", 1)
    assert second > 10_000
    assert await ids("two", 1) == [second, second + 1]
    *_, third = await ids("three", 1)
    assert third > second + 10_000
