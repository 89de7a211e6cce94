"""What handlers see and may do, through the whole stack; old runtimes; settings by the names people have."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.jobs.port import JobState
from groundplane.mesh import launch
from groundplane.mesh.spec import ActorSpec, Limits
from integration.mesh_lab import FIXTURES, Lab, eventually
from stacks import Stack

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
async def lab(stack: Stack) -> AsyncIterator[Lab]:
    async with Lab.open(stack) as lab:
        yield lab


@pytest.mark.req("MESH-20.1", "MESH-22.1", "MESH-22.2", "MESH-22.3", "MESH-22.4")
async def test_a_handler_reports_progress_and_metrics_and_knows_its_attempt_and_key(lab: Lab) -> None:
    actor = ActorSpec(name="a", handler="handlers:observed")
    await lab.start(actor)
    job_id = await lab.job(["a"], {"x": 1}, headers={"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"})
    job = await lab.finished(job_id)
    assert job.result["attempt"] == 1
    assert job.result["key"] == f"{job_id}:0"
    assert job.result["deadline"].startswith("20")
    assert "groundplane-job-token" not in job.result["headers"]
    assert job.result["headers"]["traceparent"].startswith("00-1111")
    assert "half way" in [event.data.get("message") for event in await lab.events(job_id)]
    facts = await lab.ready(launch.sidecar(actor, lab.place))
    expected = [
        'groundplane_actor_messages_received_total{actor="a"} 1.0',
        'groundplane_actor_messages_processed_total{actor="a"} 1.0',
        'groundplane_actor_messages_sent_total{actor="a",queue="happy-end"} 1.0',
        'groundplane_actor_processing_seconds_count{actor="a"} 1.0',
        'groundplane_actor_runtime_seconds_count{actor="a"} 1.0',
        'groundplane_actor_send_seconds_count{actor="a"} 1.0',
        'groundplane_actor_message_bytes_count{actor="a"} 1.0',
        'groundplane_actor_active{actor="a"} 0.0',
        'groundplane_custom_widgets_total{actor="a",colour="red"} 2.0',
    ]
    missing = expected

    async def counted() -> bool:  # after the settlement that ended the job
        nonlocal missing
        text = await _get(facts["admin_port"], "/metrics")
        missing = [line for line in expected if line not in text]
        return not missing

    with contextlib.suppress(TimeoutError):
        await eventually(counted)
    assert missing == []


@pytest.mark.req("MESH-21.2", "MESH-01.4", "MESH-01.5", "MESH-14")
async def test_a_handler_of_whole_messages_edits_the_future_of_its_route_and_nothing_else(lab: Lab) -> None:
    await lab.start(
        ActorSpec(name="a", handler="handlers.whole_message", handler_mode="message"),
        ActorSpec(name="b", handler="handlers:echo"),
    )
    edited = await lab.send(["a", "nobody"], {"edit": "future", "then": ["b"]}, headers={"h": 1})
    outcome = await lab.outcome(edited.id)
    assert (outcome["route"]["actors"], outcome["payload"]["seen"], outcome["headers"]) == (["a", "b"], True, {"h": 1})
    forged = await lab.send(["a", "b"], {"edit": "past"})
    looped = await lab.send(["a"], {"edit": "loop"})
    for envelope in (forged, looped):
        outcome = await lab.outcome(envelope.id)
        assert outcome["error"]["reason"] == "route_error"
    assert len(outcome["route"]["actors"]) == Limits().hops_max


@pytest.mark.req("MESH-15.1", "MESH-15.2", "MESH-05.8")
async def test_large_outputs_travel_as_claims_that_are_gone_afterwards(lab: Lab) -> None:
    await lab.start(ActorSpec(name="make", handler="handlers:big"), ActorSpec(name="size", handler="handlers:size_of"))
    size = 20 * 1024 * 1024
    job = await lab.finished(await lab.job(["make", "size"], {"bytes": size}))
    assert job.result == {"size": size}
    last = await lab.finished(await lab.job(["make"], {"bytes": 400_000}))
    assert last.result == {"data": "x" * 400_000}
    await lab.idle("make", "size", "happy-end")

    async def gone() -> bool:
        return [info.key async for info in lab.blobs.list("claims/")] == []

    await eventually(gone)


@pytest.mark.req("MESH-15.1")
async def test_an_output_over_the_greatest_size_is_a_named_failure(stack: Stack) -> None:
    async with Lab.open(stack, Limits(payload_bytes_max=400_000)) as lab:
        await lab.start(ActorSpec(name="make", handler="handlers:big"), ActorSpec(name="b", handler="handlers:echo"))
        outcome = await lab.outcome((await lab.send(["make", "b"], {"bytes": 500_000})).id)
        assert (outcome["error"]["reason"], outcome["payload"]) == ("payload_too_large", {"bytes": 500_000})


@pytest.mark.req("MESH-11", "QUEUE-08")
async def test_a_dead_letter_keeps_its_claim_and_runs_when_it_is_redriven_though_its_job_has_ended(
    lab: Lab, tmp_path: Path
) -> None:
    await lab.start(ActorSpec(name="a", handler="handlers:append"), ActorSpec(name="b", handler="handlers:echo"))
    payload = {"file": str(tmp_path / "later" / "x"), "data": "x" * 400_000}
    job_id = await lab.job(["a"], payload, claims=lab.claims)
    job = await lab.finished(job_id)
    assert job.state is JobState.FAILED
    assert (await lab.outcome(job_id))["payload"] == payload
    assert len([info async for info in lab.blobs.list("claims/")]) == 1
    (letter,) = (await lab.queues.list_dead("a")).items
    (tmp_path / "later").mkdir()
    await lab.queues.redrive(letter.id)
    outcomes = await lab.outcomes(lambda found: any(not one.get("error") for one in found))
    assert [one["id"] for one in outcomes] == [job_id, job_id]
    assert (tmp_path / "later" / "x").exists()
    assert "redriven" in [event.kind for event in await lab.events(job_id)]
    assert (await lab.jobs.get(job_id)).state is JobState.FAILED


@pytest.mark.req("MESH-11", "QUEUE-08")
async def test_a_redriven_letter_that_fails_again_is_told_again(lab: Lab, tmp_path: Path) -> None:
    await lab.start(ActorSpec(name="a", handler="handlers:append"))
    envelope = await lab.send(["a"], {"file": str(tmp_path / "missing" / "x")})
    first = (await lab.outcome(envelope.id))["finished_at"]
    (letter,) = (await lab.queues.list_dead("a")).items
    await lab.queues.redrive(letter.id)
    (again,) = await lab.outcomes(lambda found: [one["finished_at"] for one in found] != [first])
    assert again["error"]["reason"] == "processing_error"
    (letter,) = (await lab.queues.list_dead("a")).items
    assert letter.redrives == 1


@pytest.mark.req("MESH-04.2", "MESH-02.4")
@pytest.mark.parametrize("protocol", ["auto", "0"])
async def test_a_runtime_of_protocol_zero_is_spoken_to_in_its_own_way(lab: Lab, protocol: str) -> None:
    actor = ActorSpec(name="a", handler="old_runtime:old_handler")
    await lab.declare(actor)
    command = launch.Command(
        name="old.runtime",
        arguments=[sys.executable, str(FIXTURES / "old_runtime.py"), str(lab.place.socket("a")), actor.handler],
        environment={},
        ready_file=Path("unused"),
    )
    lab.spawn(command)
    sidecar, ends = launch.sidecar(actor, lab.place, protocol=protocol), launch.ends(lab.place)
    for one in (sidecar, ends):
        lab.spawn(one)
        await lab.ready(one)
    sent = {kind: await lab.send(["a"], {"kind": kind}) for kind in ("one", "empty", "error", "many")}
    found = await lab.outcomes(lambda all_of: len(all_of) == 6)
    by_id = {one["id"]: one for one in found}
    assert by_id[sent["one"].id]["payload"] == {"kind": "one", "old": True}
    assert by_id[sent["empty"].id]["status"] == "aborted"
    error = by_id[sent["error"].id]["error"]
    assert (error["reason"], error["message"], error["type"]) == ("processing_error", "an old error", "ValueError")
    assert "old_handler" in error["traceback"]
    children = [one["payload"]["n"] for one in found if one["parent_id"] == sent["many"].id]
    assert sorted(children) == [0, 1, 2]


@pytest.mark.req("MESH-23.2", "MESH-21.1")
async def test_both_halves_run_by_the_names_of_asya_alone(lab: Lab) -> None:
    actor = ActorSpec(name="asya", handler="handlers.echo")
    await lab.declare(actor)
    environment = {
        "ASYA_HANDLER": "handlers.echo",
        "ASYA_SOCKET_PATH": str(lab.place.socket("asya")),
        "ASYA_SOCKET_CHMOD": "600",
        "ASYA_QUEUE_NAME": "asya",
        "ASYA_RUNTIME_TIMEOUT": "30s",
        "ASYA_STEP_HAPPY_END": "happy-end",
        "ASYA_STEP_ERROR_END": "error-end",
        "ASYA_LOG_LEVEL": "DEBUG",
        "GROUNDPLANE_STATE": str(lab.state),
        **({} if lab.stack.embedded else _customary(lab.stack)),
        "GROUNDPLANE_ACTOR_READY_FILE": str(lab.place.ready_file("asya")),
    }
    runtime = launch.runtime(actor, lab.place)
    plain = launch.Command(
        name="asya.runtime", arguments=runtime.arguments[:3], environment={}, ready_file=runtime.ready_file
    )
    sidecar = launch.Command(
        name="asya.sidecar",
        arguments=[sys.executable, "-m", "groundplane.mesh.sidecar"],
        environment={},
        ready_file=lab.place.ready_file("asya"),
    )
    lab.spawn(plain, **environment)
    lab.spawn(sidecar, **environment)
    await lab.ready(sidecar)
    lab.spawn(launch.ends(lab.place))
    assert (await lab.outcome((await lab.send(["asya"], {"x": "y"})).id))["payload"] == {"x": "y"}


def _customary(stack: Stack) -> dict[str, str]:
    """The URLs of the servers under the names that people have."""
    urls = stack.urls
    return {
        "ASYA_RABBITMQ_URL": urls["queues"],
        "ASYA_RABBITMQ_EXCHANGE": "groundplane",
        "DATABASE_URL": urls["jobs"],
        "GROUNDPLANE_BLOBS_URL": urls["blobs"],
    }


async def test_an_idle_sidecar_stays_below_forty_megabytes_and_with_clients_of_three_servers_below_sixty(
    lab: Lab,
) -> None:
    await lab.start(ActorSpec(name="a", handler="handlers:echo"))
    for n in range(20):
        await lab.send(["a"], {"n": n})
    await lab.idle("a", "happy-end")
    assert _resident_kib(lab.processes["a.sidecar"].pid) <= (40 if lab.stack.embedded else 60) * 1024


@pytest.mark.req("MESH-23.1")
async def test_a_wrong_setting_ends_the_sidecar_with_the_code_for_usage(lab: Lab) -> None:
    command = launch.Command(
        name="wrong",
        arguments=[sys.executable, "-m", "groundplane.mesh.sidecar", "--queue", "a", "--timeout", "soon"],
        environment={},
        ready_file=Path("unused"),
    )
    process = lab.spawn(command)
    assert await asyncio.to_thread(process.wait, 15) == 2
    assert "--timeout" in lab.log("wrong")


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


async def _get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer
