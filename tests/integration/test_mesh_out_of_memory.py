"""A worker that the kernel kills for want of memory: what is told of it, what it costs, and who is unharmed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cgroups import MemoryGroup, memory_group
from groundplane.core.retry import RetryPolicy
from groundplane.mesh import launch
from groundplane.mesh.spec import ActorSpec
from integration.mesh_lab import Lab, eventually, lines

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

MIB = 1024 * 1024
LIMIT = 160 * MIB
ACTOR = ActorSpec(name="a", handler="handlers:hungry", concurrency=2, retry=RetryPolicy(base_s=0.01))
_UNDER_A_LIMIT = (
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with Lab.open(tmp_path / "plane") as lab:
        yield lab


@pytest.fixture
async def group(lab: Lab) -> AsyncIterator[MemoryGroup]:
    """A cgroup with the runtime of two workers in it; sidecar and ends are outside."""
    with memory_group(LIMIT) as group:
        runtime = launch.runtime(ACTOR, lab.place)
        await _start(lab, msgspec.structs.replace(runtime, arguments=group.inside(runtime.arguments)))
        yield group
        await asyncio.to_thread(lab.end)


async def _start(lab: Lab, runtime: launch.Command) -> None:
    await lab.declare(ACTOR)
    for command in (runtime, launch.sidecar(ACTOR, lab.place), launch.ends(lab.place)):
        lab.spawn(command)
        await lab.ready(command)


def _kill_children(pid: int) -> None:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.req("MESH-08", "MESH-06")
async def test_a_worker_killed_by_the_kernel_is_an_oom_error_after_one_retry_and_harms_no_other(
    lab: Lab, group: MemoryGroup, tmp_path: Path
) -> None:
    supervisor = lab.processes["a.runtime"].pid
    gate = tmp_path / "gate"
    waiting = await lab.send(["a"], {"wait_for": str(gate)})

    async def begun() -> bool:
        return (await lab.queues.depth("a")).in_flight == 1

    await eventually(begun)
    hungry = await lab.send(["a"], {"bytes": 3 * LIMIT, "hungry_until": 9})
    outcome = await lab.outcome(hungry.id)
    error = outcome["error"]
    assert (error["reason"], error["code"]) == ("oom_error", "resource_exhausted")
    assert (error["details"]["attempts"], error["details"]["final"]) == (2, "max_retries_exhausted")
    assert outcome["payload"] == {"bytes": 3 * LIMIT, "hungry_until": 9}
    assert group.kills() == 2
    gate.touch()
    unharmed = await lab.outcome(waiting.id)
    assert (unharmed["status"], unharmed["payload"]["attempt"]) == ("succeeded", 1)
    after = await lab.outcome((await lab.send(["a"], {})).id)
    assert after["status"] == "succeeded"
    assert lab.processes["a.runtime"].poll() is None
    assert lab.processes["a.runtime"].pid == supervisor


@pytest.mark.req("MESH-08")
async def test_what_is_too_much_once_succeeds_at_the_second_attempt(lab: Lab, group: MemoryGroup) -> None:
    outcome = await lab.outcome((await lab.send(["a"], {"bytes": 3 * LIMIT, "hungry_until": 1})).id)
    assert (outcome["status"], outcome["payload"]["attempt"]) == ("succeeded", 2)
    assert group.kills() == 1
    assert "oom_error" in lab.log("a.runtime")


@pytest.mark.req("MESH-08")
async def test_a_worker_that_somebody_else_kills_in_the_group_is_no_oom_error(
    lab: Lab, group: MemoryGroup, tmp_path: Path
) -> None:
    gate, runs = tmp_path / "gate", tmp_path / "runs"
    sent = await lab.send(["a"], {"file": str(runs), "wait_for": str(gate)})
    supervisor = lab.processes["a.runtime"].pid
    await lines(runs, 1)
    _kill_children(supervisor)
    gate.touch()
    outcome = await lab.outcome(sent.id)
    assert (outcome["status"], outcome["payload"]["attempt"]) == ("succeeded", 2)
    assert group.kills() == 0
    assert "runtime_crashed" in lab.log("a.runtime")
    assert "oom_error" not in lab.log("a.runtime")


@pytest.mark.req("MESH-06", "MESH-05.3")
async def test_a_limit_of_the_address_space_is_a_memory_error_in_a_worker_that_lives_on(lab: Lab) -> None:
    runtime = launch.runtime(ACTOR, lab.place)
    limited = [sys.executable, "-c", _UNDER_A_LIMIT, str(1024 * MIB), *runtime.arguments]
    await _start(lab, msgspec.structs.replace(runtime, arguments=limited))
    outcome = await lab.outcome((await lab.send(["a"], {"bytes": 4096 * MIB, "hungry_until": 9})).id)
    error = outcome["error"]
    assert (error["reason"], error["type"], error["details"]["attempts"]) == ("oom_error", "MemoryError", 2)
    assert "bytearray(payload" in error["traceback"]  # it was raised, and nobody was killed
    after = await lab.outcome((await lab.send(["a"], {})).id)
    assert after["status"] == "succeeded"
    assert "signal" not in lab.log("a.runtime")
