"""Cancel, pause, resume; envelopes parked meanwhile; closing."""

from __future__ import annotations

import asyncio
import time

import pytest

from groundplane.core.errors import Closed, FailedPrecondition, InvalidArgument
from groundplane.jobs.conformance.subjects import (
    OpenJobs,
    applied,
    history,
    kinds,
    message,
    new_job,
    report,
    started,
    succeed,
)
from groundplane.jobs.port import Control, JobState, OutboxMessage, Park, Split
from groundplane.jobs.store import Jobs


class ControlConformance:
    """What people and clients do to a job."""

    @pytest.mark.req("JOB-07.1")
    async def test_cancelling_ends_a_job_in_any_live_state(self, jobs: Jobs) -> None:
        for prepare in ("pending", "running", "paused"):
            job_id = await started(jobs)
            if prepare != "pending":
                await jobs.apply(report(job_id, 0, 50))
            if prepare == "paused":
                await jobs.pause(job_id)
            job = await jobs.cancel(job_id, "no longer wanted")
            assert (job.state, job.message, job.paused_at) == (JobState.CANCELLED, "no longer wanted", None)
            assert job.progress < 100

    @pytest.mark.req("JOB-07.1", "JOB-01.2")
    async def test_what_the_state_forbids_is_refused_with_the_state(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        with pytest.raises(FailedPrecondition) as caught:
            await jobs.resume(job_id)
        assert (caught.value.reason, caught.value.details["state"]) == ("job_state", "pending")
        await jobs.pause(job_id)
        with pytest.raises(FailedPrecondition):
            await jobs.pause(job_id)
        await jobs.cancel(job_id)
        for call in (jobs.cancel, jobs.pause, jobs.resume):
            with pytest.raises(FailedPrecondition) as caught:
                await call(job_id)
            assert caught.value.reason == "job_terminal"
        assert await kinds(jobs, job_id) == ["created", "paused", "cancelled"]

    @pytest.mark.req("JOB-07.1")
    async def test_a_pause_freezes_the_deadline(self, jobs: Jobs) -> None:
        deadline = round(time.time() * 1000) + 60_000
        job_id = await started(jobs, deadline_at=deadline)
        await jobs.apply(report(job_id, 0, 50))
        paused = await jobs.pause(job_id, "lunch")
        assert (paused.state, paused.deadline_at) == (JobState.PAUSED, deadline)
        assert paused.paused_at is not None
        await asyncio.sleep(0.05)  # the length of the pause is what is measured
        resumed = await jobs.resume(job_id)
        assert resumed.deadline_at is not None
        assert (resumed.state, resumed.paused_at) == (JobState.RUNNING, None)
        assert 45 <= resumed.deadline_at - deadline <= 5_000
        event = (await history(jobs, job_id))[-1]
        assert (event.kind, event.data["deadline_at"]) == ("resumed", resumed.deadline_at)

    @pytest.mark.req("JOB-07.1")
    async def test_a_job_paused_before_it_began_is_pending_again(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.pause(job_id)
        assert (await jobs.resume(job_id)).state is JobState.PENDING

    @pytest.mark.req("JOB-07.1")
    async def test_work_that_was_under_way_may_end_while_the_job_is_paused(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.pause(job_id)
        assert (await applied(jobs, report(job_id, 0, 50))).state is JobState.PAUSED
        assert (await jobs.get(job_id)).progress == 25.0
        assert (await succeed(jobs, job_id, 1)).state is JobState.SUCCEEDED

    @pytest.mark.req("JOB-07.1")
    async def test_a_parked_envelope_waits_for_resume_and_is_then_sent_under_a_key_of_its_own(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.pause(job_id)
        parked = message("e1", "second", 1)
        assert (await applied(jobs, Park(job_id=job_id, message=parked))).applied
        again = await applied(jobs, Park(job_id=job_id, message=parked))  # its delivery was repeated
        assert (again.applied, again.detail, again.state) == (False, "repeated", JobState.PAUSED)
        assert await jobs.driver.outbox.take(10) == []
        await jobs.resume(job_id)
        ((_, first),) = await jobs.driver.outbox.take(10)
        assert (first.id, first.queue, first.payload, first.headers) == ("e1", "second", b"\x80\x00", {"a": "ä"})
        assert first.dedup_key != parked.dedup_key  # the queue has seen that one, and would drop it
        await jobs.pause(job_id)
        await jobs.apply(Park(job_id=job_id, message=parked))
        await jobs.resume(job_id)
        ((_, second),) = await jobs.driver.outbox.take(10)
        assert second.dedup_key not in (parked.dedup_key, first.dedup_key)

    @pytest.mark.req("JOB-07.1")
    async def test_an_envelope_parked_after_resume_is_sent_at_once(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.pause(job_id)
        await jobs.resume(job_id)
        async with jobs.watch("outbox") as watch:
            outcome = await applied(jobs, Park(job_id=job_id, message=message("e1")))
            assert await watch.wait(5)
        assert (outcome.applied, outcome.state) == (True, JobState.PENDING)
        ((_, sent),) = await jobs.driver.outbox.take(10)
        assert sent.id == "e1"

    @pytest.mark.req("JOB-07.1")
    async def test_what_was_parked_for_a_job_that_is_cancelled_is_never_sent(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.pause(job_id)
        await jobs.apply(Park(job_id=job_id, message=message("e1")))
        await jobs.cancel(job_id)
        late = await applied(jobs, Park(job_id=job_id, message=message("e2")))
        assert (late.applied, late.state) == (False, JobState.CANCELLED)
        assert await jobs.driver.outbox.take(10) == []
        assert (await jobs.sweep()).outbox == 0

    async def test_changes_that_are_none_are_refused(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        with pytest.raises(InvalidArgument, match=r"^action: 'stop'"):
            await jobs.apply(Control(job_id=job_id, action="stop"))
        for children in ([], ["a", "a"], ["root"]):
            with pytest.raises(InvalidArgument, match=r"^children: "):
                await jobs.apply(Split(job_id=job_id, envelope_id="root", children=children))
        with pytest.raises(InvalidArgument, match=r"^messages: "):
            await jobs.create(new_job(), [OutboxMessage(queue="", id="e", payload=b"", dedup_key="k")])

    async def test_after_closing_every_call_raises_closed(self, open_jobs: OpenJobs) -> None:
        async with open_jobs() as jobs:
            job_id = await started(jobs)
            await asyncio.gather(jobs.aclose(), jobs.aclose())
            for call in (jobs.get(job_id), jobs.list_jobs(), jobs.apply(report(job_id, 0, 1)), jobs.sweep()):
                with pytest.raises(Closed):
                    await call

    async def test_closing_ends_those_who_wait(self, open_jobs: OpenJobs) -> None:
        async with open_jobs() as jobs:
            job_id = await started(jobs)
            followed = jobs.follow(job_id)
            assert (await anext(followed)).kind == "created"
            waiters = [
                asyncio.create_task(jobs.wait_finished(job_id)),
                asyncio.ensure_future(anext(followed)),
            ]
            relay = asyncio.create_task(jobs.run_relay(_refuse))
            await asyncio.sleep(0)
            async with asyncio.timeout(10):
                await jobs.aclose()
                results = await asyncio.gather(*waiters, return_exceptions=True)
                await relay  # it ends by itself
        assert [type(one) for one in results] == [Closed, Closed]


async def _refuse(messages: list[OutboxMessage]) -> None:
    raise AssertionError(messages)
