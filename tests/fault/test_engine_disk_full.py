"""A disk that is full: nothing acknowledged is lost, reads go on, settling gets through, and writing comes back."""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path
from typing import Any

import apsw
import pytest

from groundplane.backends.sqlite import Database, MigrationSet, Options
from groundplane.core.errors import ResourceExhausted

pytestmark = pytest.mark.anyio

ITEMS = MigrationSet(
    component="items",
    scripts=(("0001_create.sql", "CREATE TABLE item (id INTEGER PRIMARY KEY AUTOINCREMENT, filler BLOB) STRICT"),),
)


def add(size: int) -> Any:
    return lambda tx: tx.execute("INSERT INTO item (filler) VALUES (zeroblob(?)) RETURNING id", (size,))[0][0]


def settle(item: int) -> Any:
    return lambda tx: tx.execute("DELETE FROM item WHERE id = ? RETURNING id", (item,))


async def ids(db: Database) -> list[int]:
    return [row[0] for row in await db.read(lambda tx: tx.execute("SELECT id FROM item ORDER BY id"))]


async def fill(db: Database) -> list[int]:
    """Adds items until none fits, however small; returns those that were acknowledged."""
    added: list[int] = []
    refusals: list[ResourceExhausted] = []
    for size in (100_000, 10_000, 1_000, 10):
        try:
            while True:
                added.append(await db.write(add(size)))
        except ResourceExhausted as error:
            refusals.append(error)
    assert {(error.reason, error.retryable, type(error.__cause__)) for error in refusals} == {
        ("disk_full", True, apsw.FullError)
    }
    return added


def hog(folder: Path) -> Path:
    """Takes all the room that is left."""
    with (folder / "hog").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return folder / "hog"


@pytest.mark.parametrize("inline", [False, True], ids=["thread", "inline"])
async def test_on_a_full_disk_reads_go_on_and_essential_writes_get_through(small_disk: Path, inline: bool) -> None:
    async with Database.open(small_disk / "plane.db", [ITEMS], inline=inline) as db:
        added = await fill(db)
        assert len(added) > 10
        assert await ids(db) == added
        for item in added:
            assert await db.write(settle(item), essential=True) == [(item,)]
        assert await ids(db) == []


async def test_while_space_is_held_for_settling_other_writes_are_refused_and_later_come_back(small_disk: Path) -> None:
    async with Database.open(small_disk / "plane.db", [ITEMS]) as db:
        item = await db.write(add(10))
        taken = hog(small_disk)
        await fill(db)
        await db.write(settle(item), essential=True)
        assert db.statistics().ballast_spent
        with pytest.raises(ResourceExhausted, match="free space"):
            await db.write(add(10))
        taken.unlink()
        until = time.monotonic() + 10
        while db.statistics().ballast_spent and time.monotonic() < until:
            try:
                await db.write(add(10))
            except ResourceExhausted:
                continue
        assert not db.statistics().ballast_spent
        assert (small_disk / "plane.db-ballast").stat().st_size == Options().ballast_bytes


async def test_a_big_write_that_does_not_fit_does_not_fail_the_small_one_beside_it(small_disk: Path) -> None:
    async with Database.open(small_disk / "plane.db", [ITEMS]) as db:
        big, small = await asyncio.gather(db.write(add(20_000_000)), db.write(add(10)), return_exceptions=True)
        assert isinstance(big, ResourceExhausted)
        assert isinstance(small, int)
        assert await ids(db) == [small]


async def test_a_plane_restarts_on_a_full_disk_and_settles(small_disk: Path) -> None:
    async with Database.open(small_disk / "plane.db", [ITEMS]) as db:
        items = [await db.write(add(20_000)) for _ in range(20)]
    hog(small_disk)
    async with Database.open(small_disk / "plane.db", [ITEMS]) as db:
        assert await ids(db) == items
        for item in items:
            assert await db.write(settle(item), essential=True) == [(item,)]


async def test_opening_a_new_file_on_a_full_disk_is_disk_full(small_disk: Path) -> None:
    hog(small_disk)
    with pytest.raises(ResourceExhausted) as caught:
        async with Database.open(small_disk / "plane.db", [ITEMS]):
            pass
    assert caught.value.reason == "disk_full"
