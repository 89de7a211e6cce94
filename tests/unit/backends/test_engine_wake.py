"""Listeners: rung after the sync, never too late, never lost."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from groundplane.backends.sqlite import Database, MigrationSet, Options, Transaction
from groundplane.backends.sqlite.wake import WakeHub
from groundplane.core.errors import Closed, FailedPrecondition, InvalidArgument

pytestmark = pytest.mark.anyio

NO_POLL = 3600.0


def wake(*topics: str) -> Any:
    def work(tx: Transaction) -> None:
        for topic in topics:
            tx.wake(topic)

    return work


@pytest.mark.parametrize("inline", [False, True], ids=["thread", "inline"])
async def test_a_listener_is_rung_by_its_topic_alone(path: Path, notes: MigrationSet, inline: bool) -> None:
    async with Database.open(path, [notes], inline=inline, options=Options(poll_s=NO_POLL)) as db:
        async with db.listen("jobs/1") as one, db.listen("jobs/2") as two, db.listen("jobs") as every:
            await db.write(wake("jobs/1"))
            assert await one.wait(5)
            assert await every.wait(5)
            assert not await two.wait(0.01)


async def test_a_ring_between_two_waits_is_never_lost(path: Path, notes: MigrationSet) -> None:
    async with Database.open(path, [notes], options=Options(poll_s=NO_POLL)) as db:
        async with db.listen("t") as listener:
            for _ in range(50):
                await db.write(wake("t"))
                assert await listener.wait(5)
            assert not await listener.wait(0)


async def test_the_ring_comes_after_the_sync(path: Path, notes: MigrationSet, sync: Any) -> None:
    async with Database.open(path, [notes], options=Options(poll_s=NO_POLL, sync=sync)) as db:
        async with db.listen("t") as listener:
            sync.hold()
            write = asyncio.create_task(db.write(wake("t")))
            async with asyncio.timeout(10):
                while not sync.entered.is_set():
                    await asyncio.sleep(0.001)
            assert not await listener.wait(0.02)
            sync.let_go()
            assert await listener.wait(5)
            await write


async def test_an_early_ring_comes_with_the_rows_before_the_sync_and_the_others_wait(
    path: Path, notes: MigrationSet, sync: Any
) -> None:
    def work(tx: Transaction) -> None:
        tx.execute("INSERT INTO note (text) VALUES ('x')")
        tx.wake("late", early=True)
        tx.wake("late")
        tx.wake("early", early=True)

    async with Database.open(path, [notes], options=Options(poll_s=NO_POLL, sync=sync)) as db:
        async with db.listen("early") as early, db.listen("late") as late:
            sync.hold()
            write = asyncio.create_task(db.write(work))
            assert await early.wait(10)
            assert await db.read(lambda tx: tx.execute("SELECT text FROM note")) == [("x",)]
            assert not write.done()
            assert not await late.wait(0.02)
            sync.let_go()
            assert await late.wait(5)
            await write
            assert not await early.wait(0.02)


async def test_a_failed_write_rings_nobody(path: Path, notes: MigrationSet) -> None:
    def work(tx: Transaction) -> None:
        tx.wake("t")
        raise ValueError

    async with Database.open(path, [notes], options=Options(poll_s=NO_POLL)) as db:
        async with db.listen("t") as listener:
            with pytest.raises(ValueError):
                await db.write(work)
            assert not await listener.wait(0.02)


async def test_without_any_bell_the_poll_still_wakes(path: Path, notes: MigrationSet) -> None:
    async with Database.open(path, [notes], options=Options(poll_s=0.02)) as db:
        async with db.listen("t") as listener:
            await db.write(lambda tx: tx.execute("INSERT INTO note (text) VALUES ('x')"))
            assert await listener.wait(5)


async def test_a_dead_process_s_bell_is_removed_and_a_full_one_harms_nobody(path: Path, notes: MigrationSet) -> None:
    async with Database.open(path, [notes], options=Options(poll_s=NO_POLL)) as db:
        prefix = db._engine._hub._prefix("t")
        dead = path.parent / "wake" / f"{prefix}.1-dead.1"
        full = path.parent / "wake" / f"{prefix}.1-full.1"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
            gone.bind(str(dead))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
            deaf.bind(str(full))
            async with db.listen("t") as listener:
                for _ in range(100):
                    await db.write(wake("t"), durable=False)
                    assert await listener.wait(5)
            assert not dead.exists()
            assert full.exists()
            assert db.statistics().rings_undelivered


async def test_bells_are_removed_with_their_last_listener(path: Path, notes: MigrationSet) -> None:
    folder = path.parent / "wake"
    async with Database.open(path, [notes]) as db:
        async with db.listen("a/1"), db.listen("a/2"), db.listen("b"):
            assert len(os.listdir(folder)) == 2
        assert os.listdir(folder) == []


async def test_a_bell_of_an_overflowing_queue_rings_every_topic_of_its_root(tmp_path: Path) -> None:
    """The kernel queues few datagrams: those that were turned away may have had other topics."""
    receiver = WakeHub(str(tmp_path / "plane.db"))
    sender = WakeHub(str(tmp_path / "plane.db"))
    try:
        quiet = receiver.listen("a/quiet")
        for i in range(2000):
            sender.ring([f"a/{i}"])
        assert sender.undelivered > 0
        assert await quiet.wait(5)
        receiver.unlisten(quiet)
    finally:
        sender.close()
        receiver.close()


async def test_another_hub_of_the_folder_is_rung_however_deep_the_folder_is(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    receiver, sender = WakeHub(str(deep / "plane.db")), WakeHub(str(deep / "plane.db"))
    other_file = WakeHub(str(deep / "other.db"))
    try:
        listener, stranger = receiver.listen("t/1"), other_file.listen("t/1")
        sender.ring(["t/1"])
        assert await listener.wait(5)
        sender.ring({f"t/{i}" for i in range(1000)})
        assert await listener.wait(5)
        assert not await stranger.wait(0.02)
        receiver.unlisten(listener)
        other_file.unlisten(stranger)
    finally:
        for hub in (sender, receiver, other_file):
            hub.close()


async def test_a_bell_hung_up_right_after_a_listing_is_found(tmp_path: Path) -> None:
    """The folder's time stamp is coarser than two calls: a listing is kept only when it is old enough."""
    receiver, sender = WakeHub(str(tmp_path / "plane.db")), WakeHub(str(tmp_path / "plane.db"))
    try:
        for i in range(200):
            sender.ring([f"t{i}"])
            listener = receiver.listen(f"t{i}")
            sender.ring([f"t{i}"])
            assert await listener.wait(5)
            receiver.unlisten(listener)
    finally:
        sender.close()
        receiver.close()


async def test_listeners_end_with_their_database_and_have_one_waiter(path: Path, notes: MigrationSet) -> None:
    async with Database.open(path, [notes]) as db:
        async with db.listen("t") as listener:
            waiting = asyncio.create_task(listener.wait())
            await asyncio.sleep(0)
            with pytest.raises(FailedPrecondition, match="has a waiter already"):
                await listener.wait()
            await db.aclose()
            with pytest.raises(Closed):
                await waiting
            with pytest.raises(Closed):
                await listener.wait()


@pytest.mark.parametrize("topic", ["", "*", "a\nb", "/a", "x" * 256])
async def test_a_topic_that_cannot_be_sent_is_refused(path: Path, topic: str) -> None:
    async with Database.open(path) as db:
        with pytest.raises(InvalidArgument, match="topic: "):
            async with db.listen(topic):
                pass
        with pytest.raises(InvalidArgument, match="topic: "):
            await db.write(lambda tx: tx.wake(topic))


async def test_a_bell_that_came_within_the_grain_of_the_folders_time_stamp_is_rung(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    ringer, other = WakeHub(str(path)), WakeHub(str(path))
    folder = path.parent / "wake"
    stamp = time.time_ns() + 60_000_000_000  # as good as this very moment: what changes now may not change it
    os.utime(folder, ns=(stamp, stamp))
    ringer.ring(["t"])
    listener = other.listen("t")
    try:
        os.utime(folder, ns=(stamp, stamp))
        ringer.ring(["t"])
        assert await listener.wait(5)
    finally:
        other.unlisten(listener)
        other.close()
        ringer.close()
