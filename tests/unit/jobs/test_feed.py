"""A subscription by itself: history, then live, each event once and in order, whatever comes in between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from groundplane.core.errors import Unavailable
from groundplane.jobs import Jobs
from groundplane.jobs.conformance.subjects import started
from groundplane.jobs.feed import BUFFER_MAX, PAGE, Subscription
from groundplane.jobs.port import Events, JobEvent, Note, Topic, Watch

pytestmark = pytest.mark.anyio


def _event(number: int) -> JobEvent:
    return JobEvent(id=number, job_id="j", kind="progress", data={}, created_at=0)


class Log:
    """A store with one job's events; `meanwhile` runs while it reads."""

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self.reads = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def read(self, job_id: str, after: int, limit: int) -> Events:
        self.reads += 1
        self.meanwhile()
        items = [_event(number) for number in range(after + 1, self.newest + 1)][:limit]
        return Events(items=items, last_id=items[-1].id if items else after, truncated=False)


def _subscription(log: Log, after: int = 0, *, behind: bool = True) -> Subscription:
    return Subscription("j", after, log.read, lambda: None, behind=behind)


async def _ids(one: Subscription) -> list[int]:
    return [event.id for event in await one.batch(0.05)]


@pytest.mark.req("JOB-03.3")
async def test_what_was_offered_while_the_history_was_read_comes_once() -> None:
    log = Log(3)
    one = _subscription(log)

    def meanwhile() -> None:
        log.newest = 4
        for number in (3, 4, 5):
            one.offer(_event(number))

    log.meanwhile = meanwhile
    assert await _ids(one) == [1, 2, 3, 4]
    assert await _ids(one) == [5]
    assert await _ids(one) == []
    assert log.reads == 1


@pytest.mark.req("JOB-03.3")
async def test_a_slow_follower_is_bounded_and_reads_what_it_missed() -> None:
    log = Log(0)
    one = _subscription(log, behind=False)
    for number in range(1, BUFFER_MAX + 11):
        one.offer(_event(number))
        log.newest = number
        assert len(one._fresh) <= BUFFER_MAX
    assert await _ids(one) == list(range(1, BUFFER_MAX + 11))
    one.offer(_event(BUFFER_MAX + 11))
    assert await _ids(one) == [BUFFER_MAX + 11]
    assert log.reads == 1


@pytest.mark.req("JOB-03.3")
async def test_a_long_history_is_read_page_by_page_before_what_is_live() -> None:
    log = Log(2 * PAGE + 7)
    one = _subscription(log)
    found = []
    while batch := await _ids(one):
        found += batch
        one.offer(_event(log.newest))
    assert found == list(range(1, log.newest + 1))


@pytest.mark.req("JOB-03.3")
async def test_a_history_that_cannot_be_read_now_is_read_the_next_time() -> None:
    log = Log(2)
    one = _subscription(log)

    def away() -> None:
        one.offer(_event(2))
        raise Unavailable("store: away")

    log.meanwhile = away
    with pytest.raises(Unavailable):
        await one.batch(0.05)
    log.meanwhile = lambda: None
    assert await _ids(one) == [1, 2]


async def test_one_that_has_ended_gives_what_is_there_and_waits_for_nothing() -> None:
    one = _subscription(Log(0), behind=False)
    one.offer(_event(1))
    one.end()
    assert [event.id for event in await one.batch()] == [1]
    assert await one.batch() == []


@pytest.mark.req("JOB-03.3")
async def test_a_burst_of_more_than_a_page_passes_no_follower_by(tmp_path: Path) -> None:
    count = PAGE + 100
    async with Jobs.open(state=tmp_path) as jobs:
        job_id, other = await started(jobs), await started(jobs)
        job = await jobs.get(job_id)
        with jobs.subscribe(job, job.last_event_id) as one:
            await jobs.apply(Note(job_id=job_id, kind="live"))
            assert [event.kind for event in await one.batch(10)] == ["live"]
            await jobs.apply(*(Note(job_id=name, kind=f"n{n}") for n in range(count) for name in (other, job_id)))
            kinds: list[str] = []
            while len(kinds) < count and (batch := await one.batch(10)):
                kinds += [event.kind for event in batch]
    assert kinds == [f"n{n}" for n in range(count)]


@pytest.mark.req("JOB-03.3")
async def test_what_came_before_the_reader_listens_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Jobs.open(state=tmp_path) as jobs:
        job = await jobs.get(await started(jobs))
        watch = jobs.driver.watch

        @asynccontextmanager
        async def late(topic: Topic) -> AsyncIterator[Watch]:
            async with watch(topic) as own:
                await own.wait(0.05)
                await jobs.apply(Note(job_id=job.job_id, kind="before"))
                assert await own.wait(5)
            async with watch(topic) as opened:
                yield opened

        monkeypatch.setattr(jobs.driver, "watch", late)
        with jobs.subscribe(job, job.last_event_id) as one:
            assert [event.kind for event in await one.batch(3)] == ["before"]
