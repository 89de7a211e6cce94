"""Writes what a released schema of jobs looks like with data in it: `python tests/wire/jobs_release.py FILE.sql`.

Run it once for each new migration, before the release that ships it; the file is never changed afterwards.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from pathlib import Path

from groundplane.core.errors import ErrorRecord
from groundplane.jobs import Jobs, NewJob
from groundplane.jobs.port import Finish, OutboxMessage, Park, Progress, Split

FAR = 4_102_444_800_000


def job(name: str, **more: object) -> NewJob:
    given = {"tool": "t", "route": ["a", "b"], "arguments": {"name": name, "ä": None}, "arguments_hash": "h"}
    return NewJob(job_id=name, **given | more)  # type: ignore[arg-type]


def message(name: str) -> OutboxMessage:
    return OutboxMessage(queue="a", id=name, payload=b"\x80", headers={"k": "v"}, dedup_key=f"{name}:0")


async def fill(jobs: Jobs) -> None:
    """A job in each state, a fan-out half done, a message that waits and one that is parked."""
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


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(asyncio.run(release()), encoding="utf-8")
