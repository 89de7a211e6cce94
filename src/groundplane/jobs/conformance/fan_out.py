"""Jobs of several branches: split, progress as a mean, results by index, joins."""

from __future__ import annotations

import pytest

from groundplane.jobs.conformance.subjects import applied, fail, history, kinds, report, started, succeed
from groundplane.jobs.port import Finish, JobState, Joined, Outcome, Split
from groundplane.jobs.store import Jobs


async def _split(jobs: Jobs, job_id: str, children: list[str], envelope_id: str = "root") -> Outcome:
    return await applied(jobs, Split(job_id=job_id, envelope_id=envelope_id, children=children))


async def _join(jobs: Jobs, job_id: str, envelope_id: str, parent_id: str = "root") -> Outcome:
    return await applied(jobs, Joined(job_id=job_id, parent_id=parent_id, envelope_id=envelope_id))


class FanOutConformance:
    """What becomes of a job when its envelope has children."""

    @pytest.mark.req("JOB-12.1", "JOB-07.1")
    async def test_a_fan_out_succeeds_with_all_results_by_index(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(report(job_id, 0, 100))
        assert (await _split(jobs, job_id, ["c0", "c1", "c2"])).applied
        for child in ("c2", "c0"):
            outcome = await succeed(jobs, job_id, f"of {child}", child)
            assert (outcome.applied, outcome.state) == (True, JobState.RUNNING)
        assert (await succeed(jobs, job_id, None, "c1")).state is JobState.SUCCEEDED
        job = await jobs.get(job_id)
        assert (job.result, job.progress, job.steps_completed) == (["of c0", None, "of c2"], 100.0, 2)
        split, *branches = (await history(jobs, job_id))[2:-1]
        assert (split.kind, split.data["children"]) == ("split", ["c0", "c1", "c2"])
        assert [(one.kind, one.data["index"], one.data["total"]) for one in branches] == [
            ("branch", 2, 3),
            ("branch", 0, 3),
            ("branch", 1, 3),
        ]

    @pytest.mark.req("JOB-12.1")
    async def test_results_of_nested_fan_outs_are_nested(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await _split(jobs, job_id, ["a", "b"])
        await _split(jobs, job_id, ["b0", "b1"], "b")
        await succeed(jobs, job_id, 1, "b1")
        await succeed(jobs, job_id, 2, "a")
        assert (await succeed(jobs, job_id, 3, "b0")).state is JobState.SUCCEEDED
        assert (await jobs.get(job_id)).result == [2, [3, 1]]

    @pytest.mark.req("JOB-12.2")
    async def test_one_failed_child_fails_the_job_and_the_others_results_are_kept(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await _split(jobs, job_id, ["c0", "c1", "c2"])
        assert (await fail(jobs, job_id, "c1")).state is JobState.RUNNING  # the others are still at work
        await succeed(jobs, job_id, "kept 0", "c0")
        assert (await succeed(jobs, job_id, "kept 2", "c2")).state is JobState.FAILED
        job = await jobs.get(job_id)
        assert job.error is not None
        assert (job.error.message, job.error.reason) == ("it broke", "processing_error")
        assert job.error.details == {"attempt": 1, "failed": 1, "results": ["kept 0", None, "kept 2"]}
        assert job.progress < 100
        assert "results" not in (await history(jobs, job_id))[-1].data["error"]

    @pytest.mark.req("JOB-12.3", "JOB-05.3")
    async def test_progress_of_a_fan_out_is_the_mean_of_its_children(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(report(job_id, 0, 100))
        await _split(jobs, job_id, ["c0", "c1"])
        assert (await jobs.get(job_id)).progress == 50.0
        await jobs.apply(report(job_id, 1, 50, envelope_id="c0"))
        assert (await jobs.get(job_id)).progress == pytest.approx(62.5)
        await succeed(jobs, job_id, 1, "c0")
        assert (await jobs.get(job_id)).progress == pytest.approx(75.0)
        await _split(jobs, job_id, ["d0", "d1"], "c1")
        await jobs.apply(report(job_id, 1, 50, envelope_id="d1"))
        job = await jobs.get(job_id)
        assert job.progress == pytest.approx((100 + (50 + 75) / 2) / 2)
        assert (job.steps_completed, job.total_steps) == (1, 2)
        progress = [event.data["progress"] for event in await history(jobs, job_id)]
        assert progress == sorted(progress)

    @pytest.mark.req("JOB-12.4")
    async def test_an_aborted_branch_counts_as_a_result(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await _split(jobs, job_id, ["c0", "c1"])
        await applied(jobs, Finish(job_id=job_id, envelope_id="c0", result={"in": 1}, aborted=True))
        await succeed(jobs, job_id, 2, "c1")
        job = await jobs.get(job_id)
        assert (job.state, job.result, job.aborted) == (JobState.SUCCEEDED, [{"in": 1}, 2], False)

    @pytest.mark.req("JOB-12.1")
    async def test_repeated_reports_of_a_fan_out_change_nothing(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await _split(jobs, job_id, ["c0", "c1"])
        await succeed(jobs, job_id, 1, "c0")
        for repeat in (await _split(jobs, job_id, ["c0", "c1"]), await succeed(jobs, job_id, 9, "c0")):
            assert (repeat.applied, repeat.detail, repeat.state) == (False, "repeated", JobState.RUNNING)
        await succeed(jobs, job_id, 2, "c1")
        assert (await succeed(jobs, job_id, 9, "c1")).detail == "repeated"
        assert (await jobs.get(job_id)).result == [1, 2]
        assert await kinds(jobs, job_id) == ["created", "split", "branch", "branch", "succeeded"]

    @pytest.mark.req("JOB-12.1")
    async def test_a_handler_that_ran_again_and_made_other_children_replaces_those_never_heard_of(
        self, jobs: Jobs
    ) -> None:
        job_id = await started(jobs)
        await _split(jobs, job_id, ["c0", "c1", "c2"])
        assert (await _split(jobs, job_id, ["c0", "c1"])).applied
        await succeed(jobs, job_id, 1, "c0")
        refused = await _split(jobs, job_id, ["c0"])
        assert (refused.applied, refused.detail) == (False, "late")
        assert (await succeed(jobs, job_id, 2, "c1")).state is JobState.SUCCEEDED
        assert (await jobs.get(job_id)).result == [1, 2]

    @pytest.mark.req("JOB-12.1", "JOB-12.2")
    @pytest.mark.parametrize("envelope_id", ["root", "b"])
    async def test_a_handler_that_split_and_then_ran_again_to_another_end_takes_its_children_back(
        self, jobs: Jobs, envelope_id: str
    ) -> None:
        job_id = await started(jobs)
        if envelope_id == "b":
            await _split(jobs, job_id, ["a", "b"])
            await succeed(jobs, job_id, "of a", "a")
        await _split(jobs, job_id, ["c0", "c1"], envelope_id)
        assert (await fail(jobs, job_id, envelope_id)).state is JobState.FAILED
        error = (await jobs.get(job_id)).error
        assert error is not None
        assert error.details.get("results") == (["of a", None] if envelope_id == "b" else None)
        assert (await succeed(jobs, job_id, 1, "c0")).detail == "late"

    @pytest.mark.req("JOB-12.1")
    async def test_a_split_is_not_taken_back_once_a_child_was_heard_of(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(report(job_id, 1, 50))
        await _split(jobs, job_id, ["c0"])
        await jobs.apply(report(job_id, 0, 10, envelope_id="c0"))  # it does not move the mean
        assert (await fail(jobs, job_id)).detail == "late"
        assert (await _split(jobs, job_id, ["c0", "c1"])).detail == "late"
        assert (await succeed(jobs, job_id, 1, "c0")).state is JobState.SUCCEEDED
        assert (await jobs.get(job_id)).result == [1]

    @pytest.mark.req("JOB-01.2", "JOB-12.1")
    async def test_a_split_of_a_job_that_has_ended_is_not_applied(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.cancel(job_id)
        outcome = await _split(jobs, job_id, ["c0"])
        assert (outcome.applied, outcome.state) == (False, JobState.CANCELLED)
        outcome = await _join(jobs, job_id, "j")
        assert (outcome.applied, outcome.state) == (False, JobState.CANCELLED)
        assert await kinds(jobs, job_id) == ["created", "cancelled"]

    async def test_an_envelope_that_the_tree_does_not_know_changes_nothing(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await _split(jobs, job_id, ["c0", "c1"])
        stranger = report(job_id, 1, 50, envelope_id="stranger")
        assert (await applied(jobs, stranger)).detail == "unknown_branch"
        assert (await _split(jobs, job_id, ["x"], "stranger")).detail == "unknown_branch"
        assert (await _join(jobs, job_id, "j", "stranger")).detail == "unknown_branch"
        assert (await succeed(jobs, job_id, 1, "stranger")).detail == "late"
        assert (await jobs.get(job_id)).progress == 0.0

    @pytest.mark.req("JOB-12.1")
    async def test_a_join_stands_for_its_children(self, jobs: Jobs) -> None:
        job_id = await started(jobs, route=["split", "work", "join"])
        await jobs.apply(report(job_id, 0, 100, hops=3))
        await _split(jobs, job_id, ["c0", "c1"])
        await jobs.apply(report(job_id, 1, 100, hops=3, envelope_id="c0"))
        await jobs.apply(report(job_id, 1, 100, hops=3, envelope_id="c1"))
        assert (await _join(jobs, job_id, "j")).applied
        assert (await _join(jobs, job_id, "j")).detail == "repeated"
        await jobs.apply(report(job_id, 2, 50, hops=3, envelope_id="j"))
        job = await jobs.get(job_id)
        assert job.progress == pytest.approx((200 + 50) / 3)
        assert (await succeed(jobs, job_id, "joined", "j")).state is JobState.SUCCEEDED
        assert (await jobs.get(job_id)).result == "joined"

    @pytest.mark.req("JOB-12.2", "JOB-12.1")
    async def test_a_failed_branch_that_a_join_stands_for_does_not_fail_the_job(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await _split(jobs, job_id, ["c0", "c1", "c2"])
        assert (await fail(jobs, job_id, "c1", holds=True)).state is JobState.RUNNING
        await _join(jobs, job_id, "j")  # by its deadline: c2 had not arrived
        late = await succeed(jobs, job_id, 2, "c2")
        assert (late.applied, late.detail) == (False, "late")
        assert (await applied(jobs, report(job_id, 1, 50, envelope_id="c2"))).detail == "late"
        assert (await succeed(jobs, job_id, "partial", "j")).state is JobState.SUCCEEDED
        assert (await jobs.get(job_id)).result == "partial"
        assert (await kinds(jobs, job_id))[-3:] == ["late", "branch", "succeeded"]

    @pytest.mark.req("JOB-12.2")
    async def test_when_every_branch_of_a_join_has_failed_nothing_can_arrive_and_the_job_fails(
        self, jobs: Jobs
    ) -> None:
        job_id = await started(jobs)
        await _split(jobs, job_id, ["c0", "c1"])
        await fail(jobs, job_id, "c0", holds=True)
        assert (await fail(jobs, job_id, "c1", holds=True)).state is JobState.FAILED
        error = (await jobs.get(job_id)).error
        assert error is not None
        assert error.details["failed"] == 2

    @pytest.mark.req("JOB-12.1")
    async def test_a_join_inside_a_fan_out_stands_in_its_parents_place(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await _split(jobs, job_id, ["a", "b"])
        await _split(jobs, job_id, ["a0", "a1"], "a")
        await _split(jobs, job_id, ["a00", "a01"], "a0")
        assert (await _join(jobs, job_id, "j", "a")).applied
        assert (await succeed(jobs, job_id, 0, "a00")).detail == "late"
        await succeed(jobs, job_id, "b", "b")
        assert (await succeed(jobs, job_id, "joined", "j")).state is JobState.SUCCEEDED
        assert (await jobs.get(job_id)).result == ["joined", "b"]

    @pytest.mark.req("JOB-12.2")
    async def test_a_branch_that_failed_for_good_fails_the_job_even_after_a_join(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await _split(jobs, job_id, ["c0", "c1"])
        await fail(jobs, job_id, "c0")
        await _join(jobs, job_id, "j")
        assert (await succeed(jobs, job_id, "joined", "j")).state is JobState.FAILED

    @pytest.mark.req("JOB-12.1")
    async def test_a_thousand_children_are_one_result(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        children = [f"c{n}" for n in range(1000)]
        await _split(jobs, job_id, children)
        await jobs.apply(*(Finish(job_id=job_id, envelope_id=child, result=child) for child in reversed(children)))
        job = await jobs.get(job_id)
        assert (job.state, job.result) == (JobState.SUCCEEDED, children)
