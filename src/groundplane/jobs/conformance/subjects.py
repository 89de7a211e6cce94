"""What the suite works on: jobs, messages, reports, and a wait for a condition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from groundplane.core.errors import ErrorRecord
from groundplane.core.ids import new_id
from groundplane.jobs.port import Change, Finish, Job, JobEvent, NewJob, OutboxMessage, Outcome, Progress
from groundplane.jobs.store import Jobs

T = TypeVar("T")
OpenJobs = Callable[[], AbstractAsyncContextManager[Jobs]]

BROKEN = ErrorRecord("internal", "it broke", "processing_error", {"attempt": 1}, type="ValueError", traceback="…")


def new_job(**fields: Any) -> NewJob:
    """A job of two hops."""
    given: dict[str, Any] = {
        "job_id": new_id(),
        "tool": "pipeline",
        "route": ["first", "second"],
        "arguments": {"value": 10},
        "arguments_hash": "h",
    }
    return NewJob(**given | fields)


async def started(jobs: Jobs, **fields: Any) -> str:
    """The id of a fresh job."""
    return (await jobs.create(new_job(**fields))).job.job_id


async def in_time(jobs: Jobs, hold: Callable[[str], Awaitable[object]]) -> tuple[str, int]:
    """A job that `hold` paused before its deadline, and this; made anew where the machine stood still meanwhile."""
    while True:
        deadline_at = round(time.time() * 1000) + 500
        job_id = await started(jobs, deadline_at=deadline_at)
        await hold(job_id)
        paused_at = (await jobs.get(job_id)).paused_at
        assert paused_at is not None
        if paused_at < deadline_at:
            return job_id, deadline_at
        await jobs.cancel(job_id)


def message(envelope_id: str, queue: str = "first", hop: int = 0) -> OutboxMessage:
    """A message of the mesh, as far as a store can tell."""
    return OutboxMessage(
        queue=queue, id=envelope_id, payload=b"\x80\x00", headers={"a": "ä"}, dedup_key=f"{envelope_id}:{hop}"
    )


def report(job_id: str, hop: int, weight: float, *, hops: int = 2, envelope_id: str = "root", **more: Any) -> Progress:
    """A hop's progress."""
    return Progress(job_id=job_id, envelope_id=envelope_id, hop=hop, hops=hops, actor=f"a{hop}", weight=weight, **more)


async def applied(jobs: Jobs, change: Change) -> Outcome:
    """The outcome of one change."""
    (outcome,) = await jobs.apply(change)
    return outcome


async def succeed(jobs: Jobs, job_id: str, result: Any = None, envelope_id: str = "root") -> Outcome:
    """End a branch well."""
    return await applied(jobs, Finish(job_id=job_id, envelope_id=envelope_id, result=result))


async def fail(jobs: Jobs, job_id: str, envelope_id: str = "root", *, holds: bool = False) -> Outcome:
    """End a branch badly."""
    return await applied(jobs, Finish(job_id=job_id, envelope_id=envelope_id, error=BROKEN, holds=holds))


async def history(jobs: Jobs, job_id: str, after: int = 0) -> list[JobEvent]:
    """The events that are there."""
    return (await jobs.events(after, job_id, 1000)).items


async def kinds(jobs: Jobs, job_id: str) -> list[str]:
    """What has happened, in a word each."""
    return [event.kind for event in await history(jobs, job_id)]


async def ended(jobs: Jobs, job_id: str, within_s: float = 10.0) -> Job:
    """The job once it has ended."""
    job = await jobs.wait_finished(job_id, within_s)
    assert job is not None, f"{await jobs.get(job_id)} has not ended"
    return job


async def eventually(probe: Callable[[], Awaitable[T | None]], within_s: float = 10.0) -> T:
    """The first true answer of `probe`; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        found = await probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s} s: {found!r}"
        await asyncio.sleep(0.01)
