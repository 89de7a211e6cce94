"""Plane: the ports that settings name, opened together and closed together."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from groundplane.core.errors import Closed, FailedPrecondition, GroundplaneError, InvalidArgument
from groundplane.core.secrets import Url
from groundplane.core.settings import Settings, load
from groundplane.jobs import JobQuery
from groundplane.mesh.spec import ActorSpec
from groundplane.plane import PORTS, Plane, installed_schemes

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", name="acme")


async def test_an_opened_plane_answers_on_every_port(settings: Settings) -> None:
    async with Plane.open(settings) as plane:
        assert await plane.check() == dict.fromkeys(PORTS)
        assert "open: queues, jobs, ledger, blobs, security, kv" in repr(plane)


async def test_declaring_makes_the_queues_of_the_actors_and_of_both_ends(settings: Settings) -> None:
    async with Plane.open(settings) as plane:
        for _ in range(2):
            await plane.declare([ActorSpec(name="double", handler="app:double")])
        assert [queue.name for queue in await plane.queues.queues()] == ["double", "error-end", "happy-end"]


@pytest.mark.req("CORE-03.1")
async def test_after_closing_every_port_raises_closed_and_closing_again_is_nothing(settings: Settings) -> None:
    async with Plane.open(settings) as plane:
        jobs = plane.jobs
        await asyncio.gather(plane.aclose(), plane.aclose())
        with pytest.raises(Closed):
            _ = plane.queues
        with pytest.raises(Closed):
            await jobs.list_jobs(JobQuery())
    assert "closed" in repr(plane)


@pytest.mark.req("CORE-03.1", "CORE-03.3")
async def test_closing_ends_blocked_calls_within_ten_seconds_and_leaves_nothing(settings: Settings) -> None:
    async with Plane.open(settings) as plane:
        await plane.declare([ActorSpec(name="double", handler="app:double")])
        blocked = asyncio.Event()

        async def consume() -> None:
            async with plane.queues.consume("double", max_in_flight=1) as consumer:
                blocked.set()
                await consumer.receive(1, None)

        waiting = asyncio.create_task(consume())
        await blocked.wait()
        began = time.monotonic()
        await plane.aclose()
        with pytest.raises(Closed):
            await waiting
        assert time.monotonic() - began < 10


async def test_only_the_ports_that_were_asked_for_are_opened(settings: Settings) -> None:
    async with Plane.open(settings, ports=("jobs",)) as plane:
        assert list(await plane.check()) == ["jobs"]
        with pytest.raises(Closed, match="was not opened"):
            _ = plane.queues


async def test_an_unknown_port_is_refused(settings: Settings) -> None:
    with pytest.raises(InvalidArgument, match=r"'job'.*did you mean 'jobs'"):
        async with Plane.open(settings, ports=("job",)):
            pass


async def test_when_one_port_cannot_be_opened_those_before_it_are_closed(settings: Settings) -> None:
    broken = Settings(state=settings.state, blobs=Url("nowhere://me:hushhush@h"))
    with pytest.raises(GroundplaneError) as caught:
        async with Plane.open(broken):
            pass
    assert "hushhush" not in str(caught.value)


@pytest.mark.req("CORE-06")
async def test_a_foreign_file_as_the_database_is_refused_by_name(settings: Settings) -> None:
    settings.state.mkdir()
    (settings.state / "plane.db").write_text("a letter to my aunt, which is no database" * 10)
    with pytest.raises(FailedPrecondition) as caught:
        async with Plane.open(settings):
            pass
    assert caught.value.reason == "foreign_database"
    assert str(settings.state) in caught.value.message


async def test_without_settings_they_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROUNDPLANE_STATE", str(tmp_path / "elsewhere"))
    async with Plane.open() as plane:
        assert plane.settings.state == tmp_path / "elsewhere"
    assert (tmp_path / "elsewhere" / "plane.db").exists()


def test_the_schemes_that_settings_are_checked_against_are_those_of_the_drivers() -> None:
    schemes = installed_schemes()
    assert set(schemes) == set(PORTS)
    assert all("embedded" in known for known in schemes.values())
    assert {"postgresql", "postgres"} < set(schemes["jobs"])
    assert "amqp" not in schemes["jobs"]
    with pytest.raises(InvalidArgument, match="no driver for 'kafka'"):
        load({"queues": "kafka://h"}, environ={}, schemes=schemes)
