"""Group commit: what a write promises, in a thread and inline."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from groundplane.backends.sqlite import Database, MigrationSet, Options, Transaction, workers
from groundplane.core.errors import (
    AlreadyExists,
    Closed,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["thread", "inline"])
def inline(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def insert(text: str) -> Any:
    return lambda tx: tx.execute("INSERT INTO note (text) VALUES (?) RETURNING id", (text,))[0][0]


async def texts(db: Database) -> list[str]:
    return [row[0] for row in await db.read(lambda tx: tx.execute("SELECT text FROM note ORDER BY id"))]


async def entered(sync: Any) -> None:
    """Waits until the writer is inside the sync."""
    async with asyncio.timeout(10):
        while not sync.entered.is_set():
            await asyncio.sleep(0.001)


async def test_writes_that_come_together_share_one_commit_and_one_sync(
    path: Path, notes: MigrationSet, inline: bool
) -> None:
    async with Database.open(path, [notes], inline=inline) as db:
        before = db.statistics()
        ids = await asyncio.gather(*(db.write(insert(f"n{i}")) for i in range(200)))
        after = db.statistics()
    assert ids == list(range(1, 201))
    assert after.writes - before.writes == 200
    assert after.commits - before.commits <= 20  # the thread commits more often where the loop is held up
    assert after.syncs - before.syncs <= 20


async def test_a_failing_work_is_rolled_back_alone(path: Path, notes: MigrationSet, inline: bool) -> None:
    def failing(tx: Transaction) -> None:
        tx.execute("INSERT INTO note (text) VALUES ('half')")
        raise LookupError("of the work")

    async with Database.open(path, [notes], inline=inline) as db:
        outcomes = await asyncio.gather(
            db.write(insert("a")), db.write(failing), db.write(insert("b")), return_exceptions=True
        )
        assert isinstance(outcomes[1], LookupError)
        assert await texts(db) == ["a", "b"]


async def test_a_unique_key_that_exists_is_already_exists_for_its_write_alone(
    path: Path, notes: MigrationSet, inline: bool
) -> None:
    async with Database.open(path, [notes], inline=inline) as db:
        await db.write(insert("a"))
        first, second = await asyncio.gather(db.write(insert("a")), db.write(insert("b")), return_exceptions=True)
        assert isinstance(first, AlreadyExists)
        assert first.__cause__ is not None
        assert second == 3 or second == 2
        assert await texts(db) == ["a", "b"]


async def test_a_write_returns_only_after_its_sync_and_a_quick_one_after_its_commit(
    path: Path, notes: MigrationSet, sync: Any
) -> None:
    async with Database.open(path, [notes], options=Options(sync=sync)) as db:
        sync.hold()
        durable = asyncio.create_task(db.write(insert("durable")))
        quick = asyncio.create_task(db.write(insert("quick"), durable=False))
        assert await asyncio.wait_for(quick, 10) == 2
        await entered(sync)
        assert await texts(db) == ["durable", "quick"]
        assert not durable.done()
        sync.let_go()
        assert await asyncio.wait_for(durable, 10) == 1


async def test_quick_writes_alone_are_not_synced(path: Path, notes: MigrationSet, inline: bool) -> None:
    async with Database.open(path, [notes], inline=inline) as db:
        before = db.statistics()
        await db.write(insert("a"), durable=False)
        assert db.statistics().commits == before.commits + 1
        assert db.statistics().syncs == before.syncs


async def test_after_a_failed_sync_no_write_is_acknowledged_any_more(
    path: Path, notes: MigrationSet, sync: Any, inline: bool
) -> None:
    async with Database.open(path, [notes], options=Options(sync=sync), inline=inline) as db:
        sync.error = OSError(5, "Input/output error")
        with pytest.raises(Unavailable, match="could not be synced") as caught:
            await db.write(insert("a"))
        assert caught.value.reason == "io_error"
        assert not caught.value.retryable
        assert isinstance(caught.value.__cause__, OSError)
        sync.error = None
        with pytest.raises(Unavailable, match="could not be synced"):
            await db.write(insert("b"))


async def test_writes_take_effect_in_the_order_of_the_calls(path: Path, notes: MigrationSet, inline: bool) -> None:
    options = Options(batch_works_max=7)
    async with Database.open(path, [notes], options=options, inline=inline) as db:
        await asyncio.gather(*(db.write(insert(f"{i:04d}")) for i in range(500)))
        assert await texts(db) == [f"{i:04d}" for i in range(500)]


async def test_a_cancelled_write_that_was_not_begun_has_no_effect(path: Path, notes: MigrationSet, sync: Any) -> None:
    async with Database.open(path, [notes], options=Options(sync=sync)) as db:
        sync.hold()
        first = asyncio.create_task(db.write(insert("first")))
        await entered(sync)
        second = asyncio.create_task(db.write(insert("second")))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        sync.let_go()
        await first
        await db.write(insert("third"))
        assert await texts(db) == ["first", "third"]


async def test_too_many_waiting_writes_are_refused_by_name(path: Path, notes: MigrationSet, sync: Any) -> None:
    async with Database.open(path, [notes], options=Options(sync=sync, write_queue_max=3)) as db:
        sync.hold()
        first = asyncio.create_task(db.write(insert("first")))
        await entered(sync)
        waiting = [asyncio.create_task(db.write(insert(f"w{i}"))) for i in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="write_queue_max: 3") as caught:
            await db.write(insert("one too many"))
        assert caught.value.reason == "queue_full"
        sync.let_go()
        assert await asyncio.gather(first, *waiting) == [1, 2, 3, 4]


async def test_a_batch_gives_the_lock_back_in_time(path: Path, notes: MigrationSet, inline: bool) -> None:
    options = Options(batch_hold_s=0.000_001)
    async with Database.open(path, [notes], options=options, inline=inline) as db:
        await asyncio.gather(*(db.write(insert(f"n{i}")) for i in range(20)))
        assert db.statistics().batch_longest < 20
        assert len(await texts(db)) == 20


async def test_an_async_work_is_refused_and_rolled_back(path: Path, notes: MigrationSet, inline: bool) -> None:
    async def work(tx: Transaction) -> None:
        tx.execute("INSERT INTO note (text) VALUES ('never')")

    async with Database.open(path, [notes], inline=inline) as db:
        with pytest.raises(InvalidArgument, match="async function"):
            await db.write(work)
        assert await texts(db) == []


async def test_a_work_that_ends_the_transaction_is_an_error(path: Path, notes: MigrationSet, inline: bool) -> None:
    async with Database.open(path, [notes], inline=inline) as db:
        with pytest.raises(Internal, match="ended the transaction"):
            await db.write(lambda tx: tx.execute("ROLLBACK"))
        assert await db.write(insert("a")) == 1


async def test_a_transaction_is_useless_after_its_work(path: Path, notes: MigrationSet, inline: bool) -> None:
    kept: list[Transaction] = []
    async with Database.open(path, [notes], inline=inline) as db:
        await db.write(kept.append)
        await db.read(kept.append)
        for tx in kept:
            with pytest.raises(Closed, match="ended with its work"):
                tx.execute("SELECT 1")


async def test_a_read_sees_every_write_that_returned_and_cannot_write(
    path: Path, notes: MigrationSet, inline: bool
) -> None:
    async with Database.open(path, [notes], inline=inline) as db:
        for i in range(20):
            await db.write(insert(str(i)))
            assert len(await texts(db)) == i + 1
        with pytest.raises(FailedPrecondition, match="use write"):
            await db.read(insert("no"))
        with pytest.raises(FailedPrecondition, match="cannot ring"):
            await db.read(lambda tx: tx.wake("topic"))
        with pytest.raises(ZeroDivisionError):
            await db.read(lambda tx: 1 // 0)


async def test_many_reads_run_at_once_on_a_bounded_number_of_threads(path: Path, notes: MigrationSet) -> None:
    async with Database.open(path, [notes], options=Options(readers=2, read_queue_max=1000)) as db:
        await db.write(insert("a"))
        assert await asyncio.gather(*(texts(db) for _ in range(200))) == [["a"]] * 200


async def test_statements_return_rows_changes_and_errors(path: Path, notes: MigrationSet, inline: bool) -> None:
    def work(tx: Transaction) -> tuple[list[Any], int, int]:
        ids = tx.executemany("INSERT INTO note (text) VALUES (:text) RETURNING id", [{"text": "a"}, {"text": "b"}])
        tx.execute("UPDATE note SET text = text || '!'")
        changed = tx.changes()
        tx.execute("DELETE FROM note WHERE id > 5")
        return ids, changed, tx.changes()

    async with Database.open(path, [notes], inline=inline) as db:
        assert await db.write(work) == ([(1,), (2,)], 2, 0)
        with pytest.raises(Internal, match="no such table"):
            await db.write(lambda tx: tx.execute("SELECT * FROM missing"))
        with pytest.raises(TypeError):
            await db.write(lambda tx: tx.execute("SELECT ?", (object(),)))  # type: ignore[arg-type]


async def test_a_file_that_was_replaced_while_open_gets_no_acknowledgement(
    path: Path, notes: MigrationSet, inline: bool
) -> None:
    async with Database.open(path, [notes], inline=inline) as db:
        await db.write(insert("a"))
        moved = path.with_name("moved.db")
        os.rename(path, moved)
        with pytest.raises(FailedPrecondition) as caught:
            await db.write(insert("b"))
        assert caught.value.reason == "database_replaced"
        assert str(path) in str(caught.value)
        os.rename(moved, path)


async def test_syncs_that_come_close_together_leave_the_loop_free(
    path: Path, notes: MigrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Database.open(path, [notes], inline=True, options=Options(sync=lambda _: None)) as db:
        monkeypatch.setattr(workers, "_INLINE_PAUSE_S", 3600.0)
        await db.write(insert("0"))
        assert db.statistics().inline_handed_over == 0
        await db.write(insert("1"), durable=False)
        assert db.statistics().inline_handed_over == 0, "nothing is synced for it"
        await db.write(insert("2"))
        await db.write(insert("3"))
        assert db.statistics().inline_handed_over == 2
        async with asyncio.timeout(10):
            while db.statistics().writes_waiting:  # the thread counts them down after it has answered
                await asyncio.sleep(0)
        monkeypatch.setattr(workers, "_INLINE_PAUSE_S", 0.0)
        await db.write(insert("4"))
        assert db.statistics().inline_handed_over == 2
        assert await db.read(lambda tx: tx.execute("SELECT count(*) FROM note")) == [(5,)]


async def test_while_the_disk_is_slow_inline_writes_go_to_the_thread_and_leave_the_loop_free(
    path: Path, notes: MigrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_INLINE_PAUSE_S", 0.0)
    monkeypatch.setattr(workers, "_INLINE_SYNC_MAX_S", 0.03)  # what is quick is that on a busy machine too
    delay_s, free = 0.5, threading.Event()
    free.set()

    def slow(fd: int) -> None:
        time.sleep(delay_s)
        free.wait(10)

    async with Database.open(path, [notes], options=Options(sync=slow), inline=True) as db:
        await db.write(insert("blocks the loop once"))
        assert db.statistics().inline_handed_over == 0
        rounds = 0
        free.clear()
        write = asyncio.create_task(db.write(insert("does not")))
        while not write.done():
            await asyncio.sleep(0.001)
            rounds += 1
            if rounds > 5:
                free.set()
        assert rounds > 5
        assert db.statistics().inline_handed_over == 1
        delay_s = 0
        for i in range(100):
            await db.write(insert(f"quick {i}"))
        assert db.statistics().inline_handed_over < 100


async def test_compacting_gives_the_pages_of_deleted_rows_back(path: Path, notes: MigrationSet) -> None:
    async with Database.open(path, [notes]) as db:
        await db.write(
            lambda tx: tx.executemany("INSERT INTO note (text) VALUES (?)", [(f"{i:05000d}",) for i in range(900)])
        )
        await db.write(insert("kept"))
        await db.write(lambda tx: tx.execute("DELETE FROM note WHERE text <> 'kept'"))
        pages = await db.read(lambda tx: tx.execute("PRAGMA page_count")[0][0])
        assert pages > 1000
        freed = await db.compact()
        assert await db.read(lambda tx: tx.execute("PRAGMA page_count")[0][0]) == pages - freed < 100
        assert await texts(db) == ["kept"]
        assert await db.compact() == 0
