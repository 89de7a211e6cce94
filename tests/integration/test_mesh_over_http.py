"""Sidecar and end actors that do not reach the job store report to a served gateway, with the job's token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.core.secrets import Secret
from groundplane.jobs.port import JobState
from groundplane.mesh import launch
from groundplane.mesh.spec import ActorSpec, Limits
from groundplane.mesh.start import queue_specs, start_job
from integration.mesh_lab import Lab, lines
from served_gateway import House, house, tool
from stacks import Stack

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

DOUBLE = ActorSpec(name="double", handler="handlers:double")
FIVE = ActorSpec(name="five", handler="handlers:add_five")
BROKEN = ActorSpec(name="broken", handler="handlers:fail")
WAITS = ActorSpec(name="waits", handler="handlers:append")


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[tuple[House, Lab]]:
    async with house(tmp_path, tool("t", "double", "five")) as one:
        lab = Lab(Stack("embedded", tmp_path), one, Limits())
        lab.place = launch.Place(state=tmp_path, jobs=Secret(""), gateway_url=one.url)
        (tmp_path / "run").mkdir(exist_ok=True)
        try:
            yield one, lab
        finally:
            lab.end()


async def _begin(lab: Lab, *specs: ActorSpec) -> None:
    await lab.queues.declare(*queue_specs(specs))
    await lab.start(*specs)


@pytest.mark.req("GATE-07.1", "GATE-07.4")
async def test_progress_and_result_reach_the_job_through_the_gateway(mesh: tuple[House, Lab]) -> None:
    _, lab = mesh
    await _begin(lab, DOUBLE, FIVE)
    created = await start_job(lab.jobs, tool("t", "double", "five"), {"value": 10})
    job = await lab.finished(created.job.job_id)
    assert (job.state, job.result, job.progress) == (JobState.SUCCEEDED, {"value": 25}, 100.0)
    seen = [event.data.get("progress") for event in await lab.events(job.job_id)]
    assert {5.0, 25.0, 50.0, 55.0, 75.0, 100.0} <= set(seen)


@pytest.mark.req("GATE-07.3")
async def test_a_failure_reaches_the_job_through_the_gateway(mesh: tuple[House, Lab]) -> None:
    _, lab = mesh
    await _begin(lab, BROKEN)
    created = await start_job(lab.jobs, tool("t", "broken"), {"value": 10})
    job = await lab.finished(created.job.job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert "cannot handle" in job.error.message


@pytest.mark.req("MESH-20.2")
async def test_a_cancellation_reaches_the_handler_through_the_gateway(mesh: tuple[House, Lab], tmp_path: Path) -> None:
    _, lab = mesh
    await _begin(lab, WAITS)
    calls = tmp_path / "calls"
    arguments = {"file": str(calls), "wait_for": str(tmp_path / "never")}
    created = await start_job(lab.jobs, tool("t", "waits"), arguments)
    await lines(calls, 1)
    await lab.jobs.cancel(created.job.job_id, "not wanted")
    assert (await lines(calls, 2, timeout_s=10.0))[1] == "cancelled"
    await lab.idle("waits", "error-end", "happy-end")
    assert (await lab.queues.depth("waits")).dead == 0
