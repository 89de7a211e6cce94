"""Creating, reading, ending: the record, its progress, its idempotency key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from groundplane.core.errors import AlreadyExists, Conflict, InvalidArgument, NotFound
from groundplane.core.ids import new_id
from groundplane.jobs.conformance.subjects import (
    BROKEN,
    OpenJobs,
    applied,
    fail,
    history,
    kinds,
    message,
    new_job,
    report,
    started,
    succeed,
)
from groundplane.jobs.port import Finish, JobQuery, JobState, Note
from groundplane.jobs.store import Jobs


class RecordConformance:
    """The record of one job."""

    @pytest.mark.req("JOB-01.1")
    async def test_a_new_job_is_pending_at_zero_with_all_that_it_was_made_from(self, jobs: Jobs) -> None:
        new = new_job(owner="me", deadline_at=4_102_444_800_000, token_hash="t", trace="00-1", arguments=[None, "ä"])
        created = await jobs.create(new, [message("e")])
        job = await jobs.get(new.job_id)
        assert created.created
        assert created.job == job
        assert (job.state, job.progress, job.steps_completed, job.total_steps) == (JobState.PENDING, 0.0, 0, 2)
        assert (job.owner, job.deadline_at, job.token_hash, job.trace) == ("me", new.deadline_at, "t", "00-1")
        assert (job.route, job.arguments, job.tool) == (["first", "second"], [None, "ä"], "pipeline")
        assert (job.result, job.error, job.finished_at, job.paused_at) == (None, None, None, None)
        assert job.last_event_id == (await history(jobs, new.job_id))[-1].id > 0

    async def test_an_unknown_job_is_not_found(self, jobs: Jobs) -> None:
        for call in (
            jobs.get("nobody"),
            jobs.get("\ud800"),
            jobs.events(0, "nobody"),
            jobs.cancel("nobody"),
            jobs.wait_finished("nobody"),
        ):
            with pytest.raises(NotFound) as caught:
                await call
            assert caught.value.reason == "job_not_found"
        outcome = await succeed(jobs, "nobody")
        assert (outcome.applied, outcome.state) == (False, None)

    async def test_a_known_id_is_refused(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        with pytest.raises(AlreadyExists, match="job_id"):
            await jobs.create(new_job(job_id=job_id), [message("e")])
        assert await kinds(jobs, job_id) == ["created"]
        assert await jobs.driver.outbox.take(10) == []

    @pytest.mark.req("JOB-05.2", "JOB-05.3", "JOB-05.5", "JOB-01.1")
    @pytest.mark.parametrize(
        ("hops", "wanted"), [(2, [5, 25, 50, 55, 75, 100]), (1, [10, 50, 100]), (4, [2, 12, 25, 27, 37, 50])]
    )
    async def test_progress_passes_its_checkpoints_and_ends_at_100(
        self, jobs: Jobs, hops: int, wanted: list[int]
    ) -> None:
        job_id = await started(jobs, route=["a"] * hops)
        seen: list[float] = []
        steps: list[int] = []
        for hop in range(min(hops, 2)):
            for weight in (10, 50, 100):
                assert (await applied(jobs, report(job_id, hop, weight, hops=hops))).state is JobState.RUNNING
                job = await jobs.get(job_id)
                seen.append(job.progress)
                steps.append(job.steps_completed)
                assert job.progress < 100
                assert (job.actor, job.total_steps) == (f"a{hop}", hops)
        if hops < 3:
            await succeed(jobs, job_id)
            seen[-1] = (await jobs.get(job_id)).progress
        assert seen == pytest.approx(wanted, abs=1)
        assert seen == sorted(seen)
        assert steps == [hop + done for hop in range(min(hops, 2)) for done in (0, 0, 1)]

    @pytest.mark.req("JOB-05.3")
    async def test_progress_never_decreases_when_a_hop_is_repeated(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(report(job_id, 1, 50), report(job_id, 0, 10, message="again"))
        job = await jobs.get(job_id)
        assert (job.progress, job.steps_completed, job.message) == (75.0, 1, "again")
        progress = [event.data["progress"] for event in await history(jobs, job_id)]
        assert progress == sorted(progress)

    @pytest.mark.req("JOB-05.4", "JOB-05.5")
    async def test_a_failed_job_stays_below_100_and_keeps_its_error(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(report(job_id, 1, 100))
        assert (await fail(jobs, job_id)).state is JobState.FAILED
        job = await jobs.get(job_id)
        assert (job.state, job.error, job.result) == (JobState.FAILED, BROKEN, None)
        assert job.progress < 100
        assert job.finished_at is not None
        final = (await history(jobs, job_id))[-1]
        assert (final.kind, final.data["error"]["message"]) == ("failed", "it broke")
        assert "traceback" not in final.data["error"]

    @pytest.mark.req("JOB-07.1")
    @pytest.mark.parametrize("result", [None, 0, [], {"a": [1, None, "ä"]}, b"\x00\xff", "x" * 100_000])
    async def test_a_result_can_be_read_again_and_again(self, open_jobs: OpenJobs, jobs: Jobs, result: Any) -> None:
        job_id = await started(jobs)
        await applied(jobs, Finish(job_id=job_id, envelope_id="root", result=result, result_key="results/1"))
        async with open_jobs() as other:
            for _ in range(2):
                job = await other.get(job_id)
                assert (job.state, job.progress, job.result) == (JobState.SUCCEEDED, 100.0, result)
                assert (job.result_key, job.steps_completed) == ("results/1", 2)

    @pytest.mark.req("JOB-12.4", "JOB-05.5")
    async def test_an_aborted_job_succeeded_early(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(report(job_id, 0, 100))
        await applied(jobs, Finish(job_id=job_id, envelope_id="root", result={"in": 1}, aborted=True))
        job = await jobs.get(job_id)
        assert (job.state, job.aborted, job.progress, job.result) == (JobState.SUCCEEDED, True, 100.0, {"in": 1})
        assert (job.steps_completed, job.total_steps) == (1, 2)
        assert (await history(jobs, job_id))[-1].data["aborted"] is True

    @pytest.mark.req("JOB-01.2", "JOB-01.3", "JOB-01.4")
    async def test_a_terminal_state_never_changes_and_the_loser_is_an_event(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.cancel(job_id, "enough")
        before = await jobs.get(job_id)
        for change in (report(job_id, 0, 50), Finish(job_id=job_id, envelope_id="root", result=1)):
            outcome = await applied(jobs, change)
            assert (outcome.applied, outcome.state) == (False, JobState.CANCELLED)
        after = await jobs.get(job_id)
        assert (after.state, after.progress, after.result, after.finished_at) == (
            JobState.CANCELLED,
            0.0,
            None,
            before.finished_at,
        )
        assert await kinds(jobs, job_id) == ["created", "cancelled", "late"]
        assert (await history(jobs, job_id))[-1].data["outcome"] == "succeeded"

    @pytest.mark.req("JOB-01.4")
    async def test_an_outcome_delivered_twice_is_one_event(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        first, second = await succeed(jobs, job_id, 1), await succeed(jobs, job_id, 1)
        assert (first.applied, second.applied, second.detail) == (True, False, "repeated")
        assert await kinds(jobs, job_id) == ["created", "succeeded"]
        late = await started(jobs)
        await jobs.cancel(late)
        assert [(await fail(jobs, late)).detail for _ in range(2)] == ["late", "repeated"]
        assert await kinds(jobs, late) == ["created", "cancelled", "late"]

    @pytest.mark.req("JOB-01.2")
    async def test_of_many_outcomes_at_once_one_wins(self, open_jobs: OpenJobs, jobs: Jobs) -> None:
        job_id = await started(jobs)
        async with open_jobs() as other:
            outcomes = await asyncio.gather(
                *(succeed(jobs, job_id, n, f"e{n}") for n in range(4)),
                *(fail(other, job_id, f"f{n}") for n in range(4)),
                *(applied(other, report(job_id, 0, 50)) for _ in range(2)),
            )
        assert sum(one.applied for one in outcomes[:8]) == 1
        assert (await kinds(jobs, job_id)).count("late") == 7

    @pytest.mark.req("JOB-06.1", "JOB-06.2", "JOB-06.3")
    async def test_an_idempotency_key_names_one_job_of_its_owner(self, jobs: Jobs) -> None:
        first = await jobs.create(new_job(owner="me", idempotency_key="k"), [message("e1")])
        again = await jobs.create(new_job(owner="me", idempotency_key="k"), [message("e2")])
        assert (again.created, again.job) == (False, first.job)
        other = await jobs.create(new_job(owner="you", idempotency_key="k"), [message("e3")])
        assert other.created
        for changed in ({"arguments_hash": "else"}, {"tool": "else"}):
            with pytest.raises(Conflict) as caught:
                await jobs.create(new_job(owner="me", idempotency_key="k", **changed))
            assert caught.value.reason == "idempotency_mismatch"
        assert [one.id for _, one in await jobs.driver.outbox.take(10)] == ["e1", "e3"]

    @pytest.mark.req("JOB-06.1")
    async def test_of_many_creations_with_one_key_one_makes_the_job(self, open_jobs: OpenJobs, jobs: Jobs) -> None:
        async with open_jobs() as other:
            made = await asyncio.gather(
                *(one.create(new_job(idempotency_key="k"), [message(new_id())]) for one in (jobs, other) * 8)
            )
        assert sum(one.created for one in made) == 1
        assert len({one.job.job_id for one in made}) == 1
        assert len(await jobs.driver.outbox.take(100)) == 1

    @pytest.mark.req("JOB-07.1")
    async def test_a_listing_is_newest_first_filtered_and_goes_on_from_its_cursor(self, jobs: Jobs) -> None:
        ids = [await started(jobs, owner=f"o{n % 2}", tool=f"t{n % 3}") for n in range(12)]
        await succeed(jobs, ids[3])
        assert [job.job_id for job in (await jobs.list_jobs()).items] == ids[::-1]
        found: list[str] = []
        cursor = None
        while True:
            page = await jobs.list_jobs(JobQuery(owner="o1", limit=4, cursor=cursor))
            found += [job.job_id for job in page.items]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == ids[1::2][::-1]
        tools = await jobs.list_jobs(JobQuery(tool="t0", owner="o1"))
        assert [job.job_id for job in tools.items] == [ids[9], ids[3]]
        done = await jobs.list_jobs(JobQuery(states=[JobState.SUCCEEDED, JobState.FAILED]))
        assert [(job.job_id, job.result, job.arguments) for job in done.items] == [(ids[3], None, None)]
        with pytest.raises(InvalidArgument, match="cursor"):
            await jobs.list_jobs(JobQuery(cursor="-1 OR 1"))

    async def test_all_changes_of_a_call_are_judged_in_order(self, jobs: Jobs) -> None:
        one, other = await started(jobs), await started(jobs)
        outcomes = await jobs.apply(
            report(one, 0, 50),
            Finish(job_id=one, envelope_id="root", result=1),
            report(one, 1, 50),
            Note(job_id=other, kind="retry", data={"attempt": 2}),
            Note(job_id="nobody", kind="retry"),
        )
        assert [outcome.applied for outcome in outcomes] == [True, True, False, True, False]
        assert (await history(jobs, other))[-1].data["attempt"] == 2

    async def test_values_that_cannot_be_stored_are_refused_and_change_nothing(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        for change in (
            Finish(job_id=job_id, envelope_id="root", result=object()),
            Note(job_id=job_id, kind="retry", data={"a": object()}),
        ):
            with pytest.raises(InvalidArgument, match="cannot be stored"):
                await jobs.apply(report(job_id, 0, 50), change)
        with pytest.raises(InvalidArgument, match="cannot be stored"):
            await jobs.create(new_job(arguments={1j}))
        assert await kinds(jobs, job_id) == ["created"]

    @pytest.mark.parametrize(
        "fields",
        [
            {"job_id": ""},
            {"tool": ""},
            {"route": []},
            {"idempotency_key": ""},
            {"owner": "x" * 256},
            {"deadline_at": 0},
            {"deadline_at": 2**70},
            {"owner": "a\x00b"},
            {"idempotency_key": "\ud800"},
        ],
    )
    async def test_a_job_that_is_none_is_refused(self, jobs: Jobs, fields: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgument, match=f"^{next(iter(fields))}: "):
            await jobs.create(new_job(**fields))
        assert (await jobs.list_jobs()).items == []
