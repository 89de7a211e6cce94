"""Working off what a durable consumer hands out: so many at once, leases kept, settled in batches."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from groundplane.bus.port import BusConsumer, ConsumerSpec, Delivery, Settlement
from groundplane.bus.sending import Sender
from groundplane.core.errors import Closed, FailedPrecondition, GroundplaneError, Internal
from groundplane.core.retry import RetryPolicy

GRACE_S = 4.0
_TURN_S = 0.002
"""How long handlers that never wait run before others get their turn."""
_REOPEN = RetryPolicy(attempts=1, base_s=0.05, factor=2.0, cap_s=2.0)
_STEADY_S = 5.0
"""A consumer that worked for so long failed for a new reason: it is opened again without a long wait."""
_AWAY_S = 0.25

Handle = Callable[[Delivery], Awaitable[Settlement]]
"""Handles one delivery and says what becomes of it. Must raise nothing but `CancelledError`."""


class Worker:
    """Runs `handle` for what a durable consumer hands out. `start` declares it; then it runs until `aclose`."""

    def __init__(
        self,
        sender: Sender,
        spec: ConsumerSpec,
        handle: Handle,
        *,
        concurrency: int,
        lost: Callable[[Delivery], None] | None = None,
    ) -> None:
        self.spec = spec
        self.failure: GroundplaneError | None = None
        self._sender = sender
        self._handle = handle
        self._concurrency = concurrency
        self._lost = lost
        self._waiting: deque[Delivery] = deque()
        self._in_hand: dict[int, Delivery] = {}
        self._settled: list[Settlement] = []
        self._unoccupied: deque[asyncio.Future[None]] = deque()
        self._room = asyncio.Event()
        self._done = asyncio.Event()
        self._idle = asyncio.Event()
        self._running = 0
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.spec.name!r}, {len(self._in_hand)} in hand>"

    async def start(self) -> None:
        """Declare the consumer and begin. Raises what declaring raises."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(ready), name=f"groundplane-bus-{self.spec.name}")
        try:
            await asyncio.shield(ready)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Take no more, let what runs end for 4 s, cancel the rest; what is not settled goes to others. Idempotent."""
        self._stopping = True
        self._room.set()
        if self._task is None:
            return
        if self._running:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await self._idle.wait()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self, ready: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            began = loop.time()
            try:
                async with self._sender.driver.consume(self.spec) as consumer:
                    if not ready.done():
                        ready.set_result(None)
                    self.failure = None
                    await self._consume(consumer)
            except Exception as error:  # noqa: BLE001  whatever it is, it is told, and the subscription lives on
                self.failure = _told(self.spec.name, error)
                if not ready.done():
                    ready.set_exception(self.failure)
                    return
                if isinstance(error, Closed) and (self._stopping or self._sender.stopping.is_set()):
                    return
            attempt = 1 if loop.time() - began > _STEADY_S else attempt + 1
            self._sender.counters.add("reopened")
            await self._sender.pause(_REOPEN.delay_s(attempt))

    async def _consume(self, consumer: BusConsumer) -> None:
        """Until it fails: one task receives, so many handle, one settles, one extends."""
        self._waiting.clear()
        self._in_hand.clear()
        self._settled.clear()
        self._unoccupied.clear()
        self._running = 0
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(consumer))
                group.create_task(self._settle(consumer))
                group.create_task(self._extend(consumer))
                for _ in range(self._concurrency):
                    group.create_task(self._handle_all())
        except* GroundplaneError as errors:
            raise _first(errors) from errors
        finally:
            await self._settle_rest(consumer)

    async def _receive(self, consumer: BusConsumer) -> None:
        most = self.spec.max_in_flight
        while True:
            room = most - len(self._in_hand)
            if room <= 0 or (self._waiting and room < most // 2) or self._stopping:
                self._room.clear()
                await self._room.wait()
                if self._stopping:
                    await asyncio.Event().wait()
                continue
            for delivery in await consumer.receive(room):
                self._in_hand[id(delivery)] = delivery
                self._waiting.append(delivery)
            for _ in range(min(len(self._waiting), len(self._unoccupied))):
                unoccupied = self._unoccupied.popleft()
                if not unoccupied.done():
                    unoccupied.set_result(None)

    async def _handle_all(self) -> None:
        loop, clock = asyncio.get_running_loop(), time.monotonic
        turn_ends = 0.0
        while True:
            while not self._waiting or self._stopping:
                unoccupied = loop.create_future()
                self._unoccupied.append(unoccupied)
                await unoccupied
            delivery = self._waiting.popleft()
            if not self._waiting:
                self._room.set()
            self._running += 1
            try:
                settlement = await self._handle(delivery)
            finally:
                self._running -= 1
                if self._stopping and not self._running:
                    self._idle.set()
            self._settled.append(settlement)
            self._done.set()
            if not self._waiting or clock() > turn_ends:
                await asyncio.sleep(0)  # also where no handler ever waits, others get their turn
                turn_ends = clock() + _TURN_S

    async def _settle(self, consumer: BusConsumer) -> None:
        while True:
            await self._done.wait()
            self._done.clear()
            if self._settled:
                await self._settle_now(consumer)

    async def _settle_now(self, consumer: BusConsumer) -> None:
        batch = self._settled
        self._settled = []
        try:
            await self._lasting(lambda: consumer.settle(batch))
        except BaseException:
            self._settled = batch + self._settled
            raise
        for one in batch:
            self._in_hand.pop(id(one.delivery), None)
        self._room.set()

    async def _settle_rest(self, consumer: BusConsumer) -> None:
        """What was handled is settled although the worker stops."""
        if self._settled:
            with suppress(GroundplaneError, TimeoutError):  # then it is handed out again
                async with asyncio.timeout(GRACE_S):
                    await consumer.settle(self._settled)

    async def _extend(self, consumer: BusConsumer) -> None:
        while True:
            await asyncio.sleep(self.spec.lease_s / 3)
            held = list(self._in_hand.values())
            if held:
                await self._extend_all(consumer, held)

    async def _extend_all(self, consumer: BusConsumer, held: list[Delivery]) -> None:
        try:
            await self._lasting(lambda: consumer.extend(held))
        except FailedPrecondition:
            await self._drop_lost(consumer, held)

    async def _lasting(self, call: Callable[[], Awaitable[None]]) -> None:
        """Make a call of the consumer until the backend is there: what runs goes on, and is told of meanwhile."""
        while True:
            try:
                await self._sender.call(call, even_closing=True)
            except GroundplaneError as error:
                if not error.retryable:
                    raise
                self.failure = error
                await asyncio.sleep(_AWAY_S)
            else:
                self.failure = None
                return

    async def _drop_lost(self, consumer: BusConsumer, held: list[Delivery]) -> None:
        """Others have some of it: stop that, and keep the rest."""
        for delivery in held:
            if id(delivery) not in self._in_hand:
                continue  # settled meanwhile
            try:
                await self._lasting(partial(consumer.extend, [delivery]))
            except FailedPrecondition:
                if delivery in self._waiting:
                    self._waiting.remove(delivery)
                    self._in_hand.pop(id(delivery), None)
                elif self._lost is not None:
                    self._lost(delivery)
        self._room.set()


def _told(name: str, error: Exception) -> GroundplaneError:
    if isinstance(error, GroundplaneError):
        return error
    failure = Internal(f"bus: consuming for {name!r} failed with {error!r}")
    failure.__cause__ = error
    return failure


def _first(errors: BaseExceptionGroup[GroundplaneError]) -> GroundplaneError:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, GroundplaneError)
    return found
