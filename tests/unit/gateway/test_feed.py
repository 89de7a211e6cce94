"""What waits for jobs in the gateway: it waits for the end of the job, and no longer than the gateway serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.gateway.feed import Feed
from groundplane.jobs import Jobs, JobState
from groundplane.jobs.conformance.subjects import eventually, report, started, succeed

pytestmark = pytest.mark.anyio


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    async with Jobs.open(state=tmp_path) as opened:
        yield opened


async def _followed(jobs: Jobs) -> bool:
    return jobs.statistics().followers > 0


async def test_a_call_waits_for_the_end_of_its_job_and_not_for_its_progress(jobs: Jobs) -> None:
    feed = Feed(jobs)
    job_id = await started(jobs)
    job = await jobs.get(job_id)
    waiting = asyncio.create_task(feed.wait_finished(job, 10))
    await eventually(lambda: _followed(jobs))
    with feed.subscribe(job, job.last_event_id) as everything:
        for weight in (10, 50):
            await jobs.apply(report(job_id, 0, weight))
            assert [event.kind for event in await everything.batch(10)] == ["progress"]
        assert not waiting.done()
    await succeed(jobs, job_id, 7)
    ended = await waiting
    assert (ended.state, ended.result) == (JobState.SUCCEEDED, 7)


async def test_a_call_that_has_waited_long_enough_gets_the_job_as_it_stands(jobs: Jobs) -> None:
    feed = Feed(jobs)
    job = await jobs.get(await started(jobs))
    assert await feed.wait_finished(job, 0.05) == job
    assert await feed.wait_finished(job, 0) == job


async def test_a_drain_ends_who_waits_and_who_comes_later(jobs: Jobs) -> None:
    feed = Feed(jobs)
    job = await jobs.get(await started(jobs))
    waiting = asyncio.create_task(feed.wait_finished(job, 60))
    await eventually(lambda: _followed(jobs))
    feed.drain()
    async with asyncio.timeout(5):
        assert await waiting == job
        assert await feed.wait_finished(job, 60) == job
        with feed.subscribe(job, job.last_event_id) as late:
            assert await late.batch() == []
