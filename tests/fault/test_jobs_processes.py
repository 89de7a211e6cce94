"""Several processes on one store, some of which are killed: no accepted job is lost, none stays pending for ever."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fault.jobs_child import job, message
from groundplane.backends.sqlite import Database
from groundplane.core.ids import new_id
from groundplane.jobs import Job, JobQuery, Jobs, JobState
from groundplane.jobs.conformance.subjects import eventually
from groundplane.jobs.drivers.embedded import MIGRATIONS
from groundplane.jobs.port import OutboxMessage
from groundplane.testing.checkers import History

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

_CHILD = Path(__file__).with_name("jobs_child.py")


@asynccontextmanager
async def _child(
    role: str, place: str, *rest: object, failpoint: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {**os.environ, "GROUNDPLANE_FAILPOINTS": failpoint}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(_CHILD),
        role,
        place,
        *map(str, rest),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture(params=["embedded", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that several processes open."""
    if request.param == "embedded":
        return f"embedded://{tmp_path}"
    url: str = request.getfixturevalue("postgres_url")
    return url


async def _lines(process: asyncio.subprocess.Process) -> list[list[str]]:
    output, _ = await process.communicate()
    return [line.split() for line in output.decode().splitlines()]


async def _ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"


def _sent(path: Path) -> Counter[str]:
    return Counter(path.read_text().split()) if path.exists() else Counter()


async def _outbox_is_empty(jobs: Jobs) -> bool:
    return (await jobs.sweep()).outbox_head is None


@pytest.mark.req("JOB-02.1", "JOB-02.2", "JOB-09.2")
async def test_a_creator_killed_right_after_it_stored_a_job_has_still_started_it(place: str) -> None:
    history = History()
    for at in (1, 7, 23):
        async with _child("create", place, 100, failpoint=f"accepted=kill@{at}") as creator:
            lines = await _lines(creator)
            assert creator.returncode == -9
        history.maybe_sent(*(words[1] for words in lines if words[0] == "trying"))
        history.sent(*(words[1] for words in lines if words[0] == "accepted"))
    async with Jobs.open(place) as jobs:
        stored = {one.job_id for one in await _all(jobs)}
        sent: list[str] = []

        async def send(messages: list[OutboxMessage]) -> None:
            sent.extend(one.id for one in messages)

        relay = asyncio.create_task(jobs.run_relay(send))
        await eventually(lambda: _outbox_is_empty(jobs))
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
    assert len(stored) >= 3
    assert set(sent) == stored  # a message for each job that is stored, and for no other
    history.done(*sent)
    history.check_nothing_lost()
    history.check_nothing_invented()
    history.check_no_effect_twice()


@pytest.mark.req("JOB-02.2", "JOB-09.2")
async def test_relays_killed_after_sending_repeat_themselves_under_the_same_keys_and_lose_nothing(
    place: str,
    tmp_path: Path,
) -> None:
    log = tmp_path / "sent"
    async with Jobs.open(place) as jobs:
        ids = [new_id() for _ in range(300)]
        for _ in range(3):
            async with _child("relay", place, log, failpoint="relayed=kill@2") as doomed:
                await _ready(doomed)
                some, ids = ids[:100], ids[100:]
                for one in some:
                    await jobs.create(job(one), [message(one)])
                assert await doomed.wait() == -9
        everything = {f"{one.job_id}:0" for one in await _all(jobs)}
        async with _child("relay", place, log) as relay:
            await _ready(relay)
            await eventually(lambda: _outbox_is_empty(jobs))
    sent = _sent(log)
    history = History()
    history.sent(*everything)
    history.done(*sent)
    history.check_nothing_lost()
    history.check_nothing_invented()
    assert len(everything) == 300
    assert sum(sent.values()) > 300  # what was sent and not ticked off came again, with the same key


async def _all(jobs: Jobs) -> list[Job]:
    return (await jobs.list_jobs(JobQuery(limit=1000))).items


@pytest.mark.req("JOB-09.2", "JOB-03.3")
async def test_processes_that_write_at_once_leave_one_gapless_log(place: str) -> None:
    async with Jobs.open(place) as jobs:
        seen: list[int] = []

        async def read() -> None:
            async with jobs.watch() as watch:
                while len(seen) < 400:
                    page = await jobs.events(seen[-1] if seen else 0, limit=50)
                    seen.extend(event.id for event in page.items)
                    if not page.items:
                        await watch.wait(0.25)

        async with asyncio.timeout(45), asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            async with _child("create", place, 200) as one, _child("create", place, 200) as two:
                outputs = await asyncio.gather(_lines(one), _lines(two))
        accepted = {words[1] for lines in outputs for words in lines if words[0] == "accepted"}
        assert {one.job_id for one in await _all(jobs)} == accepted
        assert seen == [event.id for event in (await jobs.events(0, limit=1000)).items]
        assert len(accepted) == 400


@pytest.mark.req("JOB-04.2")
@pytest.mark.slow
async def test_a_job_of_ten_seconds_has_ended_by_fifteen_although_its_sweeper_was_killed(place: str) -> None:
    start = time.time()
    async with Jobs.open(place) as jobs:
        one = job(new_id(), deadline_at=round((start + 10) * 1000))
        await jobs.create(one, [])
        async with _child("sweep", place) as first:
            await _ready(first)
            assert await jobs.wait_finished(one.job_id, 8 - (time.time() - start)) is None
        async with _child("sweep", place) as second:
            await _ready(second)
            ended = await jobs.wait_finished(one.job_id, 15 - (time.time() - start))
    assert ended is not None
    assert ended.state is JobState.TIMED_OUT
    assert ended.finished_at is not None
    assert 10 <= ended.finished_at / 1000 - start < 15


@pytest.mark.req("JOB-10.1", "JOB-09.2")
async def test_ten_processes_that_open_a_new_file_at_once_make_one_schema(tmp_path: Path) -> None:
    path = tmp_path / "plane.db"
    assert len(await Database.check(path, [MIGRATIONS])) == len(MIGRATIONS.load())
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, str(_CHILD), "open", str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        for _ in range(10)
    ]
    outputs = await asyncio.gather(*(_lines(one) for one in processes))
    assert outputs == [[["opened"]]] * 10
    assert await Database.check(path, [MIGRATIONS]) == ()
    async with Jobs.open(state=tmp_path) as jobs:
        assert (await jobs.create(job(new_id()), [])).created
