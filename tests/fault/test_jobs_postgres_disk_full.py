"""The disk of the server's tables is full: a named error, nothing accepted is lost, it goes on when there is room."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from groundplane.core.errors import GroundplaneError
from groundplane.core.ids import new_id
from groundplane.jobs import Jobs
from groundplane.jobs.conformance.subjects import message, new_job
from groundplane.testing.faults import NoSmallDisk, small_disk
from groundplane.testing.servers.contract import Running

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

_DISK_MIB = 24


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small disk that the server's own user can reach."""
    with tempfile.TemporaryDirectory(prefix="groundplane-disk-") as folder:
        Path(folder).chmod(0o755)
        try:
            with small_disk(Path(folder) / "small", size_bytes=_DISK_MIB * 2**20) as mounted:
                yield mounted.path
        except NoSmallDisk as error:
            pytest.skip(str(error))


@pytest.mark.req("JOB-02.1", "JOB-09.1")
async def test_a_full_disk_of_the_server_is_named_loses_nothing_and_is_recovered_from(
    disk: Path, own_server: Callable[..., Running]
) -> None:
    server = await asyncio.to_thread(own_server, "postgres")
    place, filler = disk / "place", disk / "filler"
    place.mkdir()
    owner = server.data.stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    accepted: list[str] = []
    async with Jobs.open(server.url) as jobs:
        filler.write_bytes(bytes(4 * 2**20))
        native = jobs.driver.native  # type: ignore[attr-defined]
        await native.query(f"CREATE TABLESPACE small LOCATION '{place}'")
        await native.query(f"ALTER TABLE {native.schema}.jobs SET TABLESPACE small")
        refused = await _create_until_refused(jobs, accepted)
        assert (refused.code, refused.reason, refused.retryable) == ("resource_exhausted", "disk_full", True)
        assert accepted
        assert (await jobs.get(accepted[0])).job_id == accepted[0]  # looking still works
        filler.unlink()
        job = new_job(arguments=os.urandom(200_000))
        assert (await jobs.create(job)).created
        for job_id in [*accepted, job.job_id]:
            assert (await jobs.get(job_id)).job_id == job_id
        await native.query(f"ALTER TABLE {native.schema}.jobs SET TABLESPACE pg_default")
        await native.query("DROP TABLESPACE small")


async def _create_until_refused(jobs: Jobs, accepted: list[str]) -> GroundplaneError:
    for _ in range(2_000):
        job = new_job(arguments=os.urandom(200_000))
        try:
            await jobs.create(job, [message(new_id())])
        except GroundplaneError as error:
            return error
        accepted.append(job.job_id)
    pytest.fail("the disk never filled")
