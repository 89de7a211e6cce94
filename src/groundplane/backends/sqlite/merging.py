"""Changes of concurrent callers, put into one work of one commit.

A call by itself costs a savepoint and a round of statements; most of the time there are many at once, and together they
cost a third. When the work fails because of one of them, each is tried by itself, so that nobody fails for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
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
        concerns_one: Callable[[BaseException, Sequence[C]], bool],
        essential: Callable[[Sequence[C]], bool] = lambda _: False,
        weight: Callable[[C], int] = lambda _: 1,
        weight_max: int = _CALLS_MAX,
    ) -> None:
        self._database = database
        self._apply = apply
        self._concerns_one = concerns_one
        self._essential = essential
        self._weight = weight
        self._weight_max = weight_max
        self._pending: list[_Waiting[C, R]] = []
        self._under_way: set[asyncio.Future[Sequence[R]]] = set()
        self._starting = False

    async def make(self, change: C) -> R:
        """Returns when the change is durable; raises when it was not made. Cancelling it leaves that open."""
        waiting: _Waiting[C, R] = _Waiting(change)
        self._pending.append(waiting)
        if not self._starting and len(self._under_way) < _UNDER_WAY_MAX:
            self._starting = True
            asyncio.get_running_loop().call_soon(self._start)  # with whoever else comes in this turn of the loop
        return await waiting.done

    async def drained(self) -> None:
        """Returns when nothing is under way. Nothing new may come meanwhile."""
        self._start()
        while self._under_way:
            await asyncio.wait(list(self._under_way))

    def _start(self) -> None:
        self._starting = False
        while self._pending and len(self._under_way) < _UNDER_WAY_MAX:
            self._write(self._take())

    def _take(self) -> list[_Waiting[C, R]]:
        weight = count = 0
        for one in self._pending[:_CALLS_MAX]:
            weight += self._weight(one.change)
            if count and weight > self._weight_max:
                break
            count += 1
        taken, self._pending = self._pending[:count], self._pending[count:]
        return [one for one in taken if not one.done.done()]

    def _write(self, taken: list[_Waiting[C, R]]) -> None:
        if not taken:
            return
        changes = [one.change for one in taken]
        try:
            written = self._database.submit(lambda tx: self._apply(tx, changes), essential=self._essential(changes))
        except Exception as error:  # noqa: BLE001 - handed to each caller
            for one in taken:
                one.fail(error)
            return
        self._under_way.add(written)
        written.add_done_callback(partial(self._written, taken))

    def _written(self, taken: list[_Waiting[C, R]], written: asyncio.Future[Sequence[R]]) -> None:
        """Hands out the outcomes, or what went wrong."""
        self._under_way.discard(written)
        error = written.exception()
        if error is None:
            for one, outcome in zip(taken, written.result(), strict=True):
                if not one.done.done():
                    one.done.set_result(outcome)
        elif len(taken) > 1 and self._concerns_one(error, [one.change for one in taken]):
            for one in taken:
                self._write([] if one.done.done() else [one])
        else:
            for one in taken:
                one.fail(error)
        self._start()


class _Waiting(Generic[C, R]):
    """A change, and who waits for it."""

    __slots__ = ("change", "done")

    def __init__(self, change: C) -> None:
        self.change = change
        self.done: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        if self.done.done():
            return
        if isinstance(error, GroundplaneError):
            own = from_record(error.to_record())
            own.__cause__ = error.__cause__
            self.done.set_exception(own)
        else:
            self.done.set_exception(error)
