"""The event log: order, gaps, following, waiting."""

from __future__ import annotations

import asyncio

import pytest

from groundplane.core.errors import Closed, InvalidArgument, NotFound
from groundplane.jobs.conformance.subjects import (
    OpenJobs,
    applied,
    eventually,
    fail,
    history,
    report,
    started,
    succeed,
)
from groundplane.jobs.feed import BUFFER_MAX
from groundplane.jobs.port import JobEvent, JobState, Note, Retention
from groundplane.jobs.store import Jobs


async def _followed(jobs: Jobs, job_id: str, after: int = 0) -> list[JobEvent]:
    async with asyncio.timeout(20):
        return [event async for event in jobs.follow(job_id, after)]


class LogConformance:
    """What readers of the log may rely on."""

    @pytest.mark.req("JOB-03.1", "JOB-03.2")
    async def test_ids_rise_over_all_jobs_in_the_order_of_commit(self, jobs: Jobs) -> None:
        ids = [await started(jobs) for _ in range(3)]
        await asyncio.gather(*(jobs.apply(report(job_id, 0, 50)) for job_id in ids))
        page = await jobs.events()
        assert [event.id for event in page.items] == sorted({event.id for event in page.items})
        assert len(page.items) == 6
        assert page.last_id == page.items[-1].id
        assert not page.truncated

    @pytest.mark.req("JOB-03.1")
    async def test_pages_of_events_go_on_from_their_last_id(self, jobs: Jobs) -> None:
        job_id, other = await started(jobs), await started(jobs)
        for n in range(7):
            await jobs.apply(Note(job_id=job_id, kind="retry", data={"n": n}))
        found: list[int] = []
        after = 0
        while True:
            page = await jobs.events(after, job_id, 3)
            found += [event.id for event in page.items]
            after = page.last_id
            if len(page.items) < 3:
                break
        assert found == [event.id for event in await history(jobs, job_id)]
        newest = await jobs.events(limit=0)
        assert (newest.items, newest.last_id) == ([], found[-1])
        assert (await jobs.events(newest.last_id)).items == []
        assert len(await history(jobs, other)) == 1
        with pytest.raises(InvalidArgument, match="limit"):
            await jobs.events(limit=-1)
        for after in (-1, 2**63):
            with pytest.raises(InvalidArgument, match="after"):
                await jobs.events(after)

    @pytest.mark.req("JOB-03.3", "JOB-09.2")
    async def test_a_reader_beside_many_writers_skips_nothing(self, open_jobs: OpenJobs, jobs: Jobs) -> None:
        seen: list[int] = []
        notes = 200

        async def read(store: Jobs) -> None:
            after = 0
            async with store.watch() as watch:
                while sum(1 for _ in seen) < notes + 4:
                    page = await store.events(after, limit=7)
                    seen.extend(event.id for event in page.items)
                    after = page.last_id
                    if len(page.items) < 7:
                        await watch.wait(0.2)

        async with open_jobs() as other, open_jobs() as third:
            job_ids = [await started(jobs) for _ in range(4)]
            async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
                tasks.create_task(read(third))
                for number in range(notes):
                    store = (jobs, other)[number % 2]
                    tasks.create_task(store.apply(Note(job_id=job_ids[number % 4], kind="retry")))
        everything = [event.id for event in (await jobs.events(limit=1000)).items]
        assert seen == everything

    @pytest.mark.req("JOB-03.2")
    async def test_a_follower_gets_history_then_live_events_and_ends_with_the_final_one(
        self, open_jobs: OpenJobs, jobs: Jobs
    ) -> None:
        job_id = await started(jobs)
        await jobs.apply(report(job_id, 0, 10))
        async with open_jobs() as other:  # two followers of two processes
            followers = [asyncio.create_task(_followed(store, job_id)) for store in (jobs, other)]
            await eventually(lambda: _has_followers(other))
            for weight in (50, 100):
                await jobs.apply(report(job_id, 0, weight))
            await succeed(jobs, job_id)
            async with asyncio.timeout(10):
                first, second = await asyncio.gather(*followers)
        assert first == second == await history(jobs, job_id)
        assert [event.kind for event in first] == ["created", *["progress"] * 3, "succeeded"]

    @pytest.mark.req("JOB-03.2")
    async def test_following_goes_on_after_the_last_id_that_was_seen(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.apply(report(job_id, 0, 10), report(job_id, 0, 50))
        await fail(jobs, job_id)
        everything = await history(jobs, job_id)
        for position, event in enumerate(everything):
            assert await _followed(jobs, job_id, event.id) == everything[position + 1 :]

    @pytest.mark.req("JOB-03.2", "JOB-01.4")
    async def test_who_has_seen_the_end_is_not_kept_waiting_by_a_late_event(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        await jobs.cancel(job_id)
        final = (await history(jobs, job_id))[-1]
        await succeed(jobs, job_id)
        async with asyncio.timeout(5):
            assert [event.kind for event in await _followed(jobs, job_id, final.id)] == ["late"]
            assert [event.kind for event in await _followed(jobs, job_id)] == ["created", "cancelled"]

    @pytest.mark.req("JOB-03.2")
    async def test_who_waits_for_the_end_alone_is_told_of_that_and_of_nothing_else(
        self, jobs: Jobs, open_jobs: OpenJobs
    ) -> None:
        job_id = await started(jobs)
        async with open_jobs() as other:
            job = await other.get(job_id)
            with other.subscribe(job, job.last_event_id, final=True) as ends:
                async with asyncio.timeout(10), other.watch("ends") as bell:
                    await jobs.apply(report(job_id, 0, 50))
                    await succeed(jobs, job_id)
                    assert await bell.wait(None)
                    assert [event.kind for event in await ends.batch()] == ["succeeded"]
            assert [event.kind for event in (await other.driver.events(after=0, final=True)).items] == ["succeeded"]

    @pytest.mark.req("JOB-03.2")
    async def test_a_slow_follower_is_bounded_and_misses_nothing(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        follower = jobs.follow(job_id)
        seen = [await anext(follower)]
        reading = asyncio.ensure_future(anext(follower))
        await eventually(lambda: _has_followers(jobs))
        for _ in range(3):
            await jobs.apply(*(Note(job_id=job_id, kind="retry", data={"n": n}) for n in range(BUFFER_MAX)))
        await succeed(jobs, job_id)
        seen.append(await reading)
        async with asyncio.timeout(10):
            seen += [event async for event in follower]
        assert [event.id for event in seen] == [event.id for event in await history(jobs, job_id)]
        assert seen[-1].kind == "succeeded"

    @pytest.mark.req("JOB-03.4", "JOB-08.1")
    async def test_an_id_older_than_what_is_retained_yields_a_snapshot_then_live_events(self, jobs: Jobs) -> None:
        live, gone = await started(jobs), await started(jobs)
        await jobs.apply(report(live, 0, 50, message="half"), report(gone, 0, 50))
        await succeed(jobs, gone)
        newest = (await jobs.events(limit=0)).last_id
        jobs.retention = Retention(events_s=0.0)
        await eventually(lambda: _trimmed(jobs))
        assert (await jobs.events(0, live)).truncated
        assert not (await jobs.events(newest, live)).truncated
        follower = jobs.follow(live, 0)
        snapshot = await anext(follower)
        assert (snapshot.kind, snapshot.data["progress"], snapshot.data["message"]) == ("snapshot", 25.0, "half")
        reading = asyncio.ensure_future(anext(follower))
        await jobs.apply(report(live, 1, 50))
        async with asyncio.timeout(5):
            event = await reading
        assert (event.kind, event.data["progress"]) == ("progress", 75.0)
        assert event.id > snapshot.id
        await follower.aclose()
        assert [event.kind for event in await _followed(jobs, gone)] == ["snapshot", "succeeded"]

    @pytest.mark.req("JOB-09.2")
    async def test_waiting_for_the_end_is_told_by_another_process(self, open_jobs: OpenJobs, jobs: Jobs) -> None:
        job_id = await started(jobs)
        assert await jobs.wait_finished(job_id, 0.05) is None
        waiting = asyncio.create_task(jobs.wait_finished(job_id, 10))
        await eventually(lambda: _has_followers(jobs))
        async with open_jobs() as other:
            await succeed(other, job_id, 1)
        job = await waiting
        assert job is not None
        assert (job.state, job.result) == (JobState.SUCCEEDED, 1)
        assert await jobs.wait_finished(job_id, 0) == job

    @pytest.mark.req("JOB-03.2")
    async def test_hundreds_of_followers_each_get_everything_of_their_job(self, jobs: Jobs) -> None:
        job_ids = [await started(jobs) for _ in range(20)]
        followers = [asyncio.create_task(_followed(jobs, job_id)) for job_id in job_ids for _ in range(20)]
        await eventually(lambda: _has_followers(jobs, 400))
        for weight in (10, 50):
            await jobs.apply(*(report(job_id, 0, weight) for job_id in job_ids))
        for job_id in job_ids:
            await succeed(jobs, job_id)
        async with asyncio.timeout(20):
            results = await asyncio.gather(*followers)
        assert {tuple(event.kind for event in one) for one in results} == {
            ("created", "progress", "progress", "succeeded")
        }
        assert jobs.statistics().followers == 0

    async def test_a_follower_that_leaves_is_forgotten(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        follower = jobs.follow(job_id)
        await anext(follower)
        waiting = asyncio.ensure_future(anext(follower))
        await eventually(lambda: _has_followers(jobs))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert jobs.statistics().followers == 0
        await jobs.apply(report(job_id, 0, 10))
        await succeed(jobs, job_id)  # the next follower starts the reader anew
        assert (await _followed(jobs, job_id))[-1].kind == "succeeded"

    async def test_following_an_unknown_job_is_not_found_and_a_closed_store_is_closed(self, jobs: Jobs) -> None:
        with pytest.raises(NotFound):
            await _followed(jobs, "nobody")
        job_id = await started(jobs)
        await jobs.aclose()
        with pytest.raises(Closed):
            await _followed(jobs, job_id)

    async def test_notes_may_not_pretend_to_be_states(self, jobs: Jobs) -> None:
        job_id = await started(jobs)
        for kind in ("succeeded", "created", "Retry", ""):
            with pytest.raises(InvalidArgument, match=r"^kind: "):
                await jobs.apply(Note(job_id=job_id, kind=kind))
        assert (await applied(jobs, Note(job_id=job_id, kind="dead_letter"))).applied


async def _has_followers(jobs: Jobs, least: int = 1) -> bool:
    return jobs.statistics().followers >= least


async def _trimmed(jobs: Jobs) -> bool:
    """To the one final event; what is not a millisecond old yet goes with the next sweep."""
    return (await jobs.sweep()).events <= 1
