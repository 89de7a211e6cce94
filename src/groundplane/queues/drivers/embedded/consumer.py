"""A consumer: what it holds, and how it takes, settles and hands back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from groundplane.backends.sqlite import Database, Listener, Transaction
from groundplane.core.clock import Clock
from groundplane.core.errors import Closed, FailedPrecondition, GroundplaneError
from groundplane.queues.drivers.embedded import rows
from groundplane.queues.drivers.embedded.sessions import Session
from groundplane.queues.drivers.embedded.settling import Change, Settling
from groundplane.queues.port import Carried, Delivery, OutgoingMessage, QueueConsumer, Settlement

_CLOSE_S = 4.0
_REPAIR_AGAIN_S = 0.2
_LOOK_AGAIN_S = 5.0
_LOST_REMEMBERED = 10_000


class EmbeddedConsumer:
    """One consumer of one queue. `tag` of its deliveries is the id of the handing-over."""

    def __init__(
        self,
        database: Database,
        session: Session,
        listener: Listener,
        settling: Settling,
        *,
        queue: int,
        name: str,
        max_in_flight: int,
        lease_s: float | None,
        clock: Clock,
    ) -> None:
        self._database = database
        self._session = session
        self._listener = listener
        self._settling = settling
        self._queue = queue
        self._name = name
        self._max_in_flight = max_in_flight
        self._lease_ms = None if lease_s is None else round(lease_s * 1000)
        self._clock = clock
        self._slot_of: dict[int, int] = {}
        self._left_in_slot: dict[int, int] = {}
        self._being_settled: set[int] = set()
        self._lost: dict[int, None] = {}
        self._due: dict[int, int] = {}
        self._receiving = False
        self._repairs: set[asyncio.Task[Any]] = set()
        self._undoing: set[int] = set()
        self.last_failure: GroundplaneError | None = None
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._emptied: float | None = None
        self._closing: asyncio.Task[None] | None = None
        self._stop_watching = session.on_lost(self._lose_all)

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{len(self._slot_of)} of {self._max_in_flight} in flight"
        return f"<EmbeddedConsumer of {self._name!r}, {state}>"

    async def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        """See `QueueConsumer.receive`."""
        self._check_open()
        if self._receiving:
            raise FailedPrecondition(f"receive: the consumer of {self._name!r} is receiving; one caller at a time")
        self._receiving = True
        self._enter()
        try:
            return await self._receive(limit, timeout_s)
        finally:
            self._receiving = False
            self._leave()

    async def settle(
        self,
        settlements: Sequence[Settlement],
        sends: Sequence[OutgoingMessage] = (),
        carry: Sequence[Carried] = (),
    ) -> None:
        """See `QueueConsumer.settle`."""
        self._check_open()
        self._enter()
        try:
            await self._settle(settlements, sends, carry)
        finally:
            self._leave()

    async def extend(self, deliveries: Sequence[Delivery], lease_s: float) -> None:
        """See `QueueConsumer.extend`. Without leases a delivery is held as long as the process lives: then this only
        tells whether it still is.
        """
        self._check_open()
        ids = [delivery.tag for delivery in deliveries]
        for held in ids:
            self._check_held(held)
        due = self._monotonic_ms() + round(lease_s * 1000)
        leased = self._lease_ms is not None
        gone = await self._database.write(lambda tx: _extend(tx, ids, due if leased else None), durable=False)
        if gone:
            self._lose(gone)
            raise self._lost_error(gone[0])
        if leased:
            self._due.update(dict.fromkeys(ids, due))

    async def aclose(self) -> None:
        """See `QueueConsumer.aclose`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"groundplane-consumer-{self._name}-close")
        await asyncio.shield(self._closing)

    async def _receive(self, limit: int, timeout_s: float | None) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        emptied, self._emptied = self._emptied if timeout_s != 0 else None, None
        while True:
            if self._repairs:
                await asyncio.wait(self._repairs)
            self._check_open()
            self._lose_expired()
            pause_s: float | None = None
            room = self._max_in_flight - len(self._slot_of)
            if emptied:  # the claim before took all there was: the bell tells of more
                pause_s, emptied = max(0.0, emptied - loop.time()), None
            elif room > 0:
                deliveries, pause_s = await self._claim(min(limit, room))
                if deliveries:
                    if len(deliveries) < min(limit, room):
                        self._emptied = loop.time() + (_LOOK_AGAIN_S if pause_s is None else pause_s)
                    return deliveries
            if deadline is not None:
                left_s = deadline - loop.time()
                if left_s <= 0:
                    return []
                pause_s = left_s if pause_s is None else min(pause_s, left_s)
            await self._listener.wait(pause_s)

    async def _claim(self, limit: int) -> tuple[list[Delivery], float | None]:
        """Deliveries, or none and how long to wait at most for what is delayed."""
        session, slots = self._session.id, self._session.take_slots()
        now_ms, due = self._clock.now_ms(), self._lease_due()

        def work(tx: Transaction) -> rows.Claimed | None:
            claimed = rows.claim(tx, self._queue, session, slots, limit, now_ms)
            if claimed is not None and due is not None:
                tx.executemany("INSERT INTO queue_leases VALUES (?, ?)", [(held.id, due) for held in claimed.messages])
            return claimed

        try:
            claimed = await self._database.write(work, durable=False)
        except asyncio.CancelledError:
            self._repair(self._undo_claim(session, slots))
            raise
        except BaseException:
            self._free_slots(slots)
            raise
        if claimed is None:
            await self._session.rejoin(session)
            return [], 0.0
        self._hold(session, claimed, slots, due)
        self._check_open()
        wait_s = None if claimed.due_at is None else min((claimed.due_at - now_ms) / 1000, _LOOK_AGAIN_S)
        return [self._delivery(held) for held in claimed.messages], wait_s

    def _hold(self, session: int, claimed: rows.Claimed, slots: tuple[int, int], due: int | None) -> None:
        ids = [held.id for held in claimed.messages]
        if session != self._session.id:  # taken for dead between the claim and now
            self._remember_lost(ids)
            return
        for slot, (first, last) in zip(slots, claimed.ranges, strict=False):
            members = [held for held in ids if first <= held <= last]
            self._slot_of.update(dict.fromkeys(members, slot))
            self._left_in_slot[slot] = len(members)
        self._free_slots(slots[len(claimed.ranges) :])
        if due is not None:
            self._due.update(dict.fromkeys(ids, due))

    def _delivery(self, held: rows.Held) -> Delivery:
        return Delivery(
            tag=held.id,
            queue=self._name,
            id=held.message_id,
            payload=held.payload,
            headers=rows.headers_of(held.headers),
            attempt=held.attempt,
            enqueued_at=held.enqueued_at,
            redrives=held.redrives,
        )

    async def _settle(
        self, settlements: Sequence[Settlement], sends: Sequence[OutgoingMessage], carry: Sequence[Carried]
    ) -> None:
        ids = self._begin_settling(settlements)
        change = Change(sends, settlements, carry, leased=self._lease_ms is not None, explain=self._lost_error)
        try:
            await self._settling.make(change)
        except asyncio.CancelledError:
            self._repair(self._until_done(lambda: self._find_out(ids)))
            raise
        except BaseException:
            self._being_settled.difference_update(ids)
            self._lose(change.gone)
            raise
        self._being_settled.difference_update(ids)
        self._release(ids)

    def _begin_settling(self, settlements: Sequence[Settlement]) -> list[int]:
        ids = [settlement.delivery.tag for settlement in settlements]
        for held in ids:
            self._check_held(held)
        if len(set(ids)) < len(ids):
            raise self._settled_error(next(held for held in ids if ids.count(held) > 1))
        self._being_settled.update(ids)
        return ids

    def _check_held(self, held: int) -> None:
        if held in self._lost:
            raise self._lost_error(held)
        if held not in self._slot_of or held in self._being_settled:
            raise self._settled_error(held)

    def _settled_error(self, held: int) -> FailedPrecondition:
        return FailedPrecondition(
            f"delivery: {held!r} of queue {self._name!r} was settled before, or is not of this consumer; "
            "settle each delivery once, where it was received",
            reason="delivery_settled",
            details={"queue": self._name, "tag": held},
        )

    def _lost_error(self, held: int) -> FailedPrecondition:
        return FailedPrecondition(
            f"delivery: {held!r} of queue {self._name!r} went back to its queue, because its lease ended or this "
            "process was taken for dead; undo what can be undone, another consumer has it now",
            reason="delivery_lost",
            details={"queue": self._name, "tag": held},
        )

    def _release(self, ids: Iterable[int]) -> None:
        """These are not in flight any more: make room."""
        full = len(self._slot_of) >= self._max_in_flight
        for held in ids:
            self._due.pop(held, None)
            slot = self._slot_of.pop(held, None)
            if slot is None:
                continue
            self._left_in_slot[slot] -= 1
            if not self._left_in_slot[slot]:
                del self._left_in_slot[slot]
                self._session.free_slot(slot)
        if full:
            self._listener.ring()

    def _lose(self, ids: Sequence[int]) -> None:
        if ids:
            self._remember_lost(ids)
            self._release(ids)

    def _lose_all(self) -> None:
        """The session was taken for dead; its slots are no more."""
        self._remember_lost(self._slot_of)
        self._slot_of.clear()
        self._left_in_slot.clear()
        self._due.clear()
        self._listener.ring()

    def _lose_expired(self) -> None:
        if self._due:
            now = self._monotonic_ms()
            self._lose([held for held, due in self._due.items() if due <= now and held not in self._being_settled])

    def _remember_lost(self, ids: Iterable[int]) -> None:
        self._lost.update(dict.fromkeys(ids))
        while len(self._lost) > _LOST_REMEMBERED:
            del self._lost[next(iter(self._lost))]

    async def _undo_claim(self, session: int, slots: tuple[int, int]) -> None:
        self._undoing.update(slots)
        if await self._until_done(lambda: self._hand_back_slots(session, slots)):
            self._undoing.difference_update(slots)

    async def _until_done(self, repair: Callable[[], Awaitable[None]]) -> bool:
        """Repeat a repair until it succeeds, or until closing, which hands back everything anyway."""
        while self._closing is None:
            try:
                await repair()
                return True
            except GroundplaneError as error:
                self.last_failure = error
                await asyncio.sleep(_REPAIR_AGAIN_S)
        return False

    async def _hand_back_slots(self, session: int, slots: Iterable[int]) -> None:
        """Hand back what a claim took that nobody got, if it took effect."""
        wanted = tuple(slots)
        now_ms = self._clock.now_ms()
        await self._database.write(lambda tx: _hand_back(tx, session, wanted, now_ms), durable=False, essential=True)
        if session == self._session.id:
            self._free_slots(wanted)

    async def _find_out(self, ids: list[int]) -> None:
        """After a cancelled settlement: which deliveries are still held?"""
        sql = "SELECT EXISTS (SELECT 1 FROM queue_messages WHERE id = ?)"
        work = lambda tx: [held for held in ids if not tx.execute(sql, (held,))[0][0]]  # noqa: E731
        gone = await self._database.write(work, durable=False, essential=True)
        self._being_settled.difference_update(ids)
        self._release(gone)

    def _repair(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work, name=f"groundplane-consumer-{self._name}-repair")
        self._repairs.add(task)
        task.add_done_callback(self._repairs.discard)

    async def _close(self) -> None:
        self._listener.ring()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._idle.wait()
        except TimeoutError:
            pass  # what is still being settled keeps its outcome; the rest is handed back below
        if self._repairs:
            await asyncio.wait(self._repairs)
        self._stop_watching()
        slots = [*self._left_in_slot, *self._undoing]
        if slots:
            await self._hand_back_at_last(slots)
        self._slot_of.clear()
        self._left_in_slot.clear()

    async def _hand_back_at_last(self, slots: list[int]) -> None:
        """What cannot be handed back in time goes back when the session ends, at the cost of an attempt."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _CLOSE_S
        while True:
            try:
                return await self._hand_back_slots(self._session.id, slots)
            except GroundplaneError as error:
                if not error.retryable or loop.time() > until:
                    raise
            await asyncio.sleep(_REPAIR_AGAIN_S)

    def _free_slots(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._session.free_slot(slot)

    def _check_open(self) -> None:
        if self._closing is not None:
            raise Closed(f"consumer: the consumer of {self._name!r} is closed; open another")

    def _enter(self) -> None:
        self._busy += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._busy -= 1
        if not self._busy:
            self._idle.set()

    def _monotonic_ms(self) -> int:
        return int(self._clock.monotonic() * 1000)

    def _lease_due(self) -> int | None:
        return None if self._lease_ms is None else self._monotonic_ms() + self._lease_ms


def _hand_back(tx: Transaction, session: int, slots: Sequence[int], now_ms: int) -> None:
    for slot in slots:
        sql = "DELETE FROM queue_claims WHERE session = ? AND slot = ? RETURNING first, last"
        for first, last in tx.execute(sql, (session, slot)):
            tx.execute("DELETE FROM queue_leases WHERE id BETWEEN ? AND ?", (first, last))
            rows.give_back(tx, first, last, now_ms, counts=False)


def _extend(tx: Transaction, ids: Sequence[int], due: int | None) -> list[int]:
    gone = []
    for held in ids:
        if due is not None:
            tx.execute("UPDATE queue_leases SET due = ? WHERE id = ?", (due, held))
            if tx.changes():
                continue
        elif tx.execute("SELECT 1 FROM queue_messages WHERE id = ?", (held,)):
            continue
        gone.append(held)
    return gone


def _conforms(consumer: EmbeddedConsumer) -> QueueConsumer:
    return consumer
