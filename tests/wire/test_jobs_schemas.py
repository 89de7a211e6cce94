"""Data of every released schema of jobs, opened by the present code."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import apsw
import psycopg
import pytest

from groundplane.backends import postgres
from groundplane.backends.sqlite import Database
from groundplane.core.errors import Conflict
from groundplane.core.fencing import Fence
from groundplane.jobs import Jobs, JobState, Retention
from groundplane.jobs.conformance.subjects import kinds, succeed
from groundplane.jobs.drivers.embedded import FILE_NAME, MIGRATIONS
from groundplane.jobs.drivers.postgres import MIGRATIONS as POSTGRES_MIGRATIONS
from wire.jobs_release import FAR, job

pytestmark = pytest.mark.anyio

_FOLDER = Path(__file__).parent / "jobs_schemas"
_SCHEMAS = sorted(_FOLDER.glob("*.sql"))
_POSTGRES_SCHEMAS = sorted((_FOLDER / "postgres").glob("*.sql"))
_FOR_EVER = Retention(jobs_s=1e10, events_s=1e10)
_CHECKSUMS = {1: "dc66a2533d74a075", 2: "9676c751b1ad283e", 3: "037ac7e5e6ded1f3"}
_POSTGRES_CHECKSUMS = {1: "30477793b5c4e777", 2: "55e50eba8810eafd", 3: "cdd71c4976eb492f"}


def _release(schema: Path, state: Path) -> None:
    connection = apsw.Connection(str(state / FILE_NAME))
    connection.execute(schema.read_text(encoding="utf-8")).fetchall()
    connection.close()


def _release_in_postgres(schema: Path, url: str) -> None:
    settings = postgres.parse_url("jobs", url)
    with psycopg.connect(**settings.conninfo, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {settings.schema}".encode())
        connection.execute(f"SET search_path TO {settings.schema}".encode())
        connection.execute(schema.read_text(encoding="utf-8").encode())


@pytest.mark.req("JOB-10.1")
def test_each_migration_has_a_release_to_test_and_none_was_edited_since() -> None:
    migrations = MIGRATIONS.load()
    assert [int(schema.stem) for schema in _SCHEMAS] == [one.version for one in migrations]
    assert {one.version: one.checksum[:16] for one in migrations} == _CHECKSUMS
    migrations = POSTGRES_MIGRATIONS.load()
    assert [int(schema.stem) for schema in _POSTGRES_SCHEMAS] == [one.version for one in migrations]
    assert {one.version: one.checksum[:16] for one in migrations} == _POSTGRES_CHECKSUMS


@pytest.mark.req("JOB-10.1")
async def test_an_empty_file_is_checked_without_being_changed_and_then_brought_up(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    assert [one.version for one in await Database.check(path, [MIGRATIONS])] == list(_CHECKSUMS)
    assert not await asyncio.to_thread(path.exists)
    async with Jobs.open(state=tmp_path):
        pass
    assert await Database.check(path, [MIGRATIONS]) == ()


@pytest.mark.req("JOB-10.1")
async def test_an_empty_database_is_checked_without_being_changed_and_then_brought_up(postgres_url: str) -> None:
    for _ in range(2):
        missing = await postgres.Database.check(postgres_url, [POSTGRES_MIGRATIONS])
        assert [one.version for one in missing] == list(_POSTGRES_CHECKSUMS)
    async with Jobs.open(postgres_url):
        pass
    assert await postgres.Database.check(postgres_url, [POSTGRES_MIGRATIONS]) == ()


_IN_POSTGRES = [pytest.param(schema, marks=pytest.mark.postgres) for schema in _POSTGRES_SCHEMAS]


@pytest.fixture(params=[*_SCHEMAS, *_IN_POSTGRES], ids=lambda schema: f"{schema.parent.name}-{schema.stem}")
def released(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, int]:
    """The URL of a store as a release left it, and the version of its schema."""
    schema: Path = request.param
    if schema in _SCHEMAS:
        _release(schema, tmp_path)
        return f"embedded://{tmp_path}", int(schema.stem)
    url: str = request.getfixturevalue("postgres_url")
    _release_in_postgres(schema, url)
    return url, int(schema.stem)


@pytest.mark.req("JOB-10.1")
async def test_jobs_of_a_release_are_read(released: tuple[str, int]) -> None:
    url, version = released
    async with _opened(url) as jobs:
        page = await jobs.list_jobs()
        assert {one.job_id: one.state for one in page.items} == {
            **{state.value: state for state in JobState},
            "fan-out": JobState.RUNNING,
            "waiting": JobState.PENDING,
            **({"asking": JobState.PAUSED} if version >= 2 else {}),
            **({"fenced": JobState.PENDING} if version >= 3 else {}),
        }
        good = await jobs.get("succeeded")
        assert (good.result, good.result_key, good.progress) == ({"answer": [25, None, b"\x00"]}, "r", 100.0)
        assert good.arguments == {"name": "succeeded", "ä": None}
        bad = await jobs.get("failed")
        assert bad.error is not None
        assert (bad.error.message, bad.error.reason) == ("it broke", "processing_error")
        assert (await jobs.get("running")).progress == 25.0
        assert await kinds(jobs, "cancelled") == ["created", "cancelled"]


@pytest.mark.req("JOB-10.1")
async def test_jobs_of_a_release_go_on(released: tuple[str, int]) -> None:
    url, version = released
    async with _opened(url) as jobs:
        assert not (await jobs.create(job("again", owner="me", idempotency_key="key pending"))).created
        with pytest.raises(Conflict):
            await jobs.create(job("again", owner="me", idempotency_key="key pending", arguments_hash="else"))
        resumed = await jobs.resume("paused")
        assert resumed.deadline_at is not None
        assert resumed.deadline_at > FAR
        taken = await jobs.driver.outbox.take(10)
        assert [(one.id, one.headers) for _, one in taken] == [("e-waiting", {"k": "v"}), ("e-paused", {"k": "v"})]
        if version >= 2:
            answered, open_ = await jobs.questions("asking")
            assert (answered.action, answered.content, answered.answered_by) == ("accept", {"sure": True}, "me")
            assert (await jobs.get("asking")).questions == [open_]
            assert (await jobs.answer("asking", "open", {"sure": False})).state is JobState.PENDING
            assert [one.id for _, one in await jobs.driver.outbox.take(10)] == ["e-asking"]
        if version >= 3:
            with pytest.raises(Conflict, match="term 41"):
                await jobs.create(job("late", fence=Fence("planner", 40)))
        assert (await jobs.create(job("led", fence=Fence("planner", 42)))).created
        assert (await succeed(jobs, "fan-out", "zero", "c0")).state is JobState.SUCCEEDED
        assert (await jobs.get("fan-out")).result == ["zero", "one"]
        assert (await succeed(jobs, "pending", 1)).applied
        assert not (await succeed(jobs, "timed_out", 1)).applied


def _opened(url: str) -> AbstractAsyncContextManager[Jobs]:
    return Jobs.open(url, namespace="released", upgrade=True, retention=_FOR_EVER)
