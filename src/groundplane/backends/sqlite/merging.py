"""Changes of concurrent callers, put into one work of one commit.

A call by itself costs a savepoint and a round of statements; most of the time there are many at once, and together they
cost a third. When the work fails because of one of them, each is tried by itself, so that nobody fails for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from groundplane.backends.sqlite.database import Database
from groundplane.backends.sqlite.transaction import Transaction
from groundplane.core.errors import GroundplaneError, from_record

C = TypeVar("C")
R = TypeVar("R")

_CALLS_MAX = 256
_UNDER_WAY_MAX = 2


class Merging(Generic[C, R]):
    """Makes changes durable, as many at once as wait.

    `apply` makes some in a transaction and returns an outcome for each; it may be run twice. `concerns_one` says of an
    error whether one of several changes may be the cause; `essential`, whether all of them may use the space held back.
    One work takes changes up to a `weight` of `weight_max` in all, and at least one.
    """

    def __init__(
        self,
        database: Database,
        apply: Callable[[Transaction, Sequence[C]], Sequence[R]],
        *,
        name: str,
        concerns_one: Callable[[Exception, Sequence[C]], bool],
        essential: Callable[[Sequence[C]], bool] = lambda _: False,
        weight: Callable[[C], int] = lambda _: 1,
        weight_max: int = _CALLS_MAX,
    ) -> None:
        self._database = database
        self._apply = apply
        self._name = name
        self._concerns_one = concerns_one
        self._essential = essential
        self._weight = weight
        self._weight_max = weight_max
        self._pending: list[_Waiting[C, R]] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def make(self, change: C) -> R:
        """Returns when the change is durable; raises when it was not made. Cancelling it leaves that open."""
        waiting: _Waiting[C, R] = _Waiting(change)
        self._pending.append(waiting)
        self._start()
        return await waiting.done

    async def drained(self) -> None:
        """Returns when nothing is under way. Nothing new may come meanwhile."""
        while self._under_way or self._pending:
            self._start()
            await asyncio.wait(list(self._under_way))

    def _start(self) -> None:
        if self._pending and len(self._under_way) < _UNDER_WAY_MAX:
            task = asyncio.create_task(self._write_pending(), name=self._name)
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._start()

    def _take(self) -> list[_Waiting[C, R]]:
        weight = count = 0
        for one in self._pending[:_CALLS_MAX]:
            weight += self._weight(one.change)
            if count and weight > self._weight_max:
                break
            count += 1
        taken, self._pending = self._pending[:count], self._pending[count:]
        return [one for one in taken if not one.done.done()]

    async def _write_pending(self) -> None:
        taken = self._take()
        if not taken:
            return
        try:
            error = await self._write(taken)
        except asyncio.CancelledError:
            for one in taken:
                one.done.cancel()
            raise
        if error is not None and len(taken) > 1 and self._concerns_one(error, [one.change for one in taken]):
            await asyncio.gather(*(self._write_alone(one) for one in taken))
        else:
            for one in taken:
                one.fail(error)

    async def _write_alone(self, one: _Waiting[C, R]) -> None:
        if not one.done.done():
            one.fail(await self._write([one]))

    async def _write(self, taken: list[_Waiting[C, R]]) -> Exception | None:
        """Hands out the outcomes, or returns what went wrong."""
        changes = [one.change for one in taken]
        essential = self._essential(changes)
        try:
            outcomes = await self._database.write(lambda tx: self._apply(tx, changes), essential=essential)
        except Exception as error:  # noqa: BLE001 - handed to each caller
            return error
        for one, outcome in zip(taken, outcomes, strict=True):
            if not one.done.done():
                one.done.set_result(outcome)
        return None


class _Waiting(Generic[C, R]):
    """A change, and who waits for it."""

    __slots__ = ("change", "done")

    def __init__(self, change: C) -> None:
        self.change = change
        self.done: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception | None) -> None:
        if error is None or self.done.done():
            return
        if isinstance(error, GroundplaneError):
            own = from_record(error.to_record())
            own.__cause__ = error.__cause__
            self.done.set_exception(own)
        else:
            self.done.set_exception(error)
