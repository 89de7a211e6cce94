"""The database that features use: transactions, one pool, bounds, bells, migrations."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

import pytest

from groundplane.backends.postgres import Database, MigrationSet, Transaction, bells
from groundplane.backends.postgres.pipelining import Pipelining
from groundplane.core.errors import AlreadyExists, Closed, FailedPrecondition, GroundplaneError, Internal, Unavailable
from pace import at_most

pytestmark = pytest.mark.anyio

_CREATE = ("0001_create.sql", "CREATE TABLE note (id bigint PRIMARY KEY, words text)")
NOTES = MigrationSet(component="notes", scripts=(_CREATE,))
NOTES_2 = MigrationSet(
    component="notes",
    scripts=(_CREATE, ("0002_more.sql", "ALTER TABLE note ADD more text; CREATE INDEX ON note (more)")),
)


@pytest.fixture
async def db(postgres_url: str) -> AsyncIterator[Database]:
    async with Database.open(postgres_url, [NOTES]) as opened:
        yield opened


async def _notes(db: Database) -> list[int]:
    return [row[0] for row in await db.query(f"SELECT id FROM {db.schema}.note ORDER BY id")]


def _insert(db: Database) -> str:
    return f"INSERT INTO {db.schema}.note (id) VALUES (%s)"


async def test_a_transaction_is_made_as_a_whole_with_what_was_only_told(db: Database) -> None:
    async def work(tx: Transaction) -> int:
        await tx.execute(_insert(db), (1,))
        assert await _notes(db) == []  # nobody else sees it yet
        tx.tell(_insert(db), (2,))
        ((own,),) = await tx.execute(f"SELECT count(*) FROM {db.schema}.note")
        tx.tell(_insert(db), (3,))
        return int(own)

    assert await db.write(work) == 2
    assert await _notes(db) == [1, 2, 3]


async def test_a_pipeline_goes_out_with_its_sync_and_not_statement_by_statement(postgres_url: str) -> None:
    async with await Pipelining.connect(postgres_url, autocommit=True) as connection:
        async with connection.pipeline() as pipeline:
            asked = [await connection.execute("SELECT %s::int", (number,)) for number in range(3)]
            assert len(pipeline.command_queue) == 3
            await pipeline.sync()
            assert [await one.fetchone() for one in asked] == [(0,), (1,), (2,)]
        assert await (await connection.execute("SELECT 4")).fetchone() == (4,)


async def test_a_value_that_the_socket_does_not_take_at_once_arrives(postgres_url: str) -> None:
    large = "x" * 20_000_000

    async def work(tx: Transaction) -> int:
        tx.tell(f"UPDATE {db.schema}.note SET words = 'told'")
        ((size,),) = await tx.execute(f"INSERT INTO {db.schema}.note VALUES (1, %s) RETURNING length(words)", (large,))
        return int(size)

    async with Database.open(f"{postgres_url}{_more(postgres_url)}call_timeout=60", [NOTES]) as db:
        assert await db.write(work) == len(large)


async def test_what_the_commit_fails_with_is_raised_and_nothing_of_it_stays(db: Database) -> None:
    async def work(tx: Transaction) -> None:
        tx.tell(_insert(db), (1,))
        tx.tell(_insert(db), (1,))
        tx.tell(_insert(db), (2,))

    with pytest.raises(AlreadyExists):
        await db.write(work)
    assert await _notes(db) == []
    await db.query(_insert(db), (3,))  # the connection is as good as new


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("text", ["plain", "", "NULL", None, 'say "so"', "back\\slash\\", "{a,b}", " ü€ 𝄞 \u2028", "two\nlines"]),
        ("text", [None, None]),
        ("text", []),
        ("bytea", [b"", None, bytes(range(256)), b'\\x"']),
        ("bigint", [1, None, -(2**62)]),
        ("boolean", [True, False, None]),
    ],
)
async def test_lists_come_back_as_they_went(db: Database, kind: str, given: list[object]) -> None:
    ((back,),) = await db.query(f"SELECT %s::{kind}[]", (given,))
    rows = await db.query(f"SELECT * FROM unnest(%s::{kind}[])", (given,))
    assert back == given
    assert [row[0] for row in rows] == given


async def test_a_text_that_postgresql_cannot_have_is_refused_also_in_a_list(db: Database) -> None:
    with pytest.raises(GroundplaneError, match="NUL"):
        await db.query("SELECT %s::text[]", (["fine", "no\0"],))
    assert await db.query("SELECT 1") == [(1,)]


async def test_an_exception_of_the_work_undoes_it_and_is_raised(db: Database) -> None:
    async def work(tx: Transaction) -> None:
        await tx.execute(_insert(db), (1,))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await db.write(work)

    async def twice(tx: Transaction) -> None:
        tx.tell(_insert(db), (1,))
        tx.tell(_insert(db), (1,))

    with pytest.raises(AlreadyExists):
        await db.write(twice)
    assert await _notes(db) == []
    await db.query(_insert(db), (1,))
    assert await _notes(db) == [1]


async def test_statements_of_one_message_are_one_transaction(db: Database) -> None:
    with pytest.raises(AlreadyExists):
        await db.query_all([(_insert(db), (1,)), (_insert(db), (1,))])
    assert await _notes(db) == []
    rows = await db.query_all([(_insert(db) + " RETURNING id", (1,)), (f"SELECT count(*) FROM {db.schema}.note", ())])
    assert rows == [[(1,)], [(1,)]]


async def test_handles_of_a_loop_share_their_connections_and_the_last_closes_them(postgres_url: str) -> None:
    async with Database.open(postgres_url, [NOTES]) as one:
        async with Database.open(postgres_url, [NOTES]) as two:
            await asyncio.gather(*(db.query("SELECT pg_sleep(0.01)") for db in (one, two) * 20))
            assert one.statistics() == two.statistics()
            assert 1 <= one.statistics().connections <= 8
        assert await one.query("SELECT 1") == [(1,)]
        with pytest.raises(Closed):
            await two.query("SELECT 1")


async def test_a_call_that_takes_too_long_is_cut_off_and_the_next_works(postgres_url: str) -> None:
    async with Database.open(f"{postgres_url}{_more(postgres_url)}call_timeout=2") as db:
        start = time.monotonic()
        with pytest.raises(Unavailable, match="did not answer within"):
            await db.query("SELECT pg_sleep(20)")
        assert 1.9 < time.monotonic() - start < at_most(3)
        assert await db.query("SELECT 1") == [(1,)]


async def test_a_call_that_waits_for_a_connection_too_long_is_unavailable(postgres_url: str) -> None:
    async with Database.open(f"{postgres_url}{_more(postgres_url)}call_timeout=2&pool_max=2") as db:
        calls = [db.query("SELECT pg_sleep(0.2)") for _ in range(40)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in outcomes} == {list, Unavailable}
        assert await db.query("SELECT 1") == [(1,)]


async def test_a_connection_that_is_cut_off_when_the_answer_has_come_is_given_to_nobody_else(postgres_url: str) -> None:
    async with Database.open(f"{postgres_url}{_more(postgres_url)}pool_min=1&pool_max=2") as db:
        async with db._engine._connection() as (connection, bound):
            await connection.execute("SELECT 1")
            bound._cut_off()  # as its timer does where the loop stood still between the answer and the call's end
        for _ in range(4):
            assert await db.query("SELECT 1") == [(1,)]


async def test_cancelling_a_call_ends_it_at_once_and_takes_no_connection_away(db: Database) -> None:
    for _ in range(12):
        task = asyncio.create_task(db.query("SELECT pg_sleep(20)"))
        await asyncio.sleep(0.02)  # it is under way
        task.cancel()
        start = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start < at_most(1)
    assert await db.query("SELECT 1") == [(1,)]


async def test_closing_ends_calls_under_way_in_bounded_time(postgres_url: str) -> None:
    async with Database.open(postgres_url) as db:
        calls = [asyncio.create_task(db.query("SELECT pg_sleep(20)")) for _ in range(3)]
        await asyncio.sleep(0.05)  # they are under way
        start = time.monotonic()
        await asyncio.gather(db.aclose(), db.aclose())
        assert time.monotonic() - start < 10
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in outcomes} == {Closed}


@pytest.fixture
def unpolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is rung but by a bell: else all are now and then, lest something was missed."""
    monkeypatch.setattr(bells, "POLL_S", 3600.0)
    monkeypatch.setattr(bells, "POLL_DEAF_S", 3600.0)


@pytest.mark.usefixtures("unpolled")
async def test_a_bell_rings_after_the_commit_in_every_handle_and_for_its_topic_alone(
    db: Database, postgres_url: str
) -> None:
    async with (
        Database.open(f"{postgres_url}{_more(postgres_url)}application_name=other") as other,
        other.listen("a") as far,
        db.listen("a") as near,
        db.listen("b") as silent,
    ):
        await _hearing(db)
        await _hearing(other)
        for listener in (far, near, silent):
            await listener.wait(0.01)

        async def work(tx: Transaction) -> None:
            tx.ring("a")
            await tx.execute(_insert(db), (1,))
            assert not await near.wait(0.05)

        start = time.monotonic()
        await db.write(work)
        assert await near.wait(5)
        assert await far.wait(5)
        assert time.monotonic() - start < at_most(2)
        assert other.statistics().notified >= 1
        assert not await silent.wait(0.01)


@pytest.mark.usefixtures("unpolled")
async def test_a_transaction_that_is_undone_rings_nothing(db: Database) -> None:
    async with db.listen("a") as listener:
        await _hearing(db)
        await listener.wait(0.01)

        async def work(tx: Transaction) -> None:
            tx.ring("a")
            raise ValueError

        with pytest.raises(ValueError, match=r"^$"):
            await db.write(work)
        assert not await listener.wait(0.05)


async def _hearing(db: Database) -> None:
    async with asyncio.timeout(20):
        while db.statistics().deaf:
            await asyncio.sleep(0.01)


@pytest.mark.req("CORE-06")
async def test_an_older_schema_is_refused_with_the_command_and_upgraded_where_that_is_asked_for(
    postgres_url: str,
) -> None:
    assert [one.version for one in await Database.check(postgres_url, [NOTES_2])] == [1, 2]
    async with Database.open(postgres_url, [NOTES]) as db:
        await db.query(_insert(db), (7,))
        with pytest.raises(FailedPrecondition, match="run `groundplane db upgrade`") as caught:
            async with Database.open(postgres_url, [NOTES_2]):
                pass
        assert caught.value.reason == "schema_old"
        async with Database.open(postgres_url, [NOTES_2], upgrade=True):
            assert await db.query(f"SELECT id, more FROM {db.schema}.note") == [(7, None)]
        with pytest.raises(FailedPrecondition) as caught:
            async with Database.open(postgres_url, [NOTES]):
                pass
        assert caught.value.reason == "schema_newer"
    assert await Database.check(postgres_url, [NOTES_2]) == ()
    changed = MigrationSet(component="notes", scripts=((_CREATE[0], "SELECT 1"), NOTES_2.scripts[1]))
    with pytest.raises(FailedPrecondition) as caught:
        await Database.check(postgres_url, [changed])
    assert caught.value.reason == "schema_changed"


@pytest.mark.req("CORE-06")
async def test_a_migration_that_fails_leaves_nothing_behind(postgres_url: str) -> None:
    broken = MigrationSet(component="notes", scripts=(_CREATE, ("0002_more.sql", "CREATE TABLE odd (id nonsense)")))
    with pytest.raises(Internal, match="0002_more of 'notes' failed"):
        async with Database.open(postgres_url, [broken]):
            pass
    async with Database.open(postgres_url, [NOTES]) as db:
        assert await _notes(db) == []


@pytest.mark.req("CORE-06", "JOB-10.1")
async def test_ten_openers_at_once_migrate_once(postgres_url: str) -> None:
    async def one(number: int) -> None:
        async with Database.open(f"{postgres_url}{_more(postgres_url)}application_name=n{number}", [NOTES]) as db:
            await db.query(_insert(db), (number,))

    await asyncio.gather(*(one(number) for number in range(10)))
    async with Database.open(postgres_url, [NOTES]) as db:
        assert await _notes(db) == list(range(10))


_OPENER = """
import asyncio, sys
from groundplane.backends.postgres import Database, MigrationSet
async def main():
    notes = MigrationSet(component="notes", scripts=(("0001_create.sql", "CREATE TABLE note (id bigint PRIMARY KEY)"),))
    async with Database.open(sys.argv[1], [notes]) as db:
        await db.query(f"INSERT INTO {db.schema}.note VALUES (%s)", (int(sys.argv[2]),))
asyncio.run(main())
"""


@pytest.mark.req("CORE-06", "JOB-10.1")
async def test_ten_processes_that_open_a_new_schema_at_once_make_one(postgres_url: str) -> None:
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _OPENER, postgres_url, str(number))
        for number in range(10)
    ]
    assert await asyncio.gather(*(one.wait() for one in processes)) == [0] * 10
    async with Database.open(
        postgres_url,
        [MigrationSet(component="notes", scripts=(("0001_create.sql", "CREATE TABLE note (id bigint PRIMARY KEY)"),))],
    ) as db:
        assert await _notes(db) == list(range(10))


def _more(url: str) -> str:
    return "&" if "?" in url else "?"
