"""Writes what a released schema of jobs looks like with data in it: `python tests/wire/jobs_release.py FILE.sql`, and
with the URL of a PostgreSQL server behind it the same for its schema.

Run it once for each new migration, before the release that ships it; the file is never changed afterwards.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from groundplane.core.errors import ErrorRecord
from groundplane.core.fencing import Fence
from groundplane.jobs import Jobs, NewJob
from groundplane.jobs.drivers.postgres import MIGRATIONS
from groundplane.jobs.port import Ask, Finish, OutboxMessage, Park, Progress, Question, Split

FAR = 4_102_444_800_000


def job(name: str, **more: object) -> NewJob:
    given = {"tool": "t", "route": ["a", "b"], "arguments": {"name": name, "ä": None}, "arguments_hash": "h"}
    return NewJob(job_id=name, **given | more)  # type: ignore[arg-type]


def message(name: str) -> OutboxMessage:
    return OutboxMessage(queue="a", id=name, payload=b"\x80", headers={"k": "v"}, dedup_key=f"{name}:0")


async def fill(jobs: Jobs) -> None:
    """A job in each state, a fan-out half done, a message that waits and one that is parked, a job that asks."""
    for name in ("pending", "running", "paused", "succeeded", "failed", "cancelled", "fan-out"):
        await jobs.create(job(name, owner="me", idempotency_key=f"key {name}", deadline_at=FAR), [])
    await jobs.create(job("timed_out", deadline_at=1), [])
    await jobs.create(job("waiting"), [message("e-waiting")])
    await jobs.apply(
        Progress(job_id="running", envelope_id="e", hop=0, hops=2, actor="a", weight=50, message="half"),
        Finish(job_id="succeeded", envelope_id="e", result={"answer": [25, None, b"\x00"]}, result_key="r"),
        Finish(job_id="failed", envelope_id="e", error=ErrorRecord("internal", "it broke", "processing_error")),
        Split(job_id="fan-out", envelope_id="e", children=["c0", "c1"]),
        Finish(job_id="fan-out", envelope_id="c1", result="one"),
    )
    await jobs.cancel("cancelled", "enough")
    await jobs.pause("paused")
    await jobs.apply(Park(job_id="paused", message=message("e-paused")))
    await jobs.create(job("asking", deadline_at=FAR), [])
    asked = [Question(question_id=one, message="Sure?", envelope_id="e-asking") for one in ("answered", "open")]
    await jobs.apply(Ask(job_id="asking", questions=asked, message=message("e-asking")))
    await jobs.answer("asking", "answered", {"sure": True}, by="me")
    await jobs.create(job("fenced", fence=Fence("planner", 41)))
    await jobs.sweep()


async def release() -> str:
    """The file as SQL."""
    with tempfile.TemporaryDirectory() as state:
        async with Jobs.open(state=state, namespace="released") as jobs:
            await fill(jobs)
        connection = sqlite3.connect(Path(state) / "plane.db")
        (identity,) = connection.execute("PRAGMA application_id").fetchone()
        lines = [f"PRAGMA application_id = {identity};", *connection.iterdump()]
        connection.close()
    return "\n".join(lines) + "\n"


async def release_of_postgres(url: str) -> str:
    """The migrations, and the rows as they were."""
    async with Jobs.open(f"{url}?schema=released", namespace="released") as jobs:
        await fill(jobs)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET search_path TO released")
        lines = [_CREATE_TABLE_OF_MIGRATIONS, *(one.sql for one in MIGRATIONS.load())]
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'released'::regnamespace AND relkind = 'r' ORDER BY 1"
        ).fetchall()
        for (table,) in tables:
            lines.append(f"ALTER TABLE {table} DISABLE TRIGGER USER;")  # rows are as they became, not as they began
            lines += _rows(connection, table)
            lines.append(f"ALTER TABLE {table} ENABLE TRIGGER USER;")
        connection.execute("DROP SCHEMA released CASCADE")
    return "\n".join(lines) + "\n"


_CREATE_TABLE_OF_MIGRATIONS = """CREATE TABLE groundplane_schema (
  component text NOT NULL, version integer NOT NULL, name text NOT NULL, checksum text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (component, version));"""


def _rows(connection: psycopg.Connection[tuple[Any, ...]], table: str) -> list[str]:
    cursor = connection.execute(sql.SQL("SELECT * FROM {} ORDER BY 1").format(sql.Identifier(table)))
    columns = [column.name for column in cursor.description or ()]
    lines = []
    for row in cursor.fetchall():
        values = ", ".join(sql.Literal(value).as_string(connection) for value in row)
        lines.append(f"INSERT INTO {table} ({', '.join(columns)}) OVERRIDING SYSTEM VALUE VALUES ({values});")
    for (column,) in connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attidentity <> ''", [table]
    ).fetchall():
        lines.append(
            f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), (SELECT max({column}) FROM {table}));"
        )
    return lines


if __name__ == "__main__":
    made = release_of_postgres(sys.argv[2]) if len(sys.argv) > 2 else release()
    Path(sys.argv[1]).write_text(asyncio.run(made), encoding="utf-8")
