"""The subscriptions of this gateway's streams and waiting calls: all of them end when it drains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from groundplane.jobs import Jobs
from groundplane.jobs.feed import Subscription
from groundplane.jobs.port import Job


class Feed:
    """Subscribes to jobs, until it drains."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._open: set[Subscription] = set()
        self._draining = False

    def __repr__(self) -> str:
        return f"<Feed {len(self._open)} subscriptions>"

    @contextmanager
    def subscribe(self, job: Job, after: int = 0, *, final: bool = False) -> Iterator[Subscription]:
        """See `Jobs.subscribe`; ended already where the gateway drains."""
        with self._jobs.subscribe(job, after, final=final) as subscription:
            self._open.add(subscription)
            if self._draining:
                subscription.end()
            try:
                yield subscription
            finally:
                self._open.discard(subscription)

    def drain(self) -> None:
        """End every subscription, and those to come."""
        self._draining = True
        for subscription in self._open:
            subscription.end()

    async def wait_finished(self, job: Job, timeout_s: float) -> Job:
        """The job once it is terminal, or as it stands after `timeout_s` seconds or when the gateway drains."""
        if job.state.terminal or timeout_s <= 0:
            return job
        with self.subscribe(job, job.last_event_id, final=True) as events:
            return await self._jobs.get(job.job_id) if await events.batch(timeout_s) else job
