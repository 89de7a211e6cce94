"""Sends and settlements of concurrent callers, merged into one work of one commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from groundplane.backends.sqlite import Database, Merging, Transaction
from groundplane.core.clock import Clock
from groundplane.core.errors import GroundplaneError
from groundplane.queues.drivers.embedded import rows
from groundplane.queues.drivers.embedded.dedup import Dedup
from groundplane.queues.port import Ack, Carried, Nack, OutgoingMessage, Reject, Settlement

_OF_ONE_CALL = frozenset({"delivery_lost", "queue_not_found", "queue_full", "disk_full"})


class Change:
    """What one caller wants: to send, to settle, or both. `gone` lists deliveries that were not held any more;
    `refused` is what its `carry` raised.
    """

    __slots__ = ("carry", "explain", "gone", "leased", "refused", "sends", "settlements")

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


class Settling:
    """All changes of one opened driver."""

    def __init__(self, database: Database, namespace: str, clock: Clock) -> None:
        self._namespace = namespace
        self._clock = clock
        self.dedup = Dedup()
        self._merging: Merging[Change, None] = Merging(
            database,
            self._apply,
            concerns_one=_concerns_one,
            essential=lambda changes: not any(change.sends or change.carry for change in changes),
        )

    async def make(self, change: Change) -> None:
        """Returns when the change is durable; raises when it was not made. Cancelling it leaves that open."""
        await self._merging.make(change)

    async def drained(self) -> None:
        """Returns when nothing is under way. Nothing new may come meanwhile."""
        await self._merging.drained()

    def _apply(self, tx: Transaction, changes: Sequence[Change]) -> list[None]:
        now_ms = self._clock.now_ms()
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
        return [None] * len(changes)


def _carry(tx: Transaction, change: Change) -> None:
    for one in change.carry:
        try:
            one(tx)
        except Exception as error:
            change.refused = error
            raise


def _concerns_one(error: BaseException, changes: Sequence[Change]) -> bool:
    if any(change.refused is error for change in changes):
        return True
    return isinstance(error, GroundplaneError) and error.reason in _OF_ONE_CALL


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
