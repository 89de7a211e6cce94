"""The subscriptions of this gateway's streams and waiting calls: they end when it drains, some of them late."""

from __future__ import annotations

import asyncio
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
        self._ends: set[asyncio.Event] = set()
        self._patient: set[Subscription] = set()
        self._draining = False
        self._ended = False

    def __repr__(self) -> str:
        return f"<Feed {len(self._open) + len(self._patient)} subscriptions>"

    @contextmanager
    def subscribe(
        self, job: Job, after: int = 0, *, final: bool = False, patient: bool = False, limit_s: float | None = None
    ) -> Iterator[Subscription]:
        """See `Jobs.subscribe`. Ended when the gateway drains; a `patient` one, whose client cannot come back for the
        rest, not before `end`. With `limit_s` after that many seconds at the latest.

        A position that the job has not reached (made up, or of before a restore of the store) is where the job stands:
        beyond it nothing would be seen, not even the end.
        """
        after = min(after, job.last_event_id)
        group = self._patient if patient else self._open
        with self._jobs.subscribe(job, after, final=final) as subscription:
            group.add(subscription)
            if self._ended or (self._draining and not patient):
                subscription.end()
            timer = asyncio.get_running_loop().call_later(limit_s, subscription.end) if limit_s is not None else None
            try:
                yield subscription
            finally:
                group.discard(subscription)
                if timer is not None:
                    timer.cancel()

    @contextmanager
    def ending(self, stop: asyncio.Event) -> Iterator[None]:
        """Set `stop` when the gateway drains; at once where it does already."""
        self._ends.add(stop)
        if self._draining:
            stop.set()
        try:
            yield
        finally:
            self._ends.discard(stop)

    def drain(self) -> None:
        """End every subscription that is not patient, and those to come."""
        self._draining = True
        for subscription in self._open:
            subscription.end()
        for stop in self._ends:
            stop.set()

    def end(self) -> None:
        """End the patient ones too: there is no more time."""
        self._ended = True
        self.drain()
        for subscription in self._patient:
            subscription.end()

    async def wait_finished(self, job: Job, timeout_s: float) -> Job:
        """The job once it is terminal, or as it stands after `timeout_s` seconds or when the gateway drains."""
        if job.state.terminal or timeout_s <= 0:
            return job
        with self.subscribe(job, job.last_event_id, final=True) as events:
            return await self._jobs.get(job.job_id) if await events.batch(timeout_s) else job
