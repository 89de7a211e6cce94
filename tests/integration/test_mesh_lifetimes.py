"""What the mesh promises when its processes are killed, stopped, started in any order, or asked to give up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.core.retry import RetryPolicy
from groundplane.jobs.port import JobState
from groundplane.mesh import launch
from groundplane.mesh.spec import ActorSpec, Limits
from integration.mesh_lab import Lab, eventually, lines
from pace import at_most
from stacks import Stack

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
async def lab(stack: Stack) -> AsyncIterator[Lab]:
    async with Lab.open(stack) as lab:
        yield lab


def spec(name: str = "a", handler: str = "handlers:append", **fields: object) -> ActorSpec:
    return ActorSpec(name=name, handler=handler, **fields)  # type: ignore[arg-type]


@pytest.mark.req("MESH-17", "MESH-06", "MESH-09.1")
async def test_a_killed_worker_costs_an_attempt_and_the_message_is_handled_again(lab: Lab, tmp_path: Path) -> None:
    await lab.start(spec(retry=RetryPolicy(base_s=0.01)))
    envelope = await lab.send(["a"], {"file": str(tmp_path / "calls"), "die_below": 3})
    outcome = await lab.outcome(envelope.id)
    assert outcome["status"] == "succeeded"
    assert [line.split()[0] for line in await lines(tmp_path / "calls", 3)] == ["1", "2", "3"]


@pytest.mark.req("MESH-06", "MESH-09.2")
async def test_a_worker_that_always_dies_ends_as_runtime_crashed_after_five_attempts(lab: Lab, tmp_path: Path) -> None:
    await lab.start(spec(retry=RetryPolicy(base_s=0.01)))
    envelope = await lab.send(["a"], {"file": str(tmp_path / "calls"), "die_below": 99})
    error = (await lab.outcome(envelope.id))["error"]
    assert (error["reason"], error["details"]["final"]) == ("runtime_crashed", "max_retries_exhausted")
    assert error["details"]["attempts"] == len(await lines(tmp_path / "calls", 5)) == 5


@pytest.mark.req("MESH-17")
async def test_a_killed_sidecar_loses_nothing_and_the_attempt_is_seen_raised(lab: Lab, tmp_path: Path) -> None:
    actor = spec()
    await lab.start(actor)
    gate, calls = tmp_path / "gate", tmp_path / "calls"
    envelope = await lab.send(["a"], {"file": str(calls), "wait_for": str(gate)})
    await lines(calls, 1)
    lab.kill("a.sidecar")
    command = launch.sidecar(actor, lab.place)
    command.ready_file.unlink(missing_ok=True)
    lab.spawn(command)
    await lines(calls, 2)
    gate.touch()
    assert (await lab.outcome(envelope.id))["status"] == "succeeded"
    assert [line.split()[0] for line in await lines(calls, 2) if line != "cancelled"] == ["1", "2"]


@pytest.mark.req("MESH-17")
async def test_a_killed_runtime_costs_an_attempt_and_its_successor_serves(lab: Lab, tmp_path: Path) -> None:
    actor = spec(retry=RetryPolicy(base_s=0.01))
    await lab.start(actor)
    gate, calls = tmp_path / "gate", tmp_path / "calls"
    envelope = await lab.send(["a"], {"file": str(calls), "wait_for": str(gate)})
    await lines(calls, 1)
    lab.kill("a.runtime")
    command = launch.runtime(actor, lab.place)
    command.ready_file.unlink(missing_ok=True)
    lab.spawn(command)
    await lines(calls, 2)
    gate.touch()
    assert (await lab.outcome(envelope.id))["status"] == "succeeded"


@pytest.mark.req("MESH-17")
async def test_while_the_runtime_is_away_messages_wait_without_costing_attempts(lab: Lab, tmp_path: Path) -> None:
    actor = spec()
    await lab.start(actor)
    lab.kill("a.runtime")
    await _disconnected(lab, actor)  # a call that is made before its worker is gone too is an attempt
    calls = tmp_path / "calls"
    sent = [await lab.send(["a"], {"file": str(calls), "name": str(n)}) for n in range(3)]

    async def taken() -> bool:
        return (await lab.queues.depth("a")).in_flight >= 2

    await eventually(taken)
    command = launch.runtime(actor, lab.place)
    command.ready_file.unlink(missing_ok=True)
    lab.spawn(command)
    for envelope in sent:
        assert (await lab.outcome(envelope.id))["status"] == "succeeded"
    assert sorted(line.split()[1] for line in await lines(calls, 3)) == ["1", "1", "1"]


@pytest.mark.req("MESH-17")
async def test_an_effect_under_once_happens_once_though_the_worker_dies_after_it(lab: Lab, tmp_path: Path) -> None:
    await lab.start(spec(handler="handlers:once", retry=RetryPolicy(base_s=0.01)))
    payload = {"file": str(tmp_path / "effects"), "key": "charge-1", "die_below": 3}
    outcome = await lab.outcome((await lab.send(["a"], payload)).id)
    assert outcome["payload"]["receipt"] == 17
    assert await lines(tmp_path / "effects", 1) == ["effect"]


@pytest.mark.req("MESH-18")
async def test_a_drained_sidecar_finishes_what_runs_hands_back_the_rest_and_exits_zero(
    lab: Lab, tmp_path: Path
) -> None:
    actor = spec()
    await lab.start(actor, window=3)
    gate, calls = tmp_path / "gate", tmp_path / "calls"
    sent = [await lab.send(["a"], {"file": str(calls), "wait_for": str(gate), "name": str(n)}) for n in range(4)]
    await lines(calls, 1)
    stopping = asyncio.create_task(lab.stop("a.sidecar"))

    async def handed_back() -> bool:
        depth = await lab.queues.depth("a")
        return (depth.ready, depth.in_flight) == (3, 1)

    await eventually(handed_back)
    gate.touch()
    assert await stopping == 0
    assert (await lab.outcome(sent[0].id))["status"] == "succeeded"
    lab.spawn(launch.sidecar(actor, lab.place))
    for envelope in sent:
        assert (await lab.outcome(envelope.id))["status"] == "succeeded"
    assert [line.split()[1] for line in await lines(calls, 4)] == ["1"] * 4


@pytest.mark.req("MESH-18")
async def test_at_the_end_of_the_grace_calls_are_handed_back_without_costing_an_attempt(
    stack: Stack, tmp_path: Path
) -> None:
    async with Lab.open(stack, Limits(grace_s=0.3)) as lab:
        actor = spec()
        await lab.start(actor)
        gate, calls = tmp_path / "gate", tmp_path / "calls"
        envelope = await lab.send(["a"], {"file": str(calls), "wait_for": str(gate)})
        await lines(calls, 1)
        assert await lab.stop("a.sidecar") == 0
        gate.touch()
        lab.spawn(launch.sidecar(actor, lab.place))
        assert (await lab.outcome(envelope.id))["status"] == "succeeded"
        attempts = [line.split()[0] for line in await lines(calls, 3) if line != "cancelled"]
        assert attempts == ["1", "1"]


@pytest.mark.req("MESH-18", "MESH-19.2")
async def test_what_waits_for_its_turn_by_key_is_handed_back_when_draining(lab: Lab, tmp_path: Path) -> None:
    actor = spec(concurrency=4, key="name")
    await lab.start(actor)
    gate, calls = tmp_path / "gate", tmp_path / "calls"
    for _ in range(3):
        await lab.send(["a"], {"file": str(calls), "name": "x", "wait_for": str(gate)})
    await lines(calls, 1)

    async def held() -> bool:
        return (await lab.queues.depth("a")).in_flight == 3

    await eventually(held)
    stopping = asyncio.create_task(lab.stop("a.sidecar"))

    async def draining() -> bool:
        return "draining" in lab.log("a.sidecar")

    await eventually(draining)
    gate.touch()
    assert await stopping == 0
    depth = await lab.queues.depth("a")
    assert (depth.ready, depth.in_flight, len(await lines(calls, 1))) == (2, 0, 1)


@pytest.mark.req("MESH-20.2")
async def test_a_cancelled_job_stops_its_handler_and_nothing_follows(lab: Lab, tmp_path: Path) -> None:
    await lab.start(spec(), spec("next"))
    calls = tmp_path / "calls"
    job_id = await lab.job(["a", "next"], {"file": str(calls), "wait_for": str(tmp_path / "never")})
    await lines(calls, 1)
    await lab.jobs.cancel(job_id, "not wanted")
    assert (await lines(calls, 2, timeout_s=at_most(3.0)))[1] == "cancelled"
    await lab.idle("a", "next", "happy-end", "error-end")
    assert (await lab.jobs.get(job_id)).state is JobState.CANCELLED
    assert (await lab.queues.depth("a")).dead == 0
    assert len(await lines(calls, 2)) == 2

    async def told() -> list[str] | None:
        kinds = [event.kind for event in await lab.events(job_id)]
        return kinds if "late_outcome" in kinds else None

    assert "skipped" not in await eventually(told), "its outcome was sent on"


@pytest.mark.req("MESH-20.2")
async def test_an_async_handler_of_a_cancelled_job_gets_a_cancellation(lab: Lab, tmp_path: Path) -> None:
    await lab.start(spec(handler="handlers:patient", concurrency=4))
    calls = tmp_path / "calls"
    job_id = await lab.job(["a"], {"file": str(calls), "seconds": 30})

    async def running() -> bool:
        return (await lab.jobs.get(job_id)).progress >= 50

    await eventually(running)
    await lab.jobs.cancel(job_id, "not wanted")
    assert await lines(calls, 1, timeout_s=at_most(3.0)) == ["cancelled"]


@pytest.mark.req("MESH-20.2")
async def test_the_envelope_of_a_job_that_ended_is_never_run(lab: Lab, tmp_path: Path) -> None:
    await lab.declare(spec())
    calls = tmp_path / "calls"
    job_id = await lab.job(["a"], {"file": str(calls)})

    async def queued() -> bool:
        return (await lab.queues.depth("a")).ready == 1

    await eventually(queued)
    await lab.jobs.cancel(job_id, "not wanted")
    await lab.start(spec())
    await lab.idle("a")

    async def noted() -> bool:
        return "skipped" in [event.kind for event in await lab.events(job_id)]

    await eventually(noted)
    assert not calls.exists()


@pytest.mark.req("JOB-07")
async def test_a_paused_job_is_parked_and_goes_on_after_resume(lab: Lab, tmp_path: Path) -> None:
    await lab.declare(spec())
    calls = tmp_path / "calls"
    job_id = await lab.job(["a"], {"file": str(calls)})

    async def queued() -> bool:
        return (await lab.queues.depth("a")).ready == 1

    await eventually(queued)
    await lab.jobs.pause(job_id, "wait")
    await lab.start(spec())
    for _ in range(2):
        await lab.idle("a")
        assert not calls.exists()
    await lab.jobs.resume(job_id, "go")
    assert (await lab.finished(job_id)).state is JobState.SUCCEEDED
    assert [line.split()[0] for line in await lines(calls, 1)] == ["1"]


@pytest.mark.req("MESH-16.1", "MESH-16.2", "JOB-01.2")
async def test_a_job_ends_with_its_last_hop_and_is_persisted_when_an_end_actor_comes(lab: Lab, tmp_path: Path) -> None:
    await lab.start(spec(), spec("b"), ends=False)
    job_id = await lab.job(["a", "b"], {"file": str(tmp_path / "calls")})
    progress = [("progress", percent) for percent in (5.0, 25.0, 50.0, 55.0, 75.0, 75.0)]
    if lab.stack.embedded:  # elsewhere queues and jobs share no transaction, and the end actor tells
        job = await lab.finished(job_id)
        assert (job.state, job.progress, job.result_key) == (JobState.SUCCEEDED, 100.0, None)
        progress.append(("succeeded", 100.0))

    async def told() -> list[tuple[str, float]]:
        return [(event.kind, event.data["progress"]) for event in await lab.events(job_id)]

    async def told_all() -> bool:
        return await told() == [("created", 0.0), *progress]

    await eventually(told_all)
    command = launch.ends(lab.place)
    lab.spawn(command)
    await lab.ready(command)
    job = await lab.finished(job_id)
    outcome = await lab.outcome(job_id)
    await lab.idle("happy-end")
    filed = await lab.jobs.get(job_id)
    assert (filed.result_key, outcome["payload"]) == (outcome["key"], job.result)
    assert await told() == [("created", 0.0), *progress[:6], ("succeeded", 100.0)], "the end was told once"


@pytest.mark.req("MESH-10.2", "MESH-09.2")
async def test_an_envelope_past_its_deadline_is_not_started(lab: Lab, tmp_path: Path) -> None:
    await lab.start(spec())
    calls = tmp_path / "calls"
    envelope = await lab.send(["a"], {"file": str(calls)}, deadline_at=1_000)
    assert (await lab.outcome(envelope.id))["error"]["reason"] == "deadline_exceeded"
    assert not calls.exists()


@pytest.mark.req("MESH-01.5", "MESH-11")
async def test_an_unknown_actor_is_a_route_error_at_the_error_end(lab: Lab) -> None:
    await lab.start(spec(handler="handlers:echo"))
    envelope = await lab.send(["a", "nobody"], {"x": 1})
    outcome = await lab.outcome(envelope.id)
    assert outcome["error"]["reason"] == "route_error"
    assert "nobody" in outcome["error"]["message"]
    assert outcome["payload"] == {"x": 1}


@pytest.mark.req("MESH-06", "QUEUE-07")
async def test_bytes_that_are_no_envelope_become_a_dead_letter_with_their_bytes(lab: Lab) -> None:
    from groundplane.queues.port import OutgoingMessage

    await lab.start(spec(handler="handlers:echo"))
    await lab.queues.send(OutgoingMessage(queue="a", payload=b"\xff\x00not an envelope", id="odd"))
    outcome = await lab.outcome("odd")
    assert outcome["error"]["reason"] == "msg_parsing_error"
    letter = (await lab.queues.list_dead("a")).items[0]
    assert (letter.payload, letter.reason) == (b"\xff\x00not an envelope", "msg_parsing_error")


@pytest.mark.req("MESH-25.1", "MESH-25.2")
@pytest.mark.parametrize("order", ["sidecar runtime queue", "queue sidecar runtime", "runtime sidecar queue"])
async def test_sidecar_runtime_and_queue_start_in_any_order(lab: Lab, order: str) -> None:
    actor = spec(handler="handlers:echo")
    command = launch.sidecar(actor, lab.place)
    for part in order.split():
        if part == "queue":
            assert not command.ready_file.exists()
            await lab.declare(actor)
        elif part == "runtime":
            lab.spawn(launch.runtime(actor, lab.place))
        else:
            lab.spawn(command)
    await lab.ready(command)
    lab.spawn(launch.ends(lab.place))
    assert (await lab.outcome((await lab.send(["a"], 1)).id))["payload"] == 1


@pytest.mark.req("MESH-25.3")
@pytest.mark.parametrize(
    "missing, code, reason", [("runtime", 3, "runtime_not_ready"), ("queue", 4, "queue_not_ready")]
)
async def test_without_its_other_half_the_sidecar_ends_with_a_named_code(
    lab: Lab, missing: str, code: int, reason: str
) -> None:
    actor = spec(handler="handlers:echo")
    if missing != "queue":
        await lab.declare(actor)
    if missing != "runtime":
        runtime = launch.runtime(actor, lab.place)
        lab.spawn(runtime)
        await lab.ready(runtime)
    process = lab.spawn(launch.sidecar(actor, lab.place, start_timeout_s=0.4 if missing == "runtime" else 1.2))
    assert await asyncio.to_thread(process.wait, 15) == code
    assert reason in lab.log("a.sidecar")


@pytest.mark.req("MESH-17", "MESH-19.1")
async def test_two_sidecars_share_a_queue_and_handle_each_message_once(lab: Lab, tmp_path: Path) -> None:
    actor = spec()
    await lab.start(actor)
    second = spec("a")
    place = lab.place
    runtime = launch.runtime(second, place)
    socket = str(lab.state / "run" / "second.sock")
    arguments = [socket if part == str(place.socket("a")) else part for part in runtime.arguments]
    ready = lab.state / "run" / "second.ready"
    arguments = [str(ready) if part == str(runtime.ready_file) else part for part in arguments]
    lab.spawn(launch.Command(name="second.runtime", arguments=arguments, environment={}, ready_file=ready))
    lab.spawn(launch.sidecar(second, place, replica=2, socket=socket))
    await lab.ready(launch.sidecar(second, place, replica=2))
    gate, calls = tmp_path / "gate", tmp_path / "calls"
    sent = [await lab.send(["a"], {"file": str(calls), "name": str(n), "wait_for": str(gate)}) for n in range(40)]
    await lines(calls, 2)  # each has one, and takes no other before the gate opens
    gate.touch()
    found = await lines(calls, 40)
    await lab.idle("a", "happy-end")
    assert sorted(int(line.split()[0]) for line in found) == list(range(40))
    assert len({line.split()[2] for line in found}) == 2
    assert len(sent) == 40


@pytest.mark.req("MESH-19.2")
async def test_messages_of_one_key_are_handled_in_order_though_one_must_be_retried(lab: Lab, tmp_path: Path) -> None:
    await lab.start(spec(concurrency=4, key="name", retry=RetryPolicy(attempts=3, base_s=0.05, jitter=False)))
    calls = tmp_path / "calls"
    for n in range(3):
        for name in ("x", "y"):
            fields = {"fail_below": 3} if (n, name) == (0, "x") else {}
            await lab.send(["a"], {"file": str(calls), "name": name, "n": n, **fields})
    found = await lines(calls, 8)
    await lab.idle("a", "happy-end")
    assert [line.split()[1] for line in found if line.startswith("x")] == ["1", "2", "3", "1", "1"]
    ended = sorted((p["payload"]["name"], p["key"]) for p in await lab.outcomes(lambda all_of: len(all_of) == 6))
    assert len(ended) == 6


@pytest.mark.req("MESH-19.1")
async def test_a_sync_handler_runs_in_as_many_processes_as_its_concurrency(lab: Lab, tmp_path: Path) -> None:
    await lab.start(spec(concurrency=3))
    gate, calls = tmp_path / "gate", tmp_path / "calls"
    for n in range(3):
        await lab.send(["a"], {"file": str(calls), "wait_for": str(gate), "name": str(n)})
    found = await lines(calls, 3)
    gate.touch()
    assert len({line.split()[2] for line in found}) == 3
    await lab.idle("a", "happy-end")


@pytest.mark.req("MESH-17")
async def test_a_stopped_runtime_is_seen_in_readiness(lab: Lab) -> None:
    actor = spec(handler="handlers:echo")
    await lab.start(actor)
    facts = await lab.ready(launch.sidecar(actor, lab.place))
    assert await _get(facts["admin_port"], "/readyz") == (200, "ok\n")
    lab.kill("a.runtime")
    await _disconnected(lab, actor)
    assert (await _get(facts["admin_port"], "/livez"))[0] == 200


async def _disconnected(lab: Lab, actor: ActorSpec) -> None:
    """Return when the sidecar has seen that its runtime is gone."""
    port = (await lab.ready(launch.sidecar(actor, lab.place)))["admin_port"]

    async def red() -> bool:
        status, text = await _get(port, "/readyz")
        return status == 503 and "no connection to the runtime" in text

    await eventually(red)


async def _get(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body
