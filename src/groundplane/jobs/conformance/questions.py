"""Questions in the middle of a job: asked once, answered once, and the pauses that come with them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from groundplane.core.errors import FailedPrecondition, InvalidArgument, NotFound
from groundplane.jobs.conformance.subjects import (
    applied,
    fail,
    history,
    in_time,
    kinds,
    message,
    new_job,
    report,
    started,
    succeed,
)
from groundplane.jobs.port import Answer, Ask, JobState, Park, Question, Retention, Split
from groundplane.jobs.store import Jobs

_SCHEMA = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}


def _asked(job_id: str, *ids: str, envelope_id: str = "root", **fields: Any) -> Ask:
    given: dict[str, Any] = {"message": "Delete?", "schema": _SCHEMA, "actor": "first", "params": {"ä": [1, b"\x00"]}}
    questions = [Question(question_id=one, envelope_id=envelope_id, **given | fields) for one in ids]
    return Ask(job_id=job_id, questions=questions, message=message(envelope_id))


async def _sent(jobs: Jobs) -> list[str]:
    return [one.id for _, one in await jobs.driver.outbox.take(10)]


class QuestionConformance:
    """What a store does with questions and answers."""

    @pytest.mark.req("GATE-16.1")
    async def test_a_question_pauses_its_job_and_parks_the_envelope_in_one_step(self, jobs: Jobs) -> None:
        deadline = round(time.time() * 1000) + 60_000
        job_id = await started(jobs, deadline_at=deadline)
        await jobs.apply(report(job_id, 0, 50))
        outcome = await applied(jobs, _asked(job_id, "q1"))
        assert (outcome.applied, outcome.state) == (True, JobState.PAUSED)
        assert await _sent(jobs) == []
        job = await jobs.get(job_id)
        assert (job.state, job.deadline_at) == (JobState.PAUSED, deadline)
        (question,) = job.questions
        assert question == Question(
            question_id="q1",
            message="Delete?",
            schema=_SCHEMA,
            params={"ä": [1, b"\x00"]},
            actor="first",
            envelope_id="root",
            asked_at=question.asked_at,
        )
        assert job.paused_at == question.asked_at
        assert await jobs.questions(job_id) == [question]
        assert (await jobs.list_jobs()).items[0].questions == []

    @pytest.mark.req("GATE-16.1")
    async def test_the_answer_lets_the_job_go_on_with_its_deadline_later_by_the_pause(self, jobs: Jobs) -> None:
        deadline = round(time.time() * 1000) + 60_000
        job_id = await started(jobs, deadline_at=deadline)
        await jobs.apply(report(job_id, 0, 50), _asked(job_id, "q1"))
        await asyncio.sleep(0.05)  # the length of the pause is what is measured
        job = await jobs.answer(job_id, "q1", {"sure": True, "ä": [None]}, by="kim")
        assert job.deadline_at is not None
        assert (job.state, job.paused_at, job.questions) == (JobState.RUNNING, None, [])
        assert 45 <= job.deadline_at - deadline <= 5_000
        ((_, sent),) = await jobs.driver.outbox.take(10)
        assert (sent.id, sent.payload) == ("root", b"\x80\x00")
        assert sent.dedup_key != message("root").dedup_key  # the queue has seen that one, and would drop it
        (question,) = await jobs.questions(job_id)
        assert (question.state, question.action, question.answered_by) == ("answered", "accept", "kim")
        assert question.content == {"sure": True, "ä": [None]}
        assert question.answered_at is not None
        assert question.answered_at >= question.asked_at

    @pytest.mark.req("GATE-16.1")
    async def test_the_log_tells_of_questions_and_answers(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(report(job_id, 0, 50), _asked(job_id, "q1", params={"n": 1}))
        await jobs.answer(job_id, "q1", {"sure": False}, by="kim")
        events = {event.kind: event.data for event in await history(jobs, job_id)}
        assert list(events) == ["created", "progress", "paused", "asked", "parked", "answered", "resumed"]
        asked = {"question_id": "q1", "kind": "elicit", "message": "Delete?", "schema": _SCHEMA, "params": {"n": 1}}
        assert events["asked"] == asked | {"state": "paused", "actor": "first", "envelope_id": "root"}
        assert (events["paused"]["state"], events["paused"]["reason"]) == ("paused", "question")
        assert events["answered"] == {"state": "running", "question_id": "q1", "action": "accept", "by": "kim"}
        assert events["resumed"]["state"] == "running"

    @pytest.mark.req("GATE-16.1")
    @pytest.mark.parametrize("action", ["decline", "cancel"])
    async def test_a_question_may_be_declined(self, jobs: Jobs, action: Any) -> None:
        job_id = await started(jobs)
        await jobs.apply(_asked(job_id, "q1"))
        assert (await jobs.answer(job_id, "q1", action=action)).state is JobState.PENDING
        (question,) = await jobs.questions(job_id)
        assert (question.action, question.content, question.answered_by) == (action, None, "")

    @pytest.mark.req("GATE-16.3")
    async def test_asking_again_after_a_redelivery_changes_nothing(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(_asked(job_id, "q1"))
        before = await jobs.get(job_id)
        again = await applied(jobs, _asked(job_id, "q1"))
        assert (again.applied, again.detail, again.state) == (False, "repeated", JobState.PAUSED)
        assert await jobs.get(job_id) == before
        await jobs.answer(job_id, "q1", {"sure": True})
        assert await _sent(jobs) == ["root"]

    @pytest.mark.req("GATE-16.3")
    async def test_asking_again_after_the_answer_sends_the_envelope_at_once(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(_asked(job_id, "q1"))
        await jobs.answer(job_id, "q1", {"sure": True})
        ((number, _),) = await jobs.driver.outbox.take(10)
        await jobs.driver.outbox.done([number])
        outcome = await applied(jobs, _asked(job_id, "q1"))
        assert outcome.state is JobState.PENDING
        assert await _sent(jobs) == ["root"]
        assert [one.state for one in await jobs.questions(job_id)] == ["answered"]
        assert (await jobs.get(job_id)).state is JobState.PENDING

    @pytest.mark.req("GATE-16.3")
    async def test_an_answer_never_changes_and_the_same_again_is_no_error(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(_asked(job_id, "q1"))
        await jobs.answer(job_id, "q1", {"sure": True}, by="kim")
        before = await jobs.questions(job_id), await kinds(jobs, job_id)
        assert (await jobs.answer(job_id, "q1", {"sure": True}, by="kim")).state is JobState.PENDING
        for content, by in (({"sure": False}, "kim"), ({"sure": True}, "lee")):
            with pytest.raises(FailedPrecondition) as caught:
                await jobs.answer(job_id, "q1", content, by=by)
            assert caught.value.reason == "question_answered"
        assert (await jobs.questions(job_id), await kinds(jobs, job_id)) == before

    @pytest.mark.req("GATE-16.3")
    async def test_of_answers_at_once_one_counts(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(_asked(job_id, "q1"))
        told = await asyncio.gather(
            *(jobs.answer(job_id, "q1", n, by=f"p{n}") for n in range(8)), return_exceptions=True
        )
        (won,) = [n for n, one in enumerate(told) if not isinstance(one, BaseException)]
        assert {getattr(one, "reason", "") for n, one in enumerate(told) if n != won} == {"question_answered"}
        (question,) = await jobs.questions(job_id)
        assert (question.content, question.answered_by) == (won, f"p{won}")
        assert (await kinds(jobs, job_id)).count("answered") == 1

    @pytest.mark.req("GATE-16.1")
    async def test_what_is_not_there_takes_no_answer(self, jobs: Jobs) -> None:
        with pytest.raises(NotFound) as caught:
            await jobs.answer("nobody", "q1", 1)
        assert caught.value.reason == "job_not_found"
        with pytest.raises(NotFound) as caught:
            await jobs.questions("nobody")
        assert caught.value.reason == "job_not_found"
        job_id = await started(jobs)
        with pytest.raises(NotFound) as caught:
            await jobs.answer(job_id, "q1", 1)
        assert caught.value.reason == "question_not_found"
        assert await jobs.questions(job_id) == []

    @pytest.mark.req("GATE-16.1")
    async def test_a_job_goes_on_when_all_its_questions_are_answered(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        children = ["c0", "c1", "c2"]
        await jobs.apply(Split(job_id=job_id, envelope_id="root", children=children))
        await jobs.apply(_asked(job_id, "a", "b", envelope_id="c0"), _asked(job_id, "c", envelope_id="c1"))
        assert [one.question_id for one in (await jobs.get(job_id)).questions] == ["a", "b", "c"]
        assert [one.question_id for one in await jobs.questions(job_id, ["c", "a", "x"])] == ["a", "c"]
        assert (await jobs.answer(job_id, "b", 1)).state is JobState.PAUSED
        assert (await jobs.answer(job_id, "c", 2)).state is JobState.PAUSED
        assert await _sent(jobs) == []
        job = await jobs.get(job_id)
        assert [one.question_id for one in job.questions] == ["a"]
        assert (await jobs.answer(job_id, "a", 3)).state is JobState.RUNNING
        assert sorted(await _sent(jobs)) == ["c0", "c1"]
        assert [one.content for one in await jobs.questions(job_id)] == [3, 1, 2]

    @pytest.mark.req("GATE-16.1")
    async def test_a_branch_that_has_ended_asks_nothing(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(Split(job_id=job_id, envelope_id="root", children=["c0", "c1"]))
        await succeed(jobs, job_id, 1, "c0")
        for envelope_id, detail in (("c0", "late"), ("odd", "unknown_branch")):
            outcome = await applied(jobs, _asked(job_id, "q1", envelope_id=envelope_id))
            assert (outcome.applied, outcome.detail, outcome.state) == (False, detail, JobState.RUNNING)
        assert (await jobs.questions(job_id), await _sent(jobs)) == ([], [])

    @pytest.mark.req("GATE-16.1")
    async def test_a_pause_by_hand_outlasts_the_last_answer(self, jobs: Jobs) -> None:
        for paused_first in (True, False):
            job_id = await started(jobs)
            if paused_first:
                await jobs.pause(job_id)
            await jobs.apply(_asked(job_id, "q1", "q2"))
            if not paused_first:
                await jobs.pause(job_id, "lunch")
            with pytest.raises(FailedPrecondition) as caught:
                await jobs.pause(job_id)  # it is paused twice over
            assert caught.value.reason == "job_state"
            for question_id in ("q1", "q2"):
                assert (await jobs.answer(job_id, question_id, 1)).state is JobState.PAUSED
            assert await _sent(jobs) == []
            job = await jobs.resume(job_id)
            assert (job.state, job.paused_at) == (JobState.PENDING, None)
            assert await _sent(jobs) == ["root"]

    @pytest.mark.req("GATE-16.1")
    async def test_a_job_that_waits_for_an_answer_cannot_be_resumed_by_hand(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(_asked(job_id, "q1"))
        with pytest.raises(FailedPrecondition) as caught:
            await jobs.resume(job_id)
        assert (caught.value.reason, caught.value.details["state"]) == ("question_open", "paused")
        await jobs.pause(job_id)
        with pytest.raises(FailedPrecondition) as caught:
            await jobs.resume(job_id)
        assert caught.value.reason == "question_open"
        assert (await jobs.answer(job_id, "q1", 1)).state is JobState.PAUSED  # the pause by hand was not lifted

    @pytest.mark.req("GATE-16.1")
    async def test_each_question_is_a_pause_of_its_own(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        keys = set()
        for question_id in ("q1", "q2", "q3"):
            await jobs.apply(_asked(job_id, question_id))
            await jobs.answer(job_id, question_id, question_id)
            ((number, sent),) = await jobs.driver.outbox.take(10)
            await jobs.driver.outbox.done([number])
            keys.add(sent.dedup_key)
        assert len(keys) == 3
        assert [one.content for one in await jobs.questions(job_id)] == ["q1", "q2", "q3"]

    @pytest.mark.req("GATE-16.1")
    async def test_open_questions_are_closed_with_their_job(self, jobs: Jobs) -> None:
        for end in ("cancelled", "succeeded", "failed"):
            job_id = await started(jobs)
            await jobs.apply(_asked(job_id, "q1", "q2"))
            await jobs.answer(job_id, "q1", 1)
            if end == "cancelled":
                await jobs.cancel(job_id)
            else:
                await (succeed(jobs, job_id) if end == "succeeded" else fail(jobs, job_id))
            job = await jobs.get(job_id)
            assert (job.state.value, job.questions) == (end, [])
            assert [one.state for one in await jobs.questions(job_id)] == ["answered", "closed"]
            with pytest.raises(FailedPrecondition) as caught:
                await jobs.answer(job_id, "q2", 1)
            assert caught.value.reason == "job_terminal"
            assert (await jobs.answer(job_id, "q1", 1)).state.value == end  # the same again, which came too late
            late = await applied(jobs, _asked(job_id, "q3"))
            assert (late.applied, late.detail, late.state) == (False, "job_terminal", job.state)
            assert await _sent(jobs) == []

    @pytest.mark.req("GATE-16.1")
    async def test_a_deadline_does_not_pass_while_a_question_is_open(self, jobs: Jobs) -> None:
        job_id, deadline_at = await in_time(jobs, lambda job_id: jobs.apply(_asked(job_id, "q1")))
        await asyncio.sleep(deadline_at / 1000 + 0.1 - time.time())  # that it passes is what is tested
        assert (await jobs.sweep()).timed_out == []
        before = time.time() * 1000
        job = await jobs.answer(job_id, "q1", 1)
        assert job.state is JobState.PENDING
        assert job.deadline_at is not None
        assert job.deadline_at > before, "what was left of its time is left"

    @pytest.mark.req("GATE-16.1")
    async def test_envelopes_that_come_meanwhile_are_parked_until_the_answer(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(_asked(job_id, "q1"))
        assert (await applied(jobs, Park(job_id=job_id, message=message("other")))).applied
        await jobs.answer(job_id, "q1", 1)
        assert sorted(await _sent(jobs)) == ["other", "root"]

    async def test_retention_deletes_questions_with_their_job(self, jobs: Jobs) -> None:
        job_id = new_job().job_id
        for _ in range(2):
            await jobs.create(new_job(job_id=job_id))
            assert await jobs.questions(job_id) == []
            await jobs.apply(_asked(job_id, "q1"))
            await jobs.cancel(job_id)
            jobs.retention = Retention(jobs_s=-1, events_s=-1)
            assert (await jobs.sweep()).jobs_deleted == 1
            jobs.retention = Retention()

    async def test_a_job_asks_a_bounded_number_of_questions(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        for start in range(0, 256, 64):
            ids = [f"q{n}" for n in range(start, start + 64)]
            assert (await applied(jobs, _asked(job_id, *ids))).applied
        outcome = await applied(jobs, _asked(job_id, "q255", "q256"))
        assert (outcome.applied, outcome.detail) == (False, "too_many_questions")
        assert (await applied(jobs, _asked(job_id, "q255"))).detail == "repeated"
        assert len((await jobs.get(job_id)).questions) == 256

    async def test_questions_and_answers_that_are_none_are_refused(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        changes: list[tuple[str, Any]] = [
            ("questions", _asked(job_id)),
            ("questions", _asked(job_id, *map(str, range(65)))),
            ("question_id", _asked(job_id, "a", "a")),
            ("question_id", _asked(job_id, "")),
            ("question_id", _asked(job_id, "a\nb")),
            ("kind", _asked(job_id, "a", kind="guess")),
            ("message", _asked(job_id, "a", message="x" * 16385)),
            ("question_id", Answer(job_id=job_id, question_id="")),
            ("action", Answer(job_id=job_id, question_id="a", action="perhaps")),  # type: ignore[arg-type]
            ("content", Answer(job_id=job_id, question_id="a", action="decline", content=1)),
            ("by", Answer(job_id=job_id, question_id="a", by="x\n")),
        ]
        for field, change in changes:
            with pytest.raises(InvalidArgument, match=rf"^{field}: "):
                await jobs.apply(change)
        assert (await jobs.get(job_id)).state is JobState.PENDING
