"""The suite of jobs on the embedded store, in both ways to run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundplane.core.ids import new_id
from groundplane.jobs import Jobs
from groundplane.jobs.conformance import JobConformance, OpenJobs
from groundplane.jobs.port import NewJob


class TestEmbeddedJobs(JobConformance):
    @pytest.fixture
    def open_jobs(self, tmp_path: Path) -> OpenJobs:
        return lambda: Jobs.open(state=tmp_path, namespace="conformance")


class TestEmbeddedJobsInline(JobConformance):
    @pytest.fixture
    def open_jobs(self, tmp_path: Path) -> OpenJobs:
        return lambda: Jobs.open(f"embedded://{tmp_path}/state", namespace="conformance", inline=True)


@pytest.mark.anyio
@pytest.mark.req("JOB-03.1")
async def test_ids_of_events_that_a_loss_of_power_may_have_taken_are_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def newest() -> int:
        async with Jobs.open(state=tmp_path) as jobs:
            await jobs.create(NewJob(job_id=new_id(), tool="t", route=["a"], arguments={}, arguments_hash="h"))
            return (await jobs.events(limit=0)).last_id

    assert [await newest(), await newest()] == [1, 2]
    monkeypatch.setattr("groundplane.jobs.drivers.embedded.boot_id", lambda: "another")
    after = await newest()
    assert after > 10_000  # more than anybody writes between two syncs
    assert await newest() == after + 1
