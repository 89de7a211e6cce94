"""Sends and settlements of concurrent callers, put into one work of one commit.

A call by itself costs a savepoint and a round of statements; most of the time there are many at once, and together they
cost a third. When the work fails because of one of them, each is tried by itself, so that nobody fails for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from groundplane.backends.sqlite import Database, Transaction
from groundplane.core.clock import Clock
from groundplane.core.errors import GroundplaneError, from_record
from groundplane.queues.drivers.embedded import rows
from groundplane.queues.drivers.embedded.dedup import Dedup
from groundplane.queues.port import Ack, Carried, Nack, OutgoingMessage, Reject, Settlement

_CALLS_MAX = 256
_UNDER_WAY_MAX = 2
_OF_ONE_CALL = frozenset({"delivery_lost", "queue_not_found", "queue_full", "disk_full"})


class Change:
    """What one caller wants: to send, to settle, or both. `gone` lists deliveries that were not held any more;
    `refused` is what its `carry` raised.
    """

    __slots__ = ("carry", "done", "explain", "gone", "leased", "refused", "sends", "settlements")

    def __init__(
        self,
        sends: Sequence[OutgoingMessage],
        settlements: Sequence[Settlement] = (),
        carry: Sequence[Carried] = (),
        *,
        leased: bool = False,
        explain: Callable[[int], GroundplaneError] | None = None,
    ) -> None:
        self.sends = sends
        self.settlements = settlements
        self.carry = carry
        self.leased = leased
        self.explain = explain
        self.gone: list[int] = []
        self.refused: Exception | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Settling:
    """All changes of one opened driver."""

    def __init__(self, database: Database, namespace: str, clock: Clock) -> None:
        self._database = database
        self._namespace = namespace
        self._clock = clock
        self.dedup = Dedup()
        self._pending: list[Change] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def make(self, change: Change) -> None:
        """Returns when the change is durable; raises when it was not made. Cancelling it leaves that open."""
        self._pending.append(change)
        self._start()
        await change.done

    async def drained(self) -> None:
        """Returns when nothing is under way. Nothing new may come meanwhile."""
        while self._under_way or self._pending:
            self._start()
            await asyncio.wait(list(self._under_way))

    def _start(self) -> None:
        if self._pending and len(self._under_way) < _UNDER_WAY_MAX:
            task = asyncio.create_task(self._write_pending(), name="groundplane-queues-settling")
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._start()

    async def _write_pending(self) -> None:
        taken, self._pending = self._pending[:_CALLS_MAX], self._pending[_CALLS_MAX:]
        changes = [change for change in taken if not change.done.done()]
        if not changes:
            return
        try:
            error = await self._write(changes)
        except asyncio.CancelledError:
            for change in changes:
                change.done.cancel()
            raise
        if error is not None and len(changes) > 1 and _concerns_one(error, changes):
            await asyncio.gather(*(self._write_alone(change) for change in changes))
        else:
            for change in changes:
                _resolve(change, error)

    async def _write_alone(self, change: Change) -> None:
        if not change.done.done():
            _resolve(change, await self._write([change]))

    async def _write(self, changes: list[Change]) -> Exception | None:
        now_ms = self._clock.now_ms()
        essential = not any(change.sends or change.carry for change in changes)
        try:
            await self._database.write(lambda tx: self._apply(tx, changes, now_ms), essential=essential)
        except Exception as error:  # noqa: BLE001 - handed to each caller
            return error
        return None

    def _apply(self, tx: Transaction, changes: list[Change], now_ms: int) -> None:
        for change in changes:
            _carry(tx, change)
        sends = [message for change in changes for message in change.sends]
        if sends:
            # what is carried is waited for: a consumer that is woken before the sync may take the core that does it
            early = not any(change.carry for change in changes)
            rows.send(tx, self._namespace, sends, now_ms, self.dedup, early=early)
        gone = set(settle(tx, [one for change in changes for one in change.settlements], now_ms))
        for change in changes:
            if change.leased:
                rows.end_leases(tx, [one.delivery.tag for one in change.settlements])
            if gone:
                change.gone = [one.delivery.tag for one in change.settlements if one.delivery.tag in gone]
                if change.gone and change.explain is not None:
                    raise change.explain(change.gone[0])


def _carry(tx: Transaction, change: Change) -> None:
    for one in change.carry:
        try:
            one(tx)
        except Exception as error:
            change.refused = error
            raise


def _concerns_one(error: Exception, changes: Sequence[Change]) -> bool:
    if any(change.refused is error for change in changes):
        return True
    return isinstance(error, GroundplaneError) and error.reason in _OF_ONE_CALL


def _resolve(change: Change, error: Exception | None) -> None:
    if change.done.done():
        return
    if error is None:
        change.done.set_result(None)
    elif isinstance(error, GroundplaneError):
        own = from_record(error.to_record())
        own.__cause__ = error.__cause__
        change.done.set_exception(own)
    else:
        change.done.set_exception(error)


def settle(tx: Transaction, settlements: Sequence[Settlement], now_ms: int) -> list[int]:
    """Settle in this transaction; the ids that were not held any more."""
    gone: list[int] = []
    acknowledged: list[int] = []
    for one in settlements:
        held: int = one.delivery.tag
        if isinstance(one, Ack):
            acknowledged.append(held)
        elif not (_nack(tx, held, one, now_ms) if isinstance(one, Nack) else _reject(tx, held, one, now_ms)):
            gone.append(held)
    if acknowledged:
        gone += rows.acknowledge(tx, acknowledged)
    return gone


def _nack(tx: Transaction, held: int, one: Nack, now_ms: int) -> int:
    due_at = now_ms + round(one.delay_s * 1000) if one.counts or one.delay_s > 0 else rows.AT_ONCE
    error = rows.error_at_rest(one.error)
    return rows.give_back(tx, held, held, now_ms, counts=one.counts, due_at=due_at, error=error)


def _reject(tx: Transaction, held: int, one: Reject, now_ms: int) -> bool:
    return rows.bury(tx, held, one.reason, rows.error_at_rest(one.error), now_ms)
