"""Killed in each window of a message's life, the mesh loses nothing and doubles nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from groundplane.jobs.port import JobState
from groundplane.mesh import launch
from groundplane.mesh.spec import ActorSpec
from integration.mesh_lab import Lab
from stacks import Stack

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.fault]

FAN = ActorSpec(name="many", handler="handlers:many")
PART = ActorSpec(name="part", handler="handlers:part")
SUM = ActorSpec(name="sum", handler="handlers:add_up", join=True)


@pytest.fixture
async def lab(stack: Stack) -> AsyncIterator[Lab]:
    async with Lab.open(stack) as lab:
        await lab.declare(FAN, PART, SUM)
        yield lab


async def _killed_once(lab: Lab, command: launch.Command, window: str) -> None:
    """Start a process that kills itself in the window, wait until it has, and start its successor."""
    process = lab.spawn(command, GROUNDPLANE_FAILPOINTS=f"{window}=kill@1")
    assert await asyncio.to_thread(process.wait, 20) == -9, lab.log(command.name)
    command.ready_file.unlink(missing_ok=True)
    lab.spawn(command)


@pytest.mark.req("MESH-17", "MESH-12.2")
@pytest.mark.parametrize("window", ["received", "handled", "before_ack", "child_sent"])
async def test_a_sidecar_killed_in_any_window_of_a_fan_out_doubles_no_child(lab: Lab, window: str) -> None:
    job_id = await lab.job(["many", "part"], {"count": 4})
    lab.spawn(launch.runtime(FAN, lab.place))
    lab.spawn(launch.runtime(PART, lab.place))
    await _killed_once(lab, launch.sidecar(FAN, lab.place), window)
    lab.spawn(launch.sidecar(PART, lab.place))
    lab.spawn(launch.ends(lab.place))
    job = await lab.finished(job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, [{"part": n} for n in range(4)])
    await lab.idle("many", "part", "happy-end", "error-end")
    found = await lab.outcomes(lambda all_of: len(all_of) >= 4)
    assert len(found) == 4


@pytest.mark.req("MESH-17", "MESH-13")
@pytest.mark.parametrize("window", ["joined", "before_ack", "handled"])
async def test_a_sidecar_killed_in_any_window_of_a_join_joins_once(lab: Lab, window: str) -> None:
    job_id = await lab.job(["many", "part", "sum"], {"count": 3})
    for spec in (FAN, PART, SUM):
        lab.spawn(launch.runtime(spec, lab.place))
    for spec in (FAN, PART):
        lab.spawn(launch.sidecar(spec, lab.place))
    lab.spawn(launch.ends(lab.place, joins=["sum"]))
    await _killed_once(lab, launch.sidecar(SUM, lab.place), window)
    job = await lab.finished(job_id)
    assert job.state is JobState.SUCCEEDED
    assert (job.result["items"], job.result["missing"]) == ([{"part": n} for n in range(3)], [])
    found = await lab.outcomes(lambda all_of: len(all_of) >= 1)
    assert len(found) == 1


@pytest.mark.req("MESH-17", "MESH-16.2")
@pytest.mark.parametrize("window", ["received", "final_report", "before_ack"])
async def test_the_ends_killed_in_any_window_persist_and_report_in_the_end(lab: Lab, window: str) -> None:
    job_id = await lab.job(["part"], {"index": 7})
    lab.spawn(launch.runtime(PART, lab.place))
    lab.spawn(launch.sidecar(PART, lab.place))
    await _killed_once(lab, launch.ends(lab.place), window)
    job = await lab.finished(job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, {"part": 7})
    await lab.idle("part", "happy-end")
    assert len(await lab.outcomes(lambda all_of: len(all_of) >= 1)) == 1
