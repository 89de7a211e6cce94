"""What the mesh tells the job of: in order, in batches, to the job store or (see `reporting_http`) to a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from groundplane.core.errors import NotFound
from groundplane.jobs.port import Change, JobState, Outcome, Watch
from groundplane.jobs.store import Jobs
from groundplane.mesh.batching import Batcher


class Reporter(Protocol):
    """Tells jobs of changes. May be called concurrently; the order of the calls is kept."""

    async def apply(self, changes: Sequence[Change], token: str = "") -> list[Outcome]:
        """Durable when it returns. Raises `unavailable` where the store does not answer."""
        ...

    def post(self, changes: Sequence[Change], token: str = "") -> None:
        """Soon, after what was handed over before; lost (and counted) where the store does not answer."""
        ...

    async def state(self, job_id: str, token: str = "") -> JobState | None:
        """The job's state now; None for no such job."""
        ...

    async def changed(self, timeout_s: float) -> None:
        """Return when jobs may have changed, at the latest after `timeout_s`."""
        ...

    async def aclose(self) -> None:
        """Deliver what was handed over."""
        ...


class JobReporter:
    """Reports to the job store."""

    def __init__(self, jobs: Jobs, watch: Watch | None = None, lost: Callable[[int], None] | None = None) -> None:
        self._jobs = jobs
        self._watch = watch
        self._lost = lost
        self._batches: Batcher[Sequence[Change], list[Outcome]] = Batcher(self._flush)
        self._posts = 0

    async def apply(self, changes: Sequence[Change], token: str = "") -> list[Outcome]:
        """See the protocol."""
        return await self._batches.submit(changes) if changes else []

    def post(self, changes: Sequence[Change], token: str = "") -> None:
        """See the protocol."""
        if changes:
            self._batches.submit(changes).add_done_callback(self._posted)

    async def state(self, job_id: str, token: str = "") -> JobState | None:
        """See the protocol."""
        try:
            return (await self._jobs.get(job_id)).state
        except NotFound:
            return None

    async def changed(self, timeout_s: float) -> None:
        """See the protocol."""
        if self._watch is not None:
            await self._watch.wait(timeout_s)
        else:
            await asyncio.sleep(timeout_s)

    async def aclose(self) -> None:
        """See the protocol."""
        await self._batches.aclose()

    async def _flush(self, items: list[Sequence[Change]]) -> list[list[Outcome] | Exception]:
        outcomes = await self._jobs.apply(*(change for changes in items for change in changes))
        parts: list[list[Outcome] | Exception] = []
        start = 0
        for changes in items:
            parts.append(list(outcomes[start : start + len(changes)]))
            start += len(changes)
        return parts

    def _posted(self, future: asyncio.Future[list[Outcome]]) -> None:
        if not future.cancelled() and future.exception() is not None and self._lost is not None:
            self._lost(1)


_: type[Reporter] = JobReporter
