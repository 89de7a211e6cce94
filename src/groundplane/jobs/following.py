"""One job's events from an id on: history, what stands for what is gone of it, live ones, the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from groundplane.jobs.checks import FINAL_KINDS, PAGE_MAX
from groundplane.jobs.port import JobEvent

if TYPE_CHECKING:
    from groundplane.jobs.store import Jobs


async def follow(jobs: Jobs, job_id: str, after: int) -> AsyncGenerator[JobEvent, None]:
    """See `Jobs.follow`."""
    job = await jobs.get(job_id)
    first = await jobs.events(after, job_id, 1)
    with jobs.subscribe(job, after) as subscription:
        if first.truncated:
            snapshot = await _snapshot(jobs, job_id, after)
            subscription.seen = snapshot.id
            yield snapshot
        live = False
        while True:
            batch = await (subscription.batch() if live else subscription.ready())
            for event in batch:
                yield event
                if event.kind in FINAL_KINDS:
                    return
            if not batch and not live:
                if await _has_ended_before(jobs, job_id, subscription.seen):
                    return
                live = True


async def _snapshot(jobs: Jobs, job_id: str, after: int) -> JobEvent:
    """The present state as an event; what is read next are the live ones, or the final one of a job that ended."""
    job = await jobs.get(job_id)
    last = job.last_event_id
    if job.state.terminal:
        last = max(after, await _final_id(jobs, job_id, after) - 1)
    data: dict[str, Any] = {
        "state": job.state.value,
        "progress": round(job.progress, 3),
        "message": job.message,
        "actor": job.actor,
        "steps_completed": job.steps_completed,
        "total_steps": job.total_steps,
    }
    return JobEvent(id=last, job_id=job_id, kind="snapshot", data=data, created_at=job.updated_at)


async def _final_id(jobs: Jobs, job_id: str, after: int) -> int:
    while True:
        page = await jobs.events(after, job_id, PAGE_MAX)
        for event in page.items:
            if event.kind in FINAL_KINDS:
                return event.id
        if len(page.items) < PAGE_MAX:
            return page.last_id + 1
        after = page.last_id


async def _has_ended_before(jobs: Jobs, job_id: str, seen: int) -> bool:
    """Whether the final event is not after `seen`: then nothing but late ones can come."""
    if not (await jobs.get(job_id)).state.terminal:
        return False
    page = await jobs.events(seen, job_id, PAGE_MAX)
    return not any(event.kind in FINAL_KINDS for event in page.items)
