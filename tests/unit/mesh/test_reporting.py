"""Reports to the job store: in batches, each with its own outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from groundplane.core.envelope import Envelope
from groundplane.core.errors import GroundplaneError
from groundplane.jobs import Jobs
from groundplane.jobs.conformance.subjects import eventually, history, kinds, report, started
from groundplane.jobs.port import Change, Finish, JobState, Note, Outcome
from groundplane.mesh.reporting import JobReporter
from groundplane.mesh.routing import Output, Result, Router
from groundplane.mesh.settling import Settler
from groundplane.mesh.sidecar import calls
from groundplane.mesh.sidecar.calls import Telling
from groundplane.mesh.sidecar.handling import Handling, Parts
from groundplane.mesh.spec import ActorSpec
from groundplane.queues import Queues, QueueSpec
from groundplane.queues.port import Ack, OutgoingMessage
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.metrics import ActorMetrics, CustomMetrics, new_registry

pytestmark = pytest.mark.anyio


@pytest.mark.req("JOB-01.2")
async def test_in_a_batch_each_gets_the_outcomes_of_its_own_changes(tmp_path: Path) -> None:
    async with Jobs.open(state=tmp_path) as jobs:
        one, two, three = [await started(jobs) for _ in range(3)]
        await jobs.cancel(two)
        reporter = JobReporter(jobs)
        outcomes = await asyncio.gather(
            reporter.apply([report(one, 0, 10)]),
            reporter.apply([report(one, 0, 100), Note(job_id=one, kind="retry")]),
            reporter.apply([report(two, 0, 10)]),
            reporter.apply([Finish(job_id=three, envelope_id="root", result=1), Note(job_id=three, kind="late")]),
            reporter.apply([]),
        )
        await reporter.aclose()
        states = [[outcome.state for outcome in part] for part in outcomes]
        running, cancelled, succeeded = JobState.RUNNING, JobState.CANCELLED, JobState.SUCCEEDED
        assert states == [[running], [running, running], [cancelled], [succeeded, succeeded], []]
        assert (await kinds(jobs, one))[1:] == ["progress", "progress", "retry"]


async def test_what_was_posted_and_lost_is_counted(tmp_path: Path) -> None:
    lost: list[int] = []
    async with Jobs.open(state=tmp_path) as jobs:
        job_id = await started(jobs)
        reporter = JobReporter(jobs, lost=lost.append)
        reporter.post([Note(job_id=job_id, kind="retry")])
        await reporter.aclose()
        assert (await kinds(jobs, job_id))[1:] == ["retry"]
    reporter.post([Note(job_id=job_id, kind="retry")])
    with pytest.raises(GroundplaneError):
        await reporter.apply([Note(job_id=job_id, kind="retry")])

    async def counted() -> bool:
        return lost == [1]

    await eventually(counted)


@pytest.mark.req("JOB-03.1")
async def test_what_a_settlement_carries_comes_after_what_was_handed_over_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Queues.open(state=tmp_path) as queues, Jobs.open(state=tmp_path) as jobs:
        job_id = await started(jobs)
        await queues.declare(QueueSpec(name="a"))
        await queues.send(OutgoingMessage(queue="a", id="m", payload=b""))
        reporter = JobReporter(jobs, queues=queues)
        go, apply = asyncio.Event(), jobs.apply

        async def slow(*changes: Change) -> list[Outcome]:
            await go.wait()
            return await apply(*changes)

        monkeypatch.setattr(jobs, "apply", slow)
        async with queues.consume("a") as consumer:
            (delivery,) = await consumer.receive(1, 5)
            reporter.post([Note(job_id=job_id, kind="first")])
            waiting = asyncio.create_task(reporter.carried([Note(job_id=job_id, kind="second")]))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            go.set()
            carried = await waiting
            assert carried is not None
            await consumer.settle([Ack(delivery)], (), [carried])
        assert (await kinds(jobs, job_id))[1:] == ["first", "second"]
        assert await JobReporter(jobs).carried([Note(job_id=job_id, kind="third")]) is None


async def test_what_is_not_told_yet_is_told_in_a_moment_or_by_whoever_takes_it(tmp_path: Path) -> None:
    async with Jobs.open(state=tmp_path) as jobs:
        job_id = await started(jobs)
        reporter = JobReporter(jobs)
        telling = Telling(reporter)

        def note(kind: str) -> list[Change]:
            return [Note(job_id=job_id, kind=kind)]

        telling.add(note("a"))
        telling.add(note("b"))
        assert telling.take() == [*note("a"), *note("b")]
        assert telling.take() == []
        telling.add(note("c"))
        telling.post(note("d"))
        telling.add(note("e"))

        async def told() -> bool:
            return (await kinds(jobs, job_id))[1:] == ["c", "d", "e"]

        await eventually(told)
        await reporter.aclose()


class _Watched:
    """Tells which jobs were looked at, and how often somebody listened."""

    def __init__(self, *ended: str) -> None:
        self.ended = set(ended)
        self.looks: list[str] = []
        self.listened = 0

    async def state(self, job_id: str, token: str = "") -> JobState:
        self.looks.append(job_id)
        return JobState.CANCELLED if job_id in self.ended else JobState.RUNNING

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[Any]:
        self.listened += 1
        yield SimpleNamespace(wait=asyncio.sleep)


@pytest.mark.req("MESH-20.2")
async def test_only_calls_that_last_are_looked_at_and_without_them_nobody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "LOOK_EVERY_S", 0.02)
    active, reporter = calls.Active(), _Watched("lasting")

    def watch(job_id: str) -> calls.CallWatch:
        registry = new_registry()
        metrics, custom = ActorMetrics(registry, "a"), CustomMetrics(registry, "a")
        envelope = Envelope.new(["a"], job_id=job_id)
        return calls.CallWatch(
            Router(ActorSpec(name="a", handler="m:f")), envelope, Telling(None), custom, metrics, None
        )

    delivery: Any = object()
    watching = asyncio.create_task(active.watch_jobs(reporter, 0.01))  # type: ignore[arg-type]
    for _ in range(50):
        with active.calling(delivery, watch("quick")):
            await asyncio.sleep(0)
    lasting = watch("lasting")

    async def cancelled() -> bool:
        return lasting.ticket.reason == "cancelled"

    with active.calling(delivery, lasting):
        await eventually(cancelled)
    assert (set(reporter.looks), reporter.listened) == ({"lasting"}, 1)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.req("MESH-20.1", "JOB-03.1")
async def test_what_a_settlement_that_failed_should_have_told_is_told_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "TELL_AFTER_S", 3600.0)
    registry = new_registry()
    result = Result([Output({"x": 2})])

    async def call(request: object, watch: object, ticket: object) -> Result:
        return result

    async with Queues.open(state=tmp_path) as queues, Jobs.open(state=tmp_path) as jobs:
        job_id = await started(jobs)
        envelope = Envelope.new(["a", "nobody"], {"x": 1}, job_id=job_id)
        await queues.declare(QueueSpec(name="a"), QueueSpec(name="error-end"))
        await queues.send(OutgoingMessage(queue="a", id=envelope.id, payload=envelope.to_bytes()))
        async with queues.consume("a") as consumer:
            parts = Parts(
                router=Router(ActorSpec(name="a", handler="m:f")),
                client=SimpleNamespace(call=call),  # type: ignore[arg-type]
                settler=Settler(consumer),
                active=calls.Active(),
                metrics=ActorMetrics(registry, "a"),
                custom=CustomMetrics(registry, "a"),
                log=get_logger("test"),
                reporter=JobReporter(jobs, queues=queues),
            )
            (delivery,) = await consumer.receive(1, 5)
            await Handling(parts, asyncio.Semaphore()).handle(delivery)
        told = [event.data.get("status") for event in await history(jobs, job_id) if event.kind == "progress"]
        assert told == ["received", "processing"]
        depth = await queues.depth("a")
        assert (depth.dead, (await queues.depth("error-end")).ready) == (1, 1)
