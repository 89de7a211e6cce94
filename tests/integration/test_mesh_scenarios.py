"""The thirteen scenarios between sidecar and runtime, each with its own queue, all in their own processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.mesh.spec import ActorSpec
from integration.mesh_lab import Lab, eventually
from pace import at_most
from stacks import Stack

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.leaks("one plane is shared by the module; its threads and feeds start with their first use"),
]

LANGUAGES = {"zh": "你好，世界", "ja": "こんにちは", "ar": "مرحبا بالعالم", "ru": "Привет, мир", "emoji": "🚀👩‍🚀🎉"}
NULLS = {"a": None, "list": [None, 1, None], "nested": {"b": {"c": None}, "d": [{"e": None}]}}
CLEANED = "cuda-cleaned"

ACTORS = [
    ActorSpec(name="s01-happy", handler="handlers:echo"),
    ActorSpec(name="s02-error", handler="handlers:fail"),
    ActorSpec(name="s03-oom", handler="handlers:out_of_memory"),
    ActorSpec(name="s04-cuda", handler="handlers:out_of_cuda"),
    ActorSpec(name="s05-slow", handler="handlers:sleep", timeout_s=3.0),
    ActorSpec(name="s06-fan-out", handler="handlers:three"),
    ActorSpec(name="s07-empty", handler="handlers:nothing"),
    ActorSpec(name="s07-never", handler="handlers:append"),
    ActorSpec(name="s08-large", handler="handlers:echo"),
    ActorSpec(name="s09-words", handler="handlers:echo"),
    ActorSpec(name="s10-nulls", handler="handlers:echo"),
    ActorSpec(name="s11-if", handler="handlers:conditional", timeout_s=2.0),
    ActorSpec(name="s12-deep", handler="handlers:deep"),
    ActorSpec(name="s13-a", handler="handlers:echo"),
    ActorSpec(name="s13-b", handler="handlers:echo_async"),
]


@pytest.fixture(scope="module")
async def lab(module_stack: Stack) -> AsyncIterator[Lab]:
    async with Lab.open(module_stack) as lab:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MESH_TEST_CLEANED", str(lab.state / CLEANED))
            patch.setenv("GROUNDPLANE_CUDA_CLEANUP", "handlers:cuda_cleanup")
            await lab.start(*ACTORS)
        yield lab


async def _run(lab: Lab, route: list[str], payload: Any, timeout_s: float = 20.0) -> dict[str, Any]:
    envelope = await lab.send(route, payload)
    return await lab.outcome(envelope.id, timeout_s)


@pytest.mark.req("MESH-05.1", "MESH-01.1", "MESH-01.3")
async def test_a_message_passes_the_actor_and_reaches_the_happy_end(lab: Lab) -> None:
    outcome = await _run(lab, ["s01-happy"], {"test": "happy", "n": 1})
    assert (outcome["status"], outcome["payload"], outcome["last_actor"]) == (
        "succeeded",
        {"test": "happy", "n": 1},
        "s01-happy",
    )


@pytest.mark.req("MESH-05.2", "MESH-01.4", "MESH-11")
async def test_an_exception_reaches_the_error_end_with_type_traceback_and_the_original_payload(lab: Lab) -> None:
    envelope = await lab.send(["s02-error", "s01-happy"], {"n": [1, {"x": "ä"}]}, headers={"mine": "kept"})
    outcome = await lab.outcome(envelope.id)
    assert outcome["status"] == "failed"
    assert outcome["payload"] == {"n": [1, {"x": "ä"}]}
    assert outcome["headers"] == {"mine": "kept"}
    error = outcome["error"]
    assert (error["reason"], error["code"], error["type"]) == ("processing_error", "internal", "ValueError")
    assert "cannot handle" in error["message"]
    assert 'raise ValueError(f"cannot handle' in error["traceback"]
    assert error["details"]["final"] == "max_retries_exhausted"
    page = await lab.queues.list_dead("s02-error")
    assert [(d.message_id, d.reason) for d in page.items] == [(envelope.id, "max_retries_exhausted")]


@pytest.mark.req("MESH-05.3", "MESH-06")
async def test_running_out_of_memory_is_an_oom_error_and_is_tried_once_more(lab: Lab) -> None:
    outcome = await _run(lab, ["s03-oom"], {})
    error = outcome["error"]
    assert (error["reason"], error["code"], error["details"]["attempts"]) == ("oom_error", "resource_exhausted", 2)


@pytest.mark.req("MESH-05.4", "MESH-06")
async def test_running_out_of_gpu_memory_is_a_cuda_oom_error_and_calls_the_cleanup_hook(lab: Lab) -> None:
    error = (await _run(lab, ["s04-cuda"], {}))["error"]
    assert (error["reason"], error["details"]["attempts"]) == ("cuda_oom_error", 2)

    async def cleaned() -> bool:
        return (lab.state / CLEANED).exists()

    await eventually(cleaned)


@pytest.mark.req("MESH-05.5", "MESH-07.1", "MESH-07.2", "MESH-10.1")
async def test_a_handler_over_its_limit_is_a_timeout_error_and_the_next_message_is_served(lab: Lab) -> None:
    slow = await lab.send(["s05-slow"], {"seconds": 5})
    quick = await lab.send(["s05-slow"], {"seconds": 0})
    error = (await lab.outcome(slow.id, 10.0))["error"]
    assert (error["reason"], error["code"], error["details"]["attempts"]) == ("timeout_error", "deadline_exceeded", 1)
    assert (await lab.outcome(quick.id, at_most(2.5)))["status"] == "succeeded"


@pytest.mark.req("MESH-05.6", "MESH-02.2", "MESH-12.1")
async def test_a_generator_fans_out_into_exactly_three_children(lab: Lab) -> None:
    parent = await lab.send(["s06-fan-out"], {"p": 1})
    found = await lab.outcomes(lambda all_of: sum(one["parent_id"] == parent.id for one in all_of) >= 3)
    children = [one for one in found if one["parent_id"] == parent.id]
    await lab.idle("s06-fan-out", "happy-end")
    assert sorted(one["payload"]["index"] for one in children) == [0, 1, 2]
    assert {one["root_id"] for one in children} == {parent.id}
    assert len({one["id"] for one in children}) == 3


@pytest.mark.req("MESH-05.7", "MESH-02.4")
async def test_an_empty_result_ends_at_the_happy_end_and_the_next_actor_is_never_reached(
    lab: Lab, tmp_path: Path
) -> None:
    payload = {"file": str(tmp_path / "never")}
    outcome = await _run(lab, ["s07-empty", "s07-never"], payload)
    assert (outcome["status"], outcome["reason"], outcome["payload"]) == ("aborted", "aborted", payload)
    assert outcome["last_actor"] == "s07-empty"
    await lab.idle("s07-empty", "s07-never")
    assert not (tmp_path / "never").exists()


@pytest.mark.req("MESH-05.8", "MESH-04.3", "MESH-15.1")
@pytest.mark.parametrize("size", [100 * 1024, 10 * 1024 * 1024])
async def test_large_payloads_pass_unchanged(lab: Lab, size: int) -> None:
    payload = {"data": "0123456789abcdef" * (size // 16)}
    if size <= 512 * 1024:
        envelope_id = (await lab.send(["s08-large"], payload)).id
        outcome = await lab.outcome(envelope_id)
        assert outcome["payload"] == payload
        return
    job = await lab.finished(await lab.job(["s08-large"], payload, claims=lab.claims))
    assert job.result == payload
    await lab.idle("s08-large", "happy-end")

    async def released() -> bool:  # after the ack
        return [info.key async for info in lab.blobs.list("claims/")] == []

    await eventually(released)


@pytest.mark.req("MESH-05.9")
async def test_text_of_any_language_passes_unchanged(lab: Lab) -> None:
    assert (await _run(lab, ["s09-words"], LANGUAGES))["payload"] == LANGUAGES


@pytest.mark.req("MESH-05.10")
async def test_nulls_pass_unchanged_wherever_they_are(lab: Lab) -> None:
    assert (await _run(lab, ["s10-nulls"], NULLS))["payload"] == NULLS


@pytest.mark.req("MESH-05.11")
async def test_one_actor_may_end_in_every_way(lab: Lab) -> None:
    kinds = ["success", "error", "oom", "slow", "fan_out", "empty"]
    sent = {kind: await lab.send(["s11-if"], {"kind": kind}) for kind in kinds}
    plain = [sent[kind].id for kind in kinds if kind != "fan_out"]
    found = await lab.outcomes(
        lambda all_of: (
            {one["id"] for one in all_of} >= set(plain)
            and sum(one["parent_id"] == sent["fan_out"].id for one in all_of) == 3
        )
    )
    by_id = {one["id"]: one for one in found}
    assert by_id[sent["success"].id]["payload"] == {"done": "success"}
    reasons = {kind: by_id[sent[kind].id]["error"]["reason"] for kind in ("error", "oom", "slow")}
    assert reasons == {"error": "processing_error", "oom": "oom_error", "slow": "timeout_error"}
    assert by_id[sent["empty"].id]["status"] == "aborted"


@pytest.mark.req("MESH-05.12", "MESH-01.2")
async def test_twenty_hops_nest_twenty_levels(lab: Lab) -> None:
    outcome = await _run(lab, ["s12-deep"] * 20, {"depth": 0})
    depth, inner = 0, outcome["payload"]
    while "inner" in inner:
        depth, inner = depth + 1, inner["inner"]
    assert (depth, outcome["payload"]["depth"], outcome["route"]["current"]) == (20, 20, 20)


@pytest.mark.req("MESH-05.13", "JOB-05.2")
async def test_an_echo_through_several_steps_is_done_within_thirty_seconds(lab: Lab) -> None:
    job_id = await lab.job(["s13-a", "s13-b"], {"message": "echo"})
    job = await lab.finished(job_id, 30.0)
    assert (job.result, job.progress, job.steps_completed, job.total_steps) == ({"message": "echo"}, 100.0, 2, 2)
    seen = [event.data["progress"] for event in await lab.events(job_id)]
    assert seen == sorted(seen)
    assert {5.0, 25.0, 50.0, 55.0, 75.0, 100.0} <= set(seen)
