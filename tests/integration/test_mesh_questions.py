"""Handlers that ask: the job waits in the store alone, and the answer finds the handler wherever it runs then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import FailedPrecondition
from groundplane.core.retry import RetryPolicy
from groundplane.jobs.port import Job, JobState, Question
from groundplane.mesh import launch
from groundplane.mesh.spec import ActorSpec
from integration.mesh_lab import Lab, eventually, lines
from stacks import Stack

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

APPROVE = ActorSpec(name="approve", handler="handlers:approve")
ECHO = ActorSpec(name="echo", handler="handlers:echo")


@pytest.fixture
async def lab(stack: Stack) -> AsyncIterator[Lab]:
    async with Lab.open(stack) as lab:
        yield lab


async def _asked(lab: Lab, job_id: str, count: int = 1) -> list[Question]:
    """The open questions of a job, once there are so many."""

    async def look() -> list[Question] | None:
        job = await lab.jobs.get(job_id)
        assert not job.state.terminal, f"{job}\n{lab.logs()}"
        return job.questions if len(job.questions) >= count else None

    return await eventually(look, 60)


async def _answered(lab: Lab, job_id: str, content: Any, **more: Any) -> Job:
    """The job, once its one open question is answered."""
    (question,) = await _asked(lab, job_id)
    return await lab.jobs.answer(job_id, question.question_id, content, **more)


@pytest.mark.req("GATE-16.1", "GATE-16.3")
async def test_a_question_outlives_the_processes_that_asked_it_and_the_deadline(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "effects"
    await lab.start(APPROVE, ECHO)
    job_id = await lab.job(["approve", "echo"], {"file": str(file), "count": 3}, timeout_s=5.0)
    (question,) = await _asked(lab, job_id)
    assert (question.question_id, question.message) == ("approve.0.sure", "Delete 3 files?")
    assert question.schema is not None
    assert question.schema["properties"] == {"value": {"type": "boolean"}}
    await lab.idle("approve")
    for command in (launch.sidecar(APPROVE, lab.place), launch.runtime(APPROVE, lab.place)):
        lab.kill(command.name)
        command.ready_file.unlink(missing_ok=True)
    deadline_at = (await lab.jobs.get(job_id)).deadline_at or 0
    await asyncio.sleep(max(0.0, deadline_at / 1000 - time.time() + 0.1))  # that it has passed is what is tested
    assert (await lab.jobs.sweep()).timed_out == []
    job = await lab.jobs.answer(job_id, question.question_id, {"value": True}, by="kim")
    assert (job.deadline_at or 0) > time.time() * 1000
    lab.spawn(launch.runtime(APPROVE, lab.place))
    lab.spawn(launch.sidecar(APPROVE, lab.place))
    done = await lab.finished(job_id, 60)
    assert (done.state, done.result) == (JobState.SUCCEEDED, {"deleted": 3, "found": "find"})
    assert file.read_text().splitlines() == ["run 1", "find", "run 1", "delete"]
    kinds = [event.kind for event in await lab.events(job_id)]
    assert [kind for kind in kinds if kind in ("asked", "answered", "paused", "resumed", "parked", "retry")] == [
        "paused", "asked", "parked", "answered", "resumed"
    ]  # fmt: skip


@pytest.mark.req("GATE-16.1")
async def test_an_async_handler_asks_one_thing_after_the_other_and_two_at_once(lab: Lab) -> None:
    await lab.start(ActorSpec(name="interview", handler="handlers:interview", concurrency=4))
    one, two = [await lab.job(["interview"], {}) for _ in range(2)]
    (question,) = await _asked(lab, two)
    await lab.jobs.answer(two, question.question_id, action="decline")
    assert (await lab.finished(two)).result == {"declined": "decline"}
    await _answered(lab, one, {"value": "Kim"})
    colour, form = await _asked(lab, one, 2)
    assert colour.message == "Which colour, Kim?"
    assert colour.schema == {
        "type": "object",
        "properties": {"value": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["value"],
    }
    assert form.schema == {
        "type": "object",
        "properties": {"age": {"type": "integer"}, "mail": {"type": "string"}},
        "required": ["age"],
    }
    assert (await lab.jobs.answer(one, form.question_id, {"age": 40})).state is JobState.PAUSED
    await lab.jobs.answer(one, colour.question_id, {"value": "red"})
    assert (await lab.finished(one)).result == {"name": "Kim", "colour": "red", "form": {"age": 40}}


@pytest.mark.req("GATE-16.1")
async def test_children_ask_each_for_themselves_and_so_does_the_join(lab: Lab) -> None:
    await lab.start(
        ActorSpec(name="many", handler="handlers:many"),
        ActorSpec(name="part", handler="handlers:ask_part", concurrency=2),
        ActorSpec(name="all", handler="handlers:ask_about_all", join=True),
    )
    job_id = await lab.job(["many", "part", "all"], {"count": 3})
    while not (found := await _asked(lab, job_id)) or len(found) < 3:
        job = await lab.jobs.get(job_id)  # a child that comes while a sibling asks is parked, and asks after that
        for question in job.questions:
            await lab.jobs.answer(job_id, question.question_id, {"value": question.message != "Part 1?"})
        if len(await lab.jobs.questions(job_id)) >= 3:
            break
    while (asked := await _asked(lab, job_id))[0].actor == "part":
        await lab.jobs.answer(job_id, asked[0].question_id, {"value": asked[0].message != "Part 1?"})
    (question,) = asked
    assert (question.actor, question.message) == ("all", "All 3?")
    await lab.jobs.answer(job_id, question.question_id, {"value": True})
    job = await lab.finished(job_id)
    assert job.result == {"items": [{"part": n, "ok": n != 1} for n in range(3)], "ok": True}
    assert len({one.question_id for one in await lab.jobs.questions(job_id)}) == 4


@pytest.mark.req("GATE-16.1")
async def test_a_handler_that_swallows_the_signal_has_not_ended(lab: Lab) -> None:
    await lab.start(ActorSpec(name="a", handler="handlers:swallow"))
    job_id = await lab.job(["a"], {})
    await _answered(lab, job_id, {"value": True})
    assert (await lab.finished(job_id)).result == {"sure": True}


@pytest.mark.req("GATE-16.1")
async def test_asking_spends_no_attempt_and_a_retry_asks_nothing_twice(lab: Lab, tmp_path: Path) -> None:
    retry = RetryPolicy(attempts=2, base_s=0.01, cap_s=0.01)
    await lab.start(
        ActorSpec(name="late", handler="handlers:ask_after_failing", retry=retry),
        ActorSpec(name="early", handler="handlers:fail_after_answer", retry=retry),
    )
    late = await lab.job(["late"], {"file": str(tmp_path / "late")})
    await _answered(lab, late, {"value": False})
    assert (await lab.finished(late)).result["sure"] is False
    mended = tmp_path / "mended"
    early = await lab.job(["early"], {"file": str(tmp_path / "early"), "mended": str(mended)})
    await _answered(lab, early, {"value": True})
    job = await lab.finished(early)
    assert (job.state, (tmp_path / "early").read_text()) == (JobState.FAILED, "run 1\nrun 2\n")
    assert len(await lab.jobs.questions(early)) == 1
    # a person redrives it: the answer is there still
    mended.touch()
    assert await eventually(lambda: lab.queues.redrive_all("early")) == 1

    def good(found: list[dict[str, Any]]) -> list[Any]:
        return [one["payload"] for one in found if one["id"] == early and one["key"].startswith("results/")]

    assert good(await lab.outcomes(lambda found: bool(good(found)))) == [{"sure": True}]


@pytest.mark.req("GATE-16.1")
async def test_an_answer_is_not_taken_for_another_question(lab: Lab, tmp_path: Path) -> None:
    await lab.start(ActorSpec(name="a", handler="handlers:ask_another"))
    job_id = await lab.job(["a"], {"file": str(tmp_path / "runs")})
    await _answered(lab, job_id, {"value": True})
    job = await lab.finished(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.reason == "question_changed"
    assert "'Question 1?'" in job.error.message
    assert "'Question 2?'" in job.error.message


@pytest.mark.req("GATE-16.1")
async def test_a_handler_asks_the_client_for_a_completion_and_for_its_roots(lab: Lab) -> None:
    await lab.start(ActorSpec(name="a", handler="handlers:ask_of_client"))
    job_id = await lab.job(["a"], {})
    (question,) = await _asked(lab, job_id)
    hello = {"role": "user", "content": {"type": "text", "text": "Say hello"}}
    assert (question.kind, question.schema) == ("sample", None)
    assert question.params == {"messages": [hello], "maxTokens": 20, "temperature": 0.5}
    told = {"role": "assistant", "content": {"type": "text", "text": "hello"}, "model": "m-1"}
    await lab.jobs.answer(job_id, question.question_id, told)
    (question,) = await _asked(lab, job_id)
    assert (question.kind, question.params) == ("roots", {})
    await lab.jobs.answer(job_id, question.question_id, {"roots": [{"uri": "file:///work", "name": "work"}]})
    assert (await lab.finished(job_id)).result == {"text": "hello", "roots": ["file:///work"]}
    logged = [event.data for event in await lab.events(job_id) if event.kind == "log"]
    assert logged[-1]["level"] == "info"
    assert (logged[-1]["message"], logged[-1]["data"], logged[-1]["actor"]) == (
        "the model spoke",
        {"model": "m-1"},
        "a",
    )


@pytest.mark.req("GATE-16.1")
async def test_a_question_closes_with_its_job_and_what_comes_after_is_too_late(lab: Lab, tmp_path: Path) -> None:
    await lab.start(APPROVE)
    job_id = await lab.job(["approve"], {"file": str(tmp_path / "effects"), "count": 1})
    (question,) = await _asked(lab, job_id)
    await lab.jobs.cancel(job_id, "never mind")
    with pytest.raises(FailedPrecondition):
        await lab.jobs.answer(job_id, question.question_id, {"value": True})
    await lab.idle("approve")
    assert await lines(tmp_path / "effects", 2) == ["run 1", "find"]


@pytest.mark.req("GATE-16.1")
async def test_what_cannot_be_asked_fails_at_once_and_says_why(lab: Lab) -> None:
    await lab.start(ActorSpec(name="a", handler="handlers:ask_badly"))
    nested = {"type": "object", "properties": {"deep": {"type": "object"}}}
    job = await lab.finished(await lab.job(["a"], {"schema": nested}))
    assert job.error is not None
    assert (job.error.code, job.state) == ("invalid_argument", JobState.FAILED)
    assert job.error.message.startswith("schema.deep: {'type': 'object'} is no text")
    alone = await lab.send(["a"], {"schema": {"sure": {"type": "boolean"}}})
    outcome = await lab.outcome(alone.id)
    assert outcome["error"]["code"] == "unsupported"
    assert "belongs to no job" in outcome["error"]["message"]


async def test_a_log_without_end_is_cut_off_and_says_so(lab: Lab) -> None:
    await lab.start(ActorSpec(name="a", handler="handlers:chatter"))
    job_id = await lab.job(["a"], {"lines": 1500})
    await lab.finished(job_id)

    async def logged() -> list[Any] | None:
        items = [event.data for event in (await lab.jobs.events(0, job_id, 1000)).items if event.kind == "log"]
        after = [event.data for event in (await lab.jobs.events(1000, job_id, 1000)).items if event.kind == "log"]
        found = {data["message"] for data in items + after}
        return sorted(found) if "the log is full; further lines are left out" in found else None

    assert len(await eventually(logged)) == 1000


@pytest.mark.fault
@pytest.mark.req("GATE-16.3")
@pytest.mark.parametrize("window", ["handled", "asking", "asked", "before_ack"])
async def test_a_sidecar_killed_in_any_window_asks_once_and_loses_nothing(
    lab: Lab, tmp_path: Path, window: str
) -> None:
    await lab.declare(APPROVE)
    file = tmp_path / "effects"
    job_id = await lab.job(["approve"], {"file": str(file), "count": 2})
    lab.spawn(launch.runtime(APPROVE, lab.place))
    command = launch.sidecar(APPROVE, lab.place)
    process = lab.spawn(command, GROUNDPLANE_FAILPOINTS=f"{window}=kill@1")
    assert await asyncio.to_thread(process.wait, 30) == -9, lab.log(command.name)
    command.ready_file.unlink(missing_ok=True)
    lab.spawn(command)
    lab.spawn(launch.ends(lab.place))
    await _answered(lab, job_id, {"value": True})
    job = await lab.finished(job_id, 60)
    assert (job.state, job.result["deleted"]) == (JobState.SUCCEEDED, 2)
    assert len(await lab.jobs.questions(job_id)) == 1
    assert [event.kind for event in await lab.events(job_id)].count("asked") == 1
    written = file.read_text().splitlines()
    assert (written.count("find"), written.count("delete")) == (1, 1)
    await lab.idle("approve", "happy-end")


@pytest.mark.fault
@pytest.mark.req("GATE-16.3")
async def test_an_answer_that_comes_between_the_question_and_its_ack_is_not_lost(lab: Lab, tmp_path: Path) -> None:
    await lab.declare(APPROVE)
    file = tmp_path / "effects"
    job_id = await lab.job(["approve"], {"file": str(file), "count": 2})
    lab.spawn(launch.runtime(APPROVE, lab.place))
    command = launch.sidecar(APPROVE, lab.place)
    process = lab.spawn(command, GROUNDPLANE_FAILPOINTS="asked=kill@1")
    assert await asyncio.to_thread(process.wait, 30) == -9, lab.log(command.name)
    await _answered(lab, job_id, {"value": True})  # the delivery was not acked: two of it come now
    command.ready_file.unlink(missing_ok=True)
    lab.spawn(command)
    lab.spawn(launch.ends(lab.place))
    assert (await lab.finished(job_id, 60)).result["deleted"] == 2
    await lab.idle("approve", "happy-end")
    assert (await lab.jobs.get(job_id)).state is JobState.SUCCEEDED
    written = file.read_text().splitlines()
    assert (written.count("find"), written.count("delete")) == (1, 1)
    assert [event.kind for event in await lab.events(job_id)].count("asked") == 1
