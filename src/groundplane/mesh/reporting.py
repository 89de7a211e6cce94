"""What the mesh tells the job of: in order, in batches, to the job store or (see `reporting_http`) to a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from groundplane.jobs.port import Change, JobState, Outcome, Question, Standing, Watch
from groundplane.jobs.store import Jobs
from groundplane.mesh.batching import Batcher
from groundplane.queues.client import Queues
from groundplane.queues.port import Carried


class Reporter(Protocol):
    """Tells jobs of changes. May be called concurrently; the order of the calls is kept."""

    async def apply(self, changes: Sequence[Change], token: str = "") -> list[Outcome]:
        """Durable when it returns. Raises `unavailable` where the store does not answer."""
        ...

    def post(self, changes: Sequence[Change], token: str = "") -> None:
        """Soon, after what was handed over before; lost (and counted) where the store does not answer."""
        ...

    async def begin(self, changes: Sequence[Change], token: str = "") -> tuple[Standing | None, list[Change]]:
        """How the job stands that the changes are about, to which work was handed; and those that it is yet to be
        told, where asking it needs no telling.
        """
        ...

    async def carried(self, changes: Sequence[Change], *, of_live: bool = True) -> Carried | None:
        """The changes for a settlement to carry, after what was handed over before; None where they must be applied.
        See `Jobs.carried`.
        """
        ...

    async def state(self, job_id: str, token: str = "") -> JobState | None:
        """The job's state now; None for no such job."""
        ...

    async def questions(self, job_id: str, ids: Sequence[str]) -> list[Question]:
        """Those of the questions that were asked. Raises `not_found`; `unsupported` where they cannot be asked for."""
        ...

    def changes(self) -> AbstractAsyncContextManager[Watch]:
        """Rings when jobs may have ended, where somebody tells; else it is a matter of time."""
        ...

    async def aclose(self) -> None:
        """Deliver what was handed over."""
        ...


class JobReporter:
    """Reports to the job store. `queues` are those whose settlements may carry what it is told, if it can be."""

    def __init__(
        self,
        jobs: Jobs,
        lost: Callable[[int], None] | None = None,
        *,
        queues: Queues | None = None,
    ) -> None:
        self._jobs = jobs
        self._carries = queues is not None and jobs.share_transactions(queues.driver)
        self._lost = lost
        self._batches: Batcher[Sequence[Change], list[Outcome]] = Batcher(self._flush)
        self._newest: asyncio.Future[list[Outcome]] | None = None

    async def apply(self, changes: Sequence[Change], token: str = "") -> list[Outcome]:
        """See the protocol."""
        return await self._submit(changes) if changes else []

    def post(self, changes: Sequence[Change], token: str = "") -> None:
        """See the protocol."""
        if changes:
            self._submit(changes).add_done_callback(self._posted)

    async def begin(self, changes: Sequence[Change], token: str = "") -> tuple[Standing | None, list[Change]]:
        """See the protocol."""
        return await self._jobs.standing(changes[0].job_id), list(changes)

    async def carried(self, changes: Sequence[Change], *, of_live: bool = True) -> Carried | None:
        """See the protocol."""
        if not self._carries:
            return None
        if self._newest is not None and not self._newest.done():
            await asyncio.wait([self._newest])
        return self._jobs.carried(*changes, of_live=of_live)

    async def state(self, job_id: str, token: str = "") -> JobState | None:
        """See the protocol."""
        return await self._jobs.state(job_id)

    async def questions(self, job_id: str, ids: Sequence[str]) -> list[Question]:
        """See the protocol."""
        return await self._jobs.questions(job_id, ids)

    def changes(self) -> AbstractAsyncContextManager[Watch]:
        """See the protocol."""
        return self._jobs.watch("ends")

    async def aclose(self) -> None:
        """See the protocol."""
        await self._batches.aclose()

    def _submit(self, changes: Sequence[Change]) -> asyncio.Future[list[Outcome]]:
        self._newest = self._batches.submit(changes)
        return self._newest

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
