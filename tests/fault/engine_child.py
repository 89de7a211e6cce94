"""What the processes of the engine's fault tests do: `python engine_child.py ROLE FILE …`. Answers on stdout."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from groundplane.backends.sqlite import Database, MigrationSet, Options, Transaction

ROWS = MigrationSet(
    component="rows",
    scripts=(
        (
            "0001_create.sql",
            "CREATE TABLE row (writer TEXT, n INTEGER, PRIMARY KEY (writer, n)) STRICT, WITHOUT ROWID;"
            "CREATE TABLE stamp (id INTEGER PRIMARY KEY AUTOINCREMENT, sent_ns INTEGER) STRICT",
        ),
        ("0002_index.sql", "CREATE INDEX row_n ON row (n)"),
    ),
)


def say(text: str) -> None:
    """One write, so that nothing acknowledged stays in a buffer when this process is killed."""
    os.write(1, text.encode() + b"\n")


async def write(path: str, writer: str, seconds: str, mode: str) -> None:
    """Inserts rows from several tasks and says each after it was acknowledged."""
    until = time.monotonic() + float(seconds)
    counter = iter(range(10**9))

    def insert(n: int) -> Any:
        return lambda tx: tx.execute("INSERT INTO row VALUES (?, ?)", (writer, n))

    async def task(db: Database) -> None:
        while time.monotonic() < until:
            n = next(counter)
            await db.write(insert(n), durable=n % 3 != 0)
            say(f"{writer} {n}")

    async with Database.open(path, [ROWS], inline=mode == "inline") as db:
        say("ready")
        await asyncio.gather(*(task(db) for _ in range(8)))
        say(f"waited {db.statistics().lock_contended}")


async def open_once(path: str) -> None:
    """Opens at the same moment as its siblings, writes one row, closes."""
    say("ready")
    sys.stdin.readline()
    async with Database.open(path, [ROWS]) as db:
        await db.write(lambda tx: tx.execute("INSERT INTO row VALUES (?, 0)", (str(os.getpid()),)))
    say("done")


async def listen(path: str, count: str, poll_s: str) -> None:
    """Says how many nanoseconds after it was written each stamp was seen."""
    async with Database.open(path, [ROWS], options=Options(poll_s=float(poll_s))) as db, db.listen("stamps") as bell:
        say("ready")
        seen = 0
        while seen < int(count):
            if not await bell.wait(20):
                raise TimeoutError(f"not rung after stamp {seen}")
            rows = await db.read(lambda tx, after=seen: tx.execute("SELECT * FROM stamp WHERE id > ?", (after,)))
            for seen, sent_ns in rows:
                say(f"{seen} {time.monotonic_ns() - sent_ns}")


async def hold(path: str) -> None:
    """Takes the write lock and keeps it until it is told to end."""

    def work(tx: Transaction) -> None:
        say("held")
        sys.stdin.readline()

    async with Database.open(path, [ROWS]) as db:
        await db.write(work)


def stamp(tx: Transaction) -> None:
    tx.execute("INSERT INTO stamp (sent_ns) VALUES (?)", (time.monotonic_ns(),))
    tx.wake("stamps")


if __name__ == "__main__":
    roles: dict[str, Any] = {"write": write, "open": open_once, "listen": listen, "hold": hold}
    asyncio.run(roles[sys.argv[1]](*sys.argv[2:]))
