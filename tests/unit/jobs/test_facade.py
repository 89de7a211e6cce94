"""What the façade adds to a driver: retries, and loops that outlive a failing store. Faults are made at the port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import Closed, InvalidArgument, ResourceExhausted, Unavailable
from groundplane.jobs import Jobs, JobState
from groundplane.jobs.conformance.subjects import ended, eventually, message, new_job, report, started
from groundplane.jobs.drivers.embedded import EmbeddedJobs
from groundplane.jobs.port import OutboxMessage

pytestmark = pytest.mark.anyio


class _Failing:
    """A real store whose methods raise what is queued for them, before the call or after it took effect."""

    def __init__(self, driver: EmbeddedJobs) -> None:
        self._driver = driver
        self.before: dict[str, list[Exception]] = {}
        self.after: dict[str, list[Exception]] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        if name not in ("create", "get", "apply", "events", "sweep"):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if self.before.get(name):
                raise self.before[name].pop(0)
            value = await found(*args, **kwargs)
            if self.after.get(name):
                raise self.after[name].pop(0)
            return value

        return call


@pytest.fixture
async def failing(tmp_path: Path) -> _Failing:
    return _Failing(await EmbeddedJobs.open(tmp_path / "plane.db", namespace="unit"))


@pytest.fixture
async def jobs(failing: _Failing) -> AsyncIterator[Jobs]:
    opened = Jobs(failing)  # type: ignore[arg-type]
    yield opened
    await opened.aclose()


def _away(times: int) -> list[Exception]:
    return [Unavailable("store: away", reason="database_busy") for _ in range(times)]


async def test_a_store_that_is_away_for_a_moment_is_asked_again(failing: _Failing, jobs: Jobs) -> None:
    job_id = await started(jobs)
    failing.before = {"get": _away(2), "apply": _away(1), "events": _away(2)}
    assert (await jobs.get(job_id)).job_id == job_id
    assert (await jobs.apply(report(job_id, 0, 50)))[0].applied
    assert len((await jobs.events(0, job_id)).items) == 2
    assert jobs.statistics().retries == 5


async def test_a_store_that_stays_away_is_unavailable_after_three_attempts(failing: _Failing, jobs: Jobs) -> None:
    failing.before = {"get": _away(9)}
    with pytest.raises(Unavailable, match="away"):
        await jobs.get("j")
    assert failing.calls == ["get"] * 3


@pytest.mark.req("JOB-02.1")
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_creation_whose_answer_was_lost_makes_one_job(failing: _Failing, jobs: Jobs, moment: str) -> None:
    setattr(failing, moment, {"create": _away(1)})
    new = new_job()
    created = await jobs.create(new, [message("e")])
    assert (created.created, created.job.job_id) == (True, new.job_id)
    assert len(await jobs.driver.outbox.take(10)) == 1


async def test_other_errors_are_not_tried_again(failing: _Failing, jobs: Jobs) -> None:
    failing.before = {"get": [InvalidArgument("x: no")]}
    with pytest.raises(InvalidArgument):
        await jobs.get("j")
    assert failing.calls == ["get"]


@pytest.mark.req("JOB-04.2")
async def test_the_sweeper_outlives_a_store_that_cannot_be_written(failing: _Failing, jobs: Jobs) -> None:
    job_id = await started(jobs, deadline_at=1)
    failing.before = {"sweep": [ResourceExhausted("disk: full", reason="disk_full"), *_away(4)]}
    sweeper = asyncio.create_task(jobs.run_sweeper(0.02))
    assert (await ended(jobs, job_id)).state is JobState.TIMED_OUT
    sweeper.cancel()
    await asyncio.gather(sweeper, return_exceptions=True)


async def test_a_follower_outlives_a_reader_that_is_interrupted(failing: _Failing, jobs: Jobs) -> None:
    job_id = await started(jobs)
    waiting = asyncio.create_task(jobs.wait_finished(job_id, 20))
    await eventually(lambda: _followed(jobs))
    failing.before = {"events": _away(2)}
    await jobs.cancel(job_id)
    job = await waiting
    assert job is not None
    assert job.state is JobState.CANCELLED


async def test_a_relay_whose_queues_were_closed_ends_and_keeps_the_message(jobs: Jobs) -> None:
    async def closed(messages: list[OutboxMessage]) -> None:
        raise Closed("queues: closed")

    await jobs.create(new_job(), [message("e")])
    with pytest.raises(Closed):
        await jobs.run_relay(closed)
    assert (await jobs.sweep()).outbox == 1


async def _followed(jobs: Jobs) -> bool:
    return jobs.statistics().followers > 0
