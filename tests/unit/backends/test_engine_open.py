"""Opening, sharing and closing a file; telling ours from others."""

# ruff: noqa: ASYNC240 (a test may touch a file)
from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from groundplane.backends.sqlite import Database, MigrationSet, Options
from groundplane.backends.sqlite.connection import APPLICATION_ID, check_library
from groundplane.core.errors import Closed, FailedPrecondition, InvalidArgument, PermissionDenied, Unavailable

pytestmark = pytest.mark.anyio

CREATE = ("0001_create.sql", "CREATE TABLE a (x INTEGER) STRICT")
ADD = ("0002_add.sql", "ALTER TABLE a ADD COLUMN y INTEGER; CREATE INDEX a_y ON a (y)")


def version(*scripts: tuple[str, str], component: str = "notes") -> MigrationSet:
    return MigrationSet(component=component, scripts=scripts)


def write(text: str) -> Any:
    return lambda tx: tx.execute("INSERT INTO note (text) VALUES (?)", (text,))


@contextmanager
def locked_by_another(path: Path) -> Iterator[None]:
    """The write lock, held through a descriptor of its own as another process would."""
    fd = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


async def test_a_new_file_is_ours_by_its_header_and_private_by_its_folder(tmp_path: Path, notes: MigrationSet) -> None:
    path = tmp_path / "state" / "plane.db"
    async with Database.open(path, [notes]) as db:
        await db.write(write("a"))
        settings = await db.read(
            lambda tx: [
                tx.execute(f"PRAGMA {name}")[0][0]
                for name in ("application_id", "user_version", "journal_mode", "auto_vacuum", "foreign_keys")
            ]
        )
    assert settings == [APPLICATION_ID, 1, "wal", 2, 1]
    assert path.read_bytes()[68:72] == b"GPLN"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(p.name for p in path.parent.iterdir()) == ["plane.db", "plane.db-ballast", "plane.db-lock", "wake"]


async def test_handles_of_one_file_share_an_engine_and_close_one_by_one(path: Path, notes: MigrationSet) -> None:
    link = path.with_name("link.db")
    async with Database.open(path, [notes]) as first:
        link.symlink_to(path)
        async with Database.open(link, [version(CREATE, component="other")]) as second:
            assert second._engine is first._engine
            await first.write(write("a"))
            await first.aclose()
            with pytest.raises(Closed):
                await first.write(write("b"))
            assert await second.read(lambda tx: tx.execute("SELECT text FROM note")) == [("a",)]
            await second.write(lambda tx: tx.execute("INSERT INTO a VALUES (1)"))


async def test_twenty_opens_and_closes_at_once_leave_one_file_intact(path: Path, notes: MigrationSet) -> None:
    async def use(i: int) -> None:
        for j in range(5):
            async with Database.open(path, [notes]) as db:
                await db.write(write(f"{i}/{j}"))

    await asyncio.gather(*(use(i) for i in range(20)))
    async with Database.open(path, [notes]) as db:
        assert await db.read(lambda tx: tx.execute("SELECT count(*) FROM note")) == [(100,)]


async def test_an_open_that_is_cancelled_leaves_nothing_open(path: Path, notes: MigrationSet) -> None:
    with locked_by_another(path):
        opening = asyncio.create_task(Database.open(path, [notes], options=Options(busy_timeout_s=2)).__aenter__())
        await asyncio.sleep(0.05)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    for delay_s in (0, 0.001, 0.003, 0.005, 0.008):
        opening = asyncio.create_task(Database.open(path, [notes]).__aenter__())
        await asyncio.sleep(delay_s)
        opening.cancel()
        outcome = (await asyncio.gather(opening, return_exceptions=True))[0]
        if isinstance(outcome, Database):
            await outcome.aclose()


async def test_every_call_after_close_is_closed_and_closing_twice_is_fine(path: Path, notes: MigrationSet) -> None:
    async with Database.open(path, [notes]) as db:
        await asyncio.gather(db.aclose(), db.aclose())
        await db.aclose()
        for call in (db.write(write("a")), db.read(lambda tx: tx.execute("SELECT 1"))):
            with pytest.raises(Closed, match="open it again"):
                await call
        with pytest.raises(Closed):
            db.statistics()
        with pytest.raises(Closed):
            async with db.listen("t"):
                pass
        assert "closed" in repr(db)


async def test_close_commits_what_was_written_before(path: Path, notes: MigrationSet) -> None:
    async with Database.open(path, [notes]) as db:
        writes = [asyncio.create_task(db.write(write(str(i)))) for i in range(100)]
        await asyncio.sleep(0)
    assert len(await asyncio.gather(*writes)) == 100


@pytest.mark.req("CORE-03.1")
@pytest.mark.parametrize("inline", [False, True], ids=["thread", "inline"])
async def test_close_is_bounded_while_another_process_holds_the_lock(
    path: Path, notes: MigrationSet, inline: bool
) -> None:
    async with Database.open(path, [notes], options=Options(busy_timeout_s=60), inline=inline) as db:
        with locked_by_another(path):
            blocked = asyncio.create_task(db.write(write("a")))
            await asyncio.sleep(0.01)
            began = time.monotonic()
            await db.aclose()
            assert time.monotonic() - began < 10
            with pytest.raises(Closed, match="its outcome is not known"):
                await blocked


@pytest.mark.parametrize("inline", [False, True], ids=["thread", "inline"])
async def test_a_lock_that_is_not_had_in_time_is_unavailable_and_names_the_holder(
    path: Path, notes: MigrationSet, inline: bool
) -> None:
    async with Database.open(path, [notes], options=Options(busy_timeout_s=0.2), inline=inline) as db:
        with locked_by_another(path):
            began = time.monotonic()
            outcomes = await asyncio.gather(*(db.write(write(str(i))) for i in range(3)), return_exceptions=True)
            assert time.monotonic() - began < 5
            assert await db.read(lambda tx: tx.execute("SELECT * FROM note")) == []
            with pytest.raises(Unavailable):
                await db.write(write("late"))
        for error in outcomes:
            assert isinstance(error, Unavailable)
            assert error.reason == "database_busy"
            assert error.retryable
            assert f"process {os.getpid()}" in str(error)
        await db.write(write("after"))
        assert await db.read(lambda tx: tx.execute("SELECT text FROM note")) == [("after",)]


async def test_opening_while_the_lock_is_held_ends_at_the_deadline(path: Path, notes: MigrationSet) -> None:
    with locked_by_another(path):
        with pytest.raises(Unavailable) as caught:
            async with Database.open(path, [notes], options=Options(busy_timeout_s=0.1)):
                pass
    assert caught.value.reason == "database_busy"


async def test_no_sqlite_file_and_a_foreign_one_are_refused_unchanged(path: Path, notes: MigrationSet) -> None:
    path.write_bytes(b"these are 64 bytes of somebody's text, which is no database at all" * 40)
    other = path.with_name("other.db")
    with sqlite3.connect(other) as foreign:
        foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    for victim in (path, other):
        before = victim.read_bytes()
        for attempt in (Database.open(victim, [notes]), Database.open(victim, [notes], upgrade=True)):
            with pytest.raises(FailedPrecondition, match="choose another state folder") as caught:
                async with attempt:
                    pass
            assert caught.value.reason == "foreign_database"
            assert str(victim) in str(caught.value)
        with pytest.raises(FailedPrecondition, match="choose another state folder"):
            await Database.check(victim, [notes])
        assert victim.read_bytes() == before


async def test_an_empty_file_is_a_new_one(path: Path, notes: MigrationSet) -> None:
    path.touch()
    async with Database.open(path, [notes]) as db:
        await db.write(write("a"))


async def test_a_folder_or_an_unwritable_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"path: .* is a folder"):
        async with Database.open(tmp_path):
            pass
    with pytest.raises(PermissionDenied, match="mend the permissions") as caught:
        async with Database.open("/sys/plane.db"):
            pass
    assert caught.value.reason == "read_only"


@pytest.mark.req("CORE-06.1")
async def test_a_newer_format_and_a_newer_schema_are_refused_with_both_versions(path: Path) -> None:
    async with Database.open(path, [version(CREATE, ADD)]):
        pass
    with pytest.raises(FailedPrecondition, match="schema version 2, this Groundplane knows 1") as caught:
        async with Database.open(path, [version(CREATE)], upgrade=True):
            pass
    assert caught.value.reason == "schema_newer"
    with apsw.Connection(str(path)) as raw:
        raw.execute("PRAGMA user_version = 7").fetchall()
    raw.close()
    with pytest.raises(FailedPrecondition, match="format 7, this Groundplane knows 1") as caught:
        async with Database.open(path, [version(CREATE, ADD)]):
            pass
    assert caught.value.reason == "schema_newer"


@pytest.mark.req("CORE-06.1", "CORE-06.2")
async def test_an_older_schema_is_refused_with_the_command_and_upgraded_on_request(path: Path) -> None:
    async with Database.open(path, [version(CREATE)]) as db:
        await db.write(lambda tx: tx.execute("INSERT INTO a VALUES (5)"))
    with pytest.raises(FailedPrecondition, match="groundplane db upgrade") as caught:
        async with Database.open(path, [version(CREATE, ADD)]):
            pass
    assert caught.value.reason == "schema_old"
    assert [one.name for one in await Database.check(path, [version(CREATE, ADD)])] == ["add"]
    async with Database.open(path, [version(CREATE, ADD)], upgrade=True) as db:
        assert await db.read(lambda tx: tx.execute("SELECT x, y FROM a")) == [(5, None)]
    assert await Database.check(path, [version(CREATE, ADD)]) == ()


@pytest.mark.req("CORE-06.1")
async def test_a_failing_migration_changes_nothing(path: Path) -> None:
    bad = ("0003_bad.sql", "CREATE TABLE b (x); INSERT INTO missing VALUES (1)")
    async with Database.open(path, [version(CREATE)]):
        pass
    with pytest.raises(Exception, match="0003_bad of 'notes' failed"):
        async with Database.open(path, [version(CREATE, ADD, bad)], upgrade=True):
            pass
    assert [one.version for one in await Database.check(path, [version(CREATE, ADD, bad)])] == [2, 3]


async def test_a_migration_that_was_edited_after_its_release_is_refused(path: Path) -> None:
    async with Database.open(path, [version(CREATE)]):
        pass
    edited = (CREATE[0], CREATE[1].replace("INTEGER", "TEXT"))
    with pytest.raises(FailedPrecondition, match="restore the released file") as caught:
        async with Database.open(path, [version(edited)]):
            pass
    assert caught.value.reason == "schema_changed"


async def test_check_tells_what_a_missing_file_would_get_without_making_it(path: Path) -> None:
    assert [one.version for one in await Database.check(path, [version(CREATE, ADD)])] == [1, 2]
    assert not path.exists()


@pytest.mark.req("CORE-07")
async def test_an_older_sqlite_is_refused_with_both_versions() -> None:
    with pytest.raises(FailedPrecondition, match=r"3\.51\.2 is older than 3\.51\.3") as caught:
        check_library("3.51.2")
    assert caught.value.reason == "server_too_old"
    check_library("3.51.3")
    check_library("3.100.0")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_is_told_and_its_parent_goes_on(path: Path, notes: MigrationSet) -> None:
    async with Database.open(path, [notes]) as db:
        async with db.listen("t"):
            await db.write(write("before"))
            assert _ask_child(db, path, notes) == ["forked", "forked"]
            for i in range(20):
                await db.write(write(f"after {i}"))
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM note").fetchone() == (21,)
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


def _ask_child(db: Database, path: Path, notes: MigrationSet) -> list[str]:
    """The reasons of the errors that a forked child gets from the handle and from opening the file itself."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        reasons = []
        for attempt in (
            lambda: db.write(write("child")),
            lambda: Database._attach(path, [notes], upgrade=False, inline=False, options=None),
        ):
            try:
                attempt().send(None)  # type: ignore[attr-defined]
            except FailedPrecondition as error:
                reasons.append(error.reason)
            except BaseException as error:  # noqa: BLE001 (told to the parent)
                reasons.append(repr(error))
        os.write(write_end, ",".join(reasons).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as answer:
        return answer.read().split(",")


async def test_options_out_of_range_are_named(path: Path) -> None:
    for options, message in (
        (Options(busy_timeout_s=0), "busy_timeout_s: 0"),
        (Options(readers=0), "readers: 0"),
        (Options(ballast_bytes=-1), "ballast_bytes: -1"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            async with Database.open(path, options=options):
                pass
