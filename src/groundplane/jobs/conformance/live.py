"""How many jobs of one owner may not have ended: decided in the transaction that creates, whoever else creates too."""

from __future__ import annotations

import asyncio

import pytest

from groundplane.core.errors import AlreadyExists, ResourceExhausted
from groundplane.core.ids import new_id
from groundplane.jobs.conformance.subjects import OpenJobs, history, message, new_job, started, succeed
from groundplane.jobs.port import Created, JobQuery
from groundplane.jobs.store import Jobs


class LiveConformance:
    """`NewJob.live_max`."""

    @pytest.mark.req("GATE-09.1")
    async def test_an_owner_with_as_many_live_jobs_as_it_may_have_gets_no_other_until_one_ends(
        self, jobs: Jobs
    ) -> None:
        first = await started(jobs, owner="me", live_max=2)
        second = await started(jobs, owner="me", live_max=2)
        refused = new_job(owner="me", live_max=2)
        with pytest.raises(ResourceExhausted, match="live_jobs: 2 jobs of this caller have not ended") as caught:
            await jobs.create(refused, [message("e")])
        assert (caught.value.reason, caught.value.details) == ("live_jobs", {"limit": "live_jobs", "max": 2})
        assert {job.job_id for job in (await jobs.list_jobs()).items} == {first, second}
        assert await jobs.driver.outbox.take(10) == []
        await jobs.pause(second)
        with pytest.raises(ResourceExhausted):
            await jobs.create(refused)
        await succeed(jobs, first)
        assert (await jobs.create(refused, [message("e")])).created

    @pytest.mark.req("GATE-09.1")
    async def test_owners_do_not_take_each_others_room_and_none_is_no_limit(self, jobs: Jobs) -> None:
        for _ in range(3):
            await started(jobs, owner="other")
        await started(jobs, owner="me", live_max=1)
        await started(jobs, owner="me")
        await started(jobs, live_max=1)
        with pytest.raises(ResourceExhausted):
            await started(jobs, owner="other", live_max=3)

    @pytest.mark.req("GATE-09.1", "JOB-06.1")
    async def test_repeats_are_told_of_their_job_and_not_refused(self, jobs: Jobs) -> None:
        made = await jobs.create(new_job(owner="me", idempotency_key="k", live_max=1))
        again = await jobs.create(new_job(owner="me", idempotency_key="k", live_max=1))
        assert (again.created, again.job.job_id) == (False, made.job.job_id)
        with pytest.raises(AlreadyExists):
            await jobs.create(new_job(owner="me", job_id=made.job.job_id, live_max=1))

    @pytest.mark.req("GATE-09.1")
    async def test_two_processes_that_create_at_once_never_exceed_the_limit_together(self, open_jobs: OpenJobs) -> None:
        async with open_jobs() as one, open_jobs() as other:
            tries = [
                store.create(new_job(owner=owner, live_max=7), [message(new_id())])
                for _ in range(20)
                for store in (one, other)
                for owner in ("me", "you")
            ]
            outcomes = await asyncio.gather(*tries, return_exceptions=True)
            made = [found for found in outcomes if isinstance(found, Created)]
            refused = [found for found in outcomes if isinstance(found, ResourceExhausted)]
            assert (len(made), len(refused)) == (14, 66)
            for owner in ("me", "you"):
                assert len((await one.list_jobs(JobQuery(owner=owner, limit=100))).items) == 7

    @pytest.mark.req("GATE-09.1", "JOB-06.1")
    async def test_repeats_that_come_together_with_new_jobs_leave_them_the_room_that_there_is(self, jobs: Jobs) -> None:
        keyed = [jobs.create(new_job(owner="me", idempotency_key="k", live_max=3)) for _ in range(5)]
        fresh = [jobs.create(new_job(owner="me", live_max=3)) for _ in range(2)]
        outcomes = await asyncio.gather(*keyed, *fresh)
        assert [found.created for found in outcomes].count(True) == 3
        assert len({found.job.job_id for found in outcomes}) == 3
        with pytest.raises(ResourceExhausted):
            await jobs.create(new_job(owner="me", live_max=3))

    async def test_a_refusal_leaves_nothing_in_the_log(self, jobs: Jobs) -> None:
        kept = await started(jobs, owner="me", live_max=1)
        newest = (await jobs.events(0, limit=0)).last_id
        with pytest.raises(ResourceExhausted):
            await started(jobs, owner="me", live_max=1)
        assert (await jobs.events(0, limit=0)).last_id == newest
        assert len(await history(jobs, kept)) == 1
