"""A loss of power at every sync of a busy run: whatever was acknowledged is there, whole.

Two engines on one file stand for two processes (each has its lock, its connections, its descriptor of the log). The
syncs that they do themselves go through the hook of the options, SQLite's own through the VFS.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from groundplane.backends.sqlite import Database, MigrationSet, Options, files
from groundplane.backends.sqlite.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
from forgetful_disk import ForgetfulDisk

pytestmark = [pytest.mark.anyio]

PAIRS = MigrationSet(
    component="pairs",
    scripts=(
        (
            "0001_create.sql",
            "CREATE TABLE half (pair TEXT, side INTEGER, filler BLOB, PRIMARY KEY (pair, side)) STRICT;"
            "CREATE TABLE bulk (slot INTEGER PRIMARY KEY, filler BLOB) STRICT",
        ),
    ),
)


class Witness:
    """Opens what a crash leaves behind, and notes what should be there and is not."""

    def __init__(self, disk: ForgetfulDisk, folder: Path) -> None:
        self.disk = disk
        self.folder = folder
        self.acknowledged: list[str] = []
        self.losses: list[str] = []
        self.crashes = 0
        self.checkpoints = 0
        folder.mkdir()
        disk.at_sync = self.look

    def look(self, moment: str) -> None:
        self.checkpoints += moment == "after the sync of plane.db"
        if not self.acknowledged or len(self.losses) > 3:
            return
        expected = set(self.acknowledged)
        for luck in (0.0, 0.5):
            self.crashes += 1
            self.disk.crash(self.folder, luck=luck)
            try:
                found = self._survivors()
            except apsw.Error as error:
                self.losses.append(f"{moment}, luck {luck}: {error!r}")
                return
            if expected - found:
                self.losses.append(f"{moment}, luck {luck}: {len(expected - found)} of {len(expected)} are lost")

    def _survivors(self) -> set[str]:
        connection = apsw.Connection(str(self.folder / "plane.db"))
        try:
            assert connection.pragma("integrity_check") == "ok"
            rows: list[Any] = connection.execute("SELECT pair, count(*) FROM half GROUP BY pair").fetchall()
            halves = [pair for pair, sides in rows if sides != 2]
            if halves:
                self.losses.append(f"half of {halves} alone")
            return {pair for pair, _ in rows}
        finally:
            connection.close()


@contextmanager
def power_plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[tuple[ForgetfulDisk, Witness]]:
    disk = ForgetfulDisk(name, seed=11)
    monkeypatch.setattr(files, "sync_folder", disk.sync_folder)
    try:
        yield disk, Witness(disk, tmp_path / "after the crash")
    finally:
        disk.unregister()


async def run(path: Path, options: Options, witness: Witness, writes: int) -> None:
    """Writes pairs through two engines from many tasks; the bulk makes the log wrap round a few times."""
    engines = [Engine(str(path), options, None) for _ in range(2)]
    engines[0].migrate([PAIRS], upgrade=False)
    databases = [Database(engine, release(engine)) for engine in engines]
    numbers = iter(range(writes))

    async def task(db: Database, own: str) -> None:
        for n in numbers:
            await db.write(pair(f"{own}-{n}", n))
            witness.acknowledged.append(f"{own}-{n}")

    try:
        await asyncio.gather(*(task(db, f"{i}{j}") for i, db in enumerate(databases) for j in range(4)))
    finally:
        for db in databases:
            await db.aclose()


def release(engine: Engine) -> Callable[[], None]:
    def close() -> None:
        assert engine.close(5)

    return close


def pair(name: str, n: int) -> Any:
    def work(tx: Any) -> None:
        tx.execute("INSERT INTO half VALUES (?, 1, randomblob(300))", (name,))
        tx.execute("REPLACE INTO bulk VALUES (?, randomblob(24000))", (n % 10,))
        tx.execute("INSERT INTO half VALUES (?, 2, randomblob(300))", (name,))

    return work


async def test_whatever_was_acknowledged_survives_a_loss_of_power_at_every_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with power_plant(tmp_path, monkeypatch, "forgetful") as (disk, witness):
        options = Options(vfs="forgetful", sync=disk.sync)
        await run(tmp_path / "plane.db", options, witness, writes=700)
    assert witness.losses == []
    assert len(witness.acknowledged) == 700
    assert witness.checkpoints >= 3, "the log never wrapped round: the run was too small to prove anything"
    assert witness.crashes > 200


async def test_the_witness_sees_the_loss_when_the_sync_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the sync of the log the same run does lose acknowledged rows."""
    with power_plant(tmp_path, monkeypatch, "careless") as (_, witness):
        options = Options(vfs="careless", sync=lambda fd: None)
        await run(tmp_path / "plane.db", options, witness, writes=400)
    assert any("are lost" in loss for loss in witness.losses)
