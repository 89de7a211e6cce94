"""Reports to the job store: in batches, each with its own outcomes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from groundplane.core.errors import GroundplaneError
from groundplane.jobs import Jobs
from groundplane.jobs.conformance.subjects import eventually, kinds, report, started
from groundplane.jobs.port import Finish, JobState, Note
from groundplane.mesh.reporting import JobReporter

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
