"""Fan-out and fan-in between processes, with jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.core.ids import child_id, joined_id
from groundplane.core.retry import RetryPolicy
from groundplane.jobs.port import JobState
from groundplane.mesh.spec import ActorSpec
from integration.mesh_lab import Lab
from stacks import Stack

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.leaks("one plane is shared by the module; its threads and feeds start with their first use"),
]

ACTORS = [
    ActorSpec(name="many", handler="handlers:many"),
    ActorSpec(name="nested", handler="handlers:nested"),
    ActorSpec(name="part", handler="handlers:part", concurrency=2),
    ActorSpec(name="echo", handler="handlers:echo"),
    ActorSpec(name="sum", handler="handlers:add_up", join=True, join_timeout_s=30.0),
    ActorSpec(name="outer", handler="handlers:add_up", join=True, join_timeout_s=30.0),
    ActorSpec(name="hasty", handler="handlers:add_up", join=True, join_timeout_s=1.6),
    ActorSpec(
        name="flaky",
        handler="handlers:flaky_sum",
        join=True,
        retry=RetryPolicy(attempts=2, base_s=0.05),
    ),
    ActorSpec(name="shaky", handler="handlers:fail", join=True, join_timeout_s=30.0),
]


@pytest.fixture(scope="module")
async def lab(module_stack: Stack) -> AsyncIterator[Lab]:
    async with Lab.open(module_stack) as lab:
        await lab.start(*ACTORS)
        yield lab


@pytest.mark.req("JOB-12.1", "MESH-12.1")
async def test_without_a_join_the_job_has_the_results_of_all_children_by_index(lab: Lab) -> None:
    job = await lab.finished(await lab.job(["many", "part"], {"count": 5}))
    assert job.state is JobState.SUCCEEDED
    assert job.result == [{"part": index} for index in range(5)]
    assert job.progress == 100.0


@pytest.mark.req("JOB-12.2")
async def test_without_a_join_one_failed_child_fails_the_job_and_the_others_are_kept(lab: Lab) -> None:
    job = await lab.finished(await lab.job(["many", "part"], {"count": 3, "fail_at": 1}))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.reason == "processing_error"
    assert job.progress < 100


@pytest.mark.req("MESH-13")
async def test_a_join_gets_the_ordered_list_and_its_output_goes_on_as_one_envelope(lab: Lab) -> None:
    job_id = await lab.job(["many", "part", "sum", "echo"], {"count": 7})
    job = await lab.finished(job_id)
    assert job.state is JobState.SUCCEEDED
    expected = {"items": [{"part": n} for n in range(7)], "total": 7, "missing": [], "reason": None}
    assert job.result == expected
    outcome = await lab.outcome(joined_id(job_id, 0))
    assert (outcome["parent_id"], outcome["root_id"], outcome["branches"]) == (job_id, job_id, [])
    await lab.idle("many", "part", "echo", "happy-end")


@pytest.mark.req("MESH-13")
async def test_joins_nest(lab: Lab) -> None:
    job = await lab.finished(await lab.job(["nested", "many", "part", "sum", "outer"], {}))
    inner = {"items": [{"part": 0}, {"part": 1}], "total": 2, "missing": [], "reason": None}
    assert job.result == {"items": [inner, inner], "total": 2, "missing": [], "reason": None}


@pytest.mark.req("MESH-13")
async def test_after_its_deadline_a_join_gets_the_partial_list_with_a_reason(lab: Lab) -> None:
    job_id = await lab.job(["many", "part", "hasty"], {"count": 3, "fail_at": 1})
    job = await lab.finished(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.result == {
        "items": [{"part": 0}, {"part": 2}],
        "total": 3,
        "missing": [1],
        "reason": "join_timeout",
    }
    kinds = [event.kind for event in await lab.events(job_id)]
    assert "dead_letter" in kinds


@pytest.mark.req("MESH-13", "QUEUE-08")
async def test_a_failed_child_that_is_redriven_in_time_completes_the_join(lab: Lab) -> None:
    job_id = await lab.job(["many", "part", "sum"], {"count": 3, "fail_at": 2})
    failed = child_id(job_id, 0, 2)
    await lab.outcome(failed)
    assert (await lab.jobs.get(job_id)).state is JobState.RUNNING
    letters = [d for d in (await lab.queues.list_dead("part")).items if d.message_id == failed]
    payload = lab.edited(letters[0].payload, {"count": 3, "index": 2})
    await lab.queues.redrive(letters[0].id, payload=payload)
    job = await lab.finished(job_id)
    assert job.state is JobState.SUCCEEDED
    assert [one["part"] for one in job.result["items"]] == [0, 1, 2]


@pytest.mark.req("MESH-13", "MESH-09.1")
async def test_a_join_whose_handler_fails_once_is_tried_again_with_the_whole_list(lab: Lab) -> None:
    job = await lab.finished(await lab.job(["many", "part", "flaky"], {"count": 4}))
    assert job.result == {"sum": 6, "attempt": 2}


@pytest.mark.req("MESH-13", "MESH-01.4")
async def test_a_join_whose_handler_fails_fails_the_job_with_the_list_as_payload(lab: Lab) -> None:
    job_id = await lab.job(["many", "part", "shaky"], {"count": 2})
    job = await lab.finished(job_id)
    assert job.state is JobState.FAILED
    outcome = await lab.outcome(joined_id(job_id, 0))
    assert outcome["payload"] == [{"part": 0}, {"part": 1}]
    assert outcome["error"]["type"] == "ValueError"


@pytest.mark.req("MESH-13")
async def test_a_child_that_comes_after_the_deadline_is_recorded_and_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    job_id = await lab.job(["many", "part", "hasty", "echo"], {"count": 2, "fail_at": 0})
    job = await lab.finished(job_id)
    assert job.result["missing"] == [0]
    failed = child_id(job_id, 0, 0)
    letter = next(d for d in (await lab.queues.list_dead("part")).items if d.message_id == failed)
    await lab.queues.redrive(letter.id, payload=lab.edited(letter.payload, {"index": 0}))
    await lab.idle("part", "hasty", "echo", "happy-end")
    again = await lab.jobs.get(job_id)
    assert (again.state, again.result) == (JobState.SUCCEEDED, job.result)
