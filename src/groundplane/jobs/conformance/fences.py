"""Terms of a leadership that are shown when a job is made: an older one than was seen is refused."""

from __future__ import annotations

import asyncio

import pytest

from groundplane.core.errors import Conflict, InvalidArgument
from groundplane.core.fencing import Fence
from groundplane.jobs.conformance.subjects import OpenJobs, message, new_job
from groundplane.jobs.port import NewJob
from groundplane.jobs.store import Jobs


def _under(term: int, name: str = "planner", **more: object) -> NewJob:
    return new_job(fence=Fence(name, term), **more)


async def _is_refused(jobs: Jobs, new: NewJob, actual: int) -> None:
    with pytest.raises(Conflict) as caught:
        await jobs.create(new, [message("late")])
    assert caught.value.reason == "term_old"
    assert new.fence is not None
    assert caught.value.details == {"name": new.fence.name, "term": new.fence.term, "actual": actual}


class FenceConformance:
    """The fence of a new job."""

    @pytest.mark.req("LEAD-02")
    async def test_a_job_under_an_older_term_than_was_seen_is_refused_and_nothing_of_it_is_there(
        self, jobs: Jobs
    ) -> None:
        first = await jobs.create(_under(7), [message("one")])
        assert (await jobs.create(_under(7), [])).created
        assert (await jobs.create(_under(9), [])).created
        late = _under(8)
        await _is_refused(jobs, late, 9)
        assert await jobs.standing(late.job_id) is None
        assert [one.id for _, one in await jobs.driver.outbox.take(10)] == ["one"]
        assert (await jobs.get(first.job.job_id)).state == "pending"
        assert (await jobs.create(_under(9), [])).created

    @pytest.mark.req("LEAD-02")
    async def test_terms_are_remembered_by_name_and_by_every_process(self, jobs: Jobs, open_jobs: OpenJobs) -> None:
        await jobs.create(_under(5))
        async with open_jobs() as other:
            await _is_refused(other, _under(4), 5)
            assert (await other.create(_under(1, "another"))).created
            assert (await other.create(_under(6))).created
        await _is_refused(jobs, _under(5), 6)
        assert (await jobs.create(new_job())).created

    @pytest.mark.req("LEAD-02")
    async def test_a_repeat_by_its_key_is_refused_under_an_older_term_and_shows_a_newer_one(self, jobs: Jobs) -> None:
        first = await jobs.create(_under(3, idempotency_key="k"))
        again = await jobs.create(_under(5, idempotency_key="k"))
        assert (again.created, again.job.job_id) == (False, first.job.job_id)
        await _is_refused(jobs, _under(4, idempotency_key="k"), 5)

    @pytest.mark.req("LEAD-02")
    async def test_of_terms_that_come_at_once_none_is_made_under_an_older_one_after_a_newer(
        self, jobs: Jobs, open_jobs: OpenJobs
    ) -> None:
        async with open_jobs() as other:
            terms = [term for _ in range(6) for term in (1, 2, 3, 4)]
            outcomes = await asyncio.gather(
                *((jobs, other)[at % 2].create(_under(term)) for at, term in enumerate(terms)), return_exceptions=True
            )
        made = [term for term, one in zip(terms, outcomes, strict=True) if not isinstance(one, BaseException)]
        refused = [one for one in outcomes if isinstance(one, BaseException)]
        assert all(isinstance(one, Conflict) and one.reason == "term_old" for one in refused)
        term_of = {one.job.job_id: term for term, one in zip(terms, outcomes, strict=True) if hasattr(one, "job")}
        events = (await jobs.events(0)).items  # in the order of commit
        order = [term_of[one.job_id] for one in events if one.kind == "created"]
        assert sorted(order) == order
        assert sorted(made) == order
        assert 4 in made

    @pytest.mark.req("LEAD-02")
    @pytest.mark.parametrize("fence", [Fence("", 1), Fence("a b", 1), Fence("planner", 0), Fence("planner", 2**63)])
    async def test_a_fence_that_is_none_is_invalid(self, jobs: Jobs, fence: Fence) -> None:
        with pytest.raises(InvalidArgument, match="fence"):
            await jobs.create(new_job(fence=fence))
