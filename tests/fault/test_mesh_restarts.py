"""Runtime, sidecar, both, the broker and the database go away in the middle of a message, and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from groundplane.core.retry import RetryPolicy
from groundplane.jobs.port import JobState
from groundplane.mesh import launch
from groundplane.mesh.spec import ActorSpec
from groundplane.testing.servers.contract import Running
from integration.mesh_lab import Lab, eventually, lines
from stacks import Stack, on_servers

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.integration, pytest.mark.req("MESH-17")]

PAYS = ActorSpec(name="pays", handler="handlers:once", retry=RetryPolicy(base_s=0.05))
NOTES = ActorSpec(name="notes", handler="handlers:append", retry=RetryPolicy(base_s=0.05))


class Scene:
    """A job in the middle of its first hop: the effect has happened, and the handler waits for the gate."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.effects = folder / "effects"
        self.gate = folder / "gate"
        self.runs = folder / "runs"
        self.job_id = ""

    async def begin(self) -> None:
        await self.lab.start(PAYS, NOTES)
        payload = {"file": str(self.effects), "key": "order-17", "wait_for": str(self.gate), "runs": str(self.runs)}
        self.job_id = await self.lab.job(["pays", "notes"], payload)
        await lines(self.effects, 1)

    async def succeeds(self) -> None:
        """Nothing was lost, the effect was done once, the next actor ran once, and the queues are empty."""
        self.gate.touch()
        job = await self.lab.finished(self.job_id, 60.0)
        assert job.state is JobState.SUCCEEDED, job.error
        assert job.result["receipt"] == 17
        await self.lab.idle("pays", "notes", "happy-end", "error-end")
        written = await lines(self.effects, 2)
        assert written[0] == "effect", written
        assert len(written) == 2, written  # the effect, and one line of the next actor
        assert [(await self.lab.queues.depth(name)).dead for name in ("pays", "notes")] == [0, 0]
        assert len(await self.lab.outcomes(bool)) == 1


@pytest.fixture
async def scene(stack: Stack, tmp_path: Path) -> AsyncIterator[Scene]:
    async with Lab.open(stack) as lab:
        yield Scene(lab, tmp_path)


@pytest.mark.parametrize("gone", [["pays.runtime"], ["pays.sidecar"], ["pays.runtime", "pays.sidecar"]])
async def test_what_is_killed_after_the_effect_was_recorded_does_it_once(scene: Scene, gone: list[str]) -> None:
    scene.gate.touch()
    lab = scene.lab
    await lab.declare(PAYS, NOTES)
    commands = {one.name: one for one in (launch.runtime(PAYS, lab.place), launch.sidecar(PAYS, lab.place))}
    for command in (*commands.values(), launch.runtime(NOTES, lab.place), launch.sidecar(NOTES, lab.place)):
        if command.name in gone:
            continue
        lab.spawn(command)
    lab.spawn(launch.ends(lab.place))
    doomed = {"pays.sidecar": {"GROUNDPLANE_FAILPOINTS": "handled=kill@1"}, "pays.runtime": {}}
    for name in gone:
        lab.spawn(commands[name], **doomed[name])
    payload = {"file": str(scene.effects), "key": "order-17", "pay_below": 2 if "pays.runtime" in gone else 0}
    scene.job_id = await lab.job(["pays", "notes"], payload)
    await lines(scene.effects, 1)
    if "pays.sidecar" in gone:
        assert await asyncio.to_thread(lab.processes["pays.sidecar"].wait, 20) == -9
    for name in gone:
        lab.kill(name)
        commands[name].ready_file.unlink(missing_ok=True)
        lab.spawn(commands[name])
    await scene.succeeds()


@pytest.fixture
def own_stack(
    own_server: Callable[..., Running], request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Stack, dict[str, Running]]:
    """Servers, of which broker and database belong to this test."""
    servers = {name: own_server(name) for name in ("rabbitmq", "postgres")}
    s3 = request.getfixturevalue("s3_url")
    return on_servers(
        tmp_path / "s", rabbitmq=servers["rabbitmq"].url, postgres=servers["postgres"].url, s3=s3
    ), servers


@pytest.mark.parametrize("opens", ["while it is away", "when it is back"])
@pytest.mark.parametrize("server", ["rabbitmq", "postgres"])
async def test_a_server_that_is_killed_in_the_middle_of_a_handler_costs_no_effect_and_no_message(
    own_stack: tuple[Stack, dict[str, Running]], tmp_path: Path, server: str, opens: str
) -> None:
    stack, servers = own_stack
    async with Lab.open(stack) as lab:
        scene = Scene(lab, tmp_path)
        await scene.begin()
        await asyncio.to_thread(servers[server].kill)
        if opens == "while it is away":
            scene.gate.touch()
            await _troubled(lab, "pays")
        await asyncio.to_thread(servers[server].start)
        await scene.succeeds()
        assert await lines(scene.runs, 1) == ["1"]  # its outcome waited; what the broker handed out again waited for it


async def _troubled(lab: Lab, actor: str) -> None:
    """Wait until the sidecar has seen that what it needs is away."""

    async def seen() -> bool:
        return "failed" in lab.log(f"{actor}.sidecar") or "lost" in lab.log(f"{actor}.sidecar")

    try:
        await eventually(seen, 5.0)
    except TimeoutError:
        return  # it keeps trying without a word


@pytest.mark.req("MESH-12")
@pytest.mark.parametrize("window", ["child_sent", "before_ack"])
async def test_on_servers_a_hop_that_was_sent_is_not_run_again_and_one_that_was_recorded_neither(
    tmp_path: Path, rabbitmq_url: str, postgres_url: str, s3_url: str, window: str
) -> None:
    stack = on_servers(tmp_path / "state", rabbitmq=rabbitmq_url, postgres=postgres_url, s3=s3_url)
    first, second = (
        ActorSpec(name="first", handler="handlers:append"),
        ActorSpec(name="second", handler="handlers:append"),
    )
    async with Lab.open(stack) as lab:
        await lab.declare(first, second)
        for spec in (first, second):
            lab.spawn(launch.runtime(spec, lab.place))
        lab.spawn(launch.sidecar(second, lab.place))
        lab.spawn(launch.ends(lab.place))
        command = launch.sidecar(first, lab.place)
        doomed = lab.spawn(command, GROUNDPLANE_FAILPOINTS=f"{window}=kill@1")
        calls = tmp_path / "calls"
        sent = await lab.send(["first", "second"], {"file": str(calls), "name": "x"})
        assert await asyncio.to_thread(doomed.wait, 20) == -9
        lab.spawn(command)
        who = "second" if window == "child_sent" else "first"

        async def dropped() -> bool:
            return "repeat_dropped" in lab.log(f"{who}.sidecar")

        await eventually(dropped)
        await lab.idle("first", "second", "happy-end")
        # the first actor runs again where its output was sent and nothing recorded; the second one never does
        runs = 2 if window == "child_sent" else 1
        assert len(await lines(calls, runs + 1)) == runs + 1
        assert [one["id"] for one in await lab.outcomes(bool)] == [sent.id]
