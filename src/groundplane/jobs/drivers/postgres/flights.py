"""Calls that come together go together: what waits while one flight is under way is the next one's load."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from groundplane.core.errors import (
    Closed,
    FailedPrecondition,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

Call = TypeVar("Call")

_OF_NONE = (Unavailable, Closed, PermissionDenied, FailedPrecondition, ResourceExhausted)
"""Errors that are no fault of a call."""
UNDER_WAY_MAX = 2
"""While one flight waits for the disk, the next is prepared; more would only wait for the same lock."""


class Flights(Generic[Call]):
    """Collects calls and runs them in groups, each call once.

    `run` gets a group and returns one result for each call. Where it fails with more than one call on board, and the
    fault may be that of one of them, each is run by itself: none fails by another's fault. Where the database is away
    those that wait are told at once: they would wait as long again. `pick` says how many of the waiting go together.
    """

    def __init__(
        self, run: Callable[[Sequence[Call]], Awaitable[Sequence[Any]]], pick: Callable[[Sequence[Call]], int]
    ) -> None:
        self._run = run
        self._pick = pick
        self._waiting: deque[tuple[Call, asyncio.Future[Any]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.flown = 0

    async def call(self, one: Call) -> Any:
        """The result of a call. Cancelling it does not stop what is under way."""
        if self._closed:
            raise Closed("jobs: the store was closed; open it again")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, future))
        if len(self._tasks) < UNDER_WAY_MAX:
            self._tasks.add(asyncio.get_running_loop().create_task(self._fly()))
        return await future

    async def aclose(self) -> None:
        """Refuse new calls; wait for those under way, which end in bounded time."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _fly(self) -> None:
        try:
            while self._waiting:
                calls = [one for one, _ in self._waiting]
                group = [self._waiting.popleft() for _ in range(max(1, self._pick(calls)))]
                group = [(one, future) for one, future in group if not future.done()]
                if group:
                    await self._fly_with(group)
        finally:  # at once: callers that were told call again before a callback of this task would be run
            task = asyncio.current_task()
            assert task is not None
            self._tasks.discard(task)

    async def _fly_with(self, group: Sequence[tuple[Call, asyncio.Future[Any]]]) -> None:
        self.flown += 1
        try:
            results = await self._run([one for one, _ in group])
        except asyncio.CancelledError:
            _fail(group, Closed("jobs: the store was closed during the call; its outcome is not known"))
            raise
        except Exception as error:  # noqa: BLE001 (each caller gets it)
            if isinstance(error, Unavailable):
                group = [*group, *self._waiting]
                self._waiting.clear()
            if len(group) == 1 or isinstance(error, _OF_NONE):
                _fail(group, error)
                return
            for one in group:
                await self._fly_with([one])
        else:
            for (_, future), result in zip(group, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)


def _fail(group: Sequence[tuple[Any, asyncio.Future[Any]]], error: Exception) -> None:
    for _, future in group:
        if not future.done():
            future.set_exception(error)
