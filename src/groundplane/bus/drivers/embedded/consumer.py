"""One of those that consume under one name: what it takes, holds, settles and hands back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from groundplane.backends.sqlite import Database, Listener
from groundplane.bus.drivers.embedded import rows
from groundplane.bus.port import BusConsumer, ConsumerSpec, Delivery, Settlement
from groundplane.bus.subjects import store_of
from groundplane.core.clock import Clock
from groundplane.core.errors import Closed, FailedPrecondition, NotFound

_CLOSE_S = 4.0
_LOOK_AGAIN_S = 5.0
_STARVING_EVERY_S = 2.0


class EmbeddedConsumer:
    """See `BusConsumer`. `tag` of its deliveries is the batch and the entry in it."""

    def __init__(
        self,
        database: Database,
        listener: Listener,
        spec: ConsumerSpec,
        *,
        number: int,
        session: Callable[[], int],
        clock: Clock,
    ) -> None:
        self.spec = spec
        self.number = number
        self._database = database
        self._listener = listener
        self._session = session
        self._clock = clock
        self._by_urgency = store_of(spec.pattern) == "commands"
        self._owed: list[int] = []
        self._looked_at = float("-inf")
        self._held: dict[int, set[int]] = {}
        self._count = 0
        self._room = asyncio.Event()
        self._receiving = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{self._count} of {self.spec.max_in_flight} in flight"
        return f"<EmbeddedConsumer {self.spec.name!r}, {state}>"

    async def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        """See `BusConsumer.receive`."""
        self._check_open()
        if self._receiving:
            raise FailedPrecondition(f"receive: {self.spec.name!r} is receiving; one caller at a time")
        self._receiving = True
        try:
            return await self._receive(limit, timeout_s)
        finally:
            self._receiving = False

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `BusConsumer.settle`. One transaction."""
        now_ms = self._clock.now_ms()
        messages: dict[int, set[int]] = {}
        for one in settlements:
            batch, entry = one.delivery.tag
            messages.setdefault(batch, set()).add(entry.message)
        whole = [batch for batch, settled in messages.items() if self._held.get(batch) == settled]
        await self._database.write(lambda tx: rows.settle(tx, self.number, settlements, whole, now_ms), essential=True)
        for batch, settled in messages.items():
            self._let_go(batch, settled)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `BusConsumer.extend`. What one receive handed out is held together."""
        self._check_open()
        due = self._lease_due()
        batches = {one.tag[0] for one in deliveries}
        lost = await self._database.write(lambda tx: rows.extend(tx, batches, due), durable=False)
        for batch in lost:
            self._let_go(batch, self._held.get(batch, set()))
        if lost:
            raise FailedPrecondition(
                f"extend: {self.spec.name!r} no longer holds a delivery; stop its work, others have it",
                reason="delivery_lost",
            )

    async def aclose(self) -> None:
        """See `BusConsumer.aclose`."""
        if self._closing is None:
            self._closed.set()
            self._room.set()
            self._listener.ring()
            self._closing = asyncio.create_task(self._close(), name="groundplane-bus-consumer-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S)
        batches = list(self._held)
        self._held.clear()
        if batches:
            now_ms = self._clock.now_ms()
            await self._database.write(
                lambda tx: rows.take_back(tx, batches, now_ms, counts=False), durable=False, essential=True
            )

    async def _receive(self, limit: int, timeout_s: float | None) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        until = None if timeout_s is None else loop.time() + timeout_s
        while True:
            self._check_open()
            room = min(limit, self.spec.max_in_flight - self._count)
            wait_s = _LOOK_AGAIN_S
            if room > 0:
                claimed = await self._claim(room)
                if claimed.deliveries:
                    return claimed.deliveries
                if claimed.next_due is not None:
                    wait_s = min(wait_s, max(0.0, (claimed.next_due - self._clock.now_ms()) / 1000) + 0.001)
            if until is not None:
                wait_s = min(wait_s, until - loop.time())
                if wait_s <= 0:
                    return []
            await self._wait(wait_s, for_room=room <= 0)

    async def _wait(self, seconds: float, *, for_room: bool) -> None:
        if not for_room:
            await self._listener.wait(seconds)
            return
        self._room.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._room.wait()
        except TimeoutError:
            return

    async def _claim(self, limit: int) -> rows.Claimed:
        """Claim in a task of its own: cancelled, the caller's claim is undone, not forgotten."""
        claiming = asyncio.create_task(self._claim_now(limit), name="groundplane-bus-claim")
        self._own(claiming)
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claiming.add_done_callback(self._undo)
            raise

    async def _claim_now(self, limit: int) -> rows.Claimed:
        now_ms, due = self._clock.now_ms(), self._lease_due()
        session = self._session()
        by_urgency, owed, look = self._by_urgency, self._owed, self._by_urgency and self._may_look()
        claimed = await self._database.write(
            lambda tx: rows.claim(
                tx, self.number, session, limit, now_ms, due, by_urgency=by_urgency, owed=owed, look=look
            ),
            durable=False,
        )
        if claimed is None:
            raise NotFound(f"subscription: {self.spec.name!r} was deleted; subscribe again")
        self._owed = claimed.owed
        if claimed.deliveries:
            self._held[claimed.batch] = {one.tag[1].message for one in claimed.deliveries}
            self._count += len(claimed.deliveries)
        return claimed

    def _may_look(self) -> bool:
        """Every other second the less urgent that have waited too long get one turn each."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < _STARVING_EVERY_S:
            return False
        self._looked_at = now
        return True

    def _undo(self, claiming: asyncio.Task[rows.Claimed]) -> None:
        if claiming.cancelled() or claiming.exception() is not None or not claiming.result().deliveries:
            return
        batch = claiming.result().batch
        if self._held.get(batch):
            self._own(asyncio.create_task(self._give_back(batch), name="groundplane-bus-undo"))

    async def _give_back(self, batch: int) -> None:
        now_ms = self._clock.now_ms()
        await self._database.write(
            lambda tx: rows.take_back(tx, [batch], now_ms, counts=False), durable=False, essential=True
        )
        self._let_go(batch, self._held.get(batch, set()))

    def _own(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _let_go(self, batch: int, messages: set[int]) -> None:
        held = self._held.get(batch)
        if held is None:
            return
        self._count -= len(held & messages)
        left = held - messages
        if left:
            self._held[batch] = left
        else:
            del self._held[batch]
        self._room.set()

    def _lease_due(self) -> int:
        return round((self._clock.monotonic() + self.spec.lease_s) * 1000)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Closed(f"bus: the consumer {self.spec.name!r} is closed")


def _conforms(consumer: EmbeddedConsumer) -> BusConsumer:
    return consumer
