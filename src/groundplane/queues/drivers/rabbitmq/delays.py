"""Messages that wait for their time: held by the consumers of their queue, published to it when they are due.

They lie in a quorum queue of their own. Each consumer holds its share unacknowledged and knows when each is due; one
that dies gives its share to the others. Payloads are kept up to a bound: of the rest only the time is remembered, and
the broker sends them again when they are due. Any delay, to the millisecond, with one queue and no plugin.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Sequence

from groundplane.backends.amqp import Delivery, Message
from groundplane.core.clock import Clock
from groundplane.core.errors import GroundplaneError
from groundplane.queues.drivers.rabbitmq import messages
from groundplane.queues.drivers.rabbitmq.intake import Intake

HELD_MAX = 20_000
BYTES_MAX = 16_000_000
ROTATE_S = 1.0
HELD_S = 900.0
"""How long one is held at a time: the broker closes the channel of who holds one for longer than 30 minutes."""

_AT_ONCE = 500
_ROTATED_AT_ONCE = 2000
_LOOKS_MAX = 20
_AGAIN_S = 0.3
_TIMER_S_MAX = 60.0
_NEVER = 2**62


class Delays:
    """The share of one consumer. Everything ends with its channel."""

    def __init__(
        self,
        intake: Intake,
        *,
        source: str,
        exchange: str,
        target: str,
        publish: Callable[[Sequence[Message]], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._intake = intake
        self._source = source
        self._exchange = exchange
        self._target = target
        self._publish = publish
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._due: list[tuple[int, int, int]] = []
        self._numbers = itertools.count()
        self._held: dict[int, Delivery | None] = {}
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._moving: asyncio.Task[None] | None = None
        self._tag: str | None = None
        self._stopping = False
        self._rotating: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """How many it holds."""
        return len(self._held)

    async def returned(self, count: int, before: int) -> bool:
        """Whether `count` that were given back are seen in the queue, that had `before`."""
        state = await self._intake.channel.declare_queue(self._source, passive=True)
        return state.ready >= before + count

    async def waiting(self) -> int:
        """How many lie in the queue and are held by nobody."""
        return (await self._intake.channel.declare_queue(self._source, passive=True)).ready

    async def start(self) -> None:
        """Consume; what is due already is published at once."""
        channel = self._intake.channel
        await channel.qos(HELD_MAX)
        self._tag = await channel.consume(self._source, self._receive, on_cancel=self._on_cancel)
        self._rotating = asyncio.create_task(self._rotate(), name="groundplane-rabbitmq-rotation")

    async def stop(self) -> tuple[int, int]:
        """Let those that are being published finish, and give back the rest; how many to wait for to be seen, and how
        many lay there before.
        """
        channel = self._intake.channel
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._tag is not None:
            for _ in range(_LOOKS_MAX):  # what the broker pushes to a consumer that ends is nowhere for a while
                if not await self.waiting() or len(self._held) >= HELD_MAX:
                    break
            await self.waiting()  # what waited in the broker's channel has come then
            await channel.cancel(self._tag)
        if self._rotating is not None:
            self._rotating.cancel()
            await asyncio.wait([self._rotating])
        if self._moving is not None:
            await asyncio.wait([self._moving], timeout=2.0)
        before = await channel.declare_queue(self._source, passive=True)
        tags = list(self._held)
        for tag in tags:
            self._intake.drop_aside(tag, requeue=True)
        self.end()
        others = before.consumers > bool(tags)  # one that holds something counts until that is back
        return 0 if others else len(tags), before.ready

    def end(self) -> None:
        """The channel is no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._rotating is not None:
            self._rotating.cancel()
        if self._moving is not None:
            self._moving.cancel()
        self._held.clear()
        self._due.clear()
        self._bytes = 0

    def _on_cancel(self, error: GroundplaneError) -> None:
        self._intake.end(error)

    def _receive(self, delivery: Delivery) -> None:
        due_at = _due_at(delivery)
        again = self._clock.now_ms() + round(HELD_S * 1000)
        at = min(due_at, again)
        self._intake.hold_aside(delivery.tag)
        keep = self._bytes + len(delivery.body) <= BYTES_MAX or due_at <= self._clock.now_ms()
        self._held[delivery.tag] = delivery if keep else None
        if keep:
            self._bytes += len(delivery.body)
        heapq.heappush(self._due, (at, next(self._numbers), delivery.tag))
        if self._due[0][2] == delivery.tag:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due and self._moving is None and self._intake.alive and not self._stopping:
            wait_s = max(0, self._due[0][0] - self._clock.now_ms()) / 1000
            self._timer = self._loop.call_later(min(wait_s, _TIMER_S_MAX), self._fire)

    def _fire(self) -> None:
        self._timer = None
        if not self._due or self._due[0][0] > self._clock.now_ms():
            self._arm()
        elif self._moving is None and self._intake.alive:
            self._moving = asyncio.create_task(self._move(), name="groundplane-rabbitmq-delays")
            self._moving.add_done_callback(self._moved)

    def _moved(self, task: asyncio.Task[None]) -> None:
        self._moving = None
        if not task.cancelled():
            task.exception()
            self._arm()

    async def _move(self) -> None:
        """Publish what is due; what is only to be held anew, or has no payload here, goes back to come again."""
        now_ms = self._clock.now_ms()
        ready: list[Delivery] = []
        while self._due and self._due[0][0] <= now_ms and len(ready) < _AT_ONCE:
            _, _, tag = heapq.heappop(self._due)
            delivery = self._held[tag]
            if delivery is None or _due_at(delivery) > now_ms:
                self._forget(tag)
                self._intake.drop_aside(tag, requeue=True)
            else:
                ready.append(delivery)
        if not ready:
            return
        try:
            await self._publish([self._next(delivery, now_ms) for delivery in ready])
        except GroundplaneError:
            for delivery in ready:
                heapq.heappush(self._due, (now_ms, next(self._numbers), delivery.tag))
            await asyncio.sleep(_AGAIN_S)
            return
        for delivery in ready:
            self._forget(delivery.tag)
            if self._intake.channel.is_open:
                self._intake.drop_aside(delivery.tag, requeue=False)

    def _next(self, delivery: Delivery, now_ms: int) -> Message:
        note = messages.note_of(delivery)
        again = messages.again(note, now_ms=now_ms, repeat=note.repeat or delivery.redelivered)
        return messages.encode(self._exchange, self._target, again, delivery.body)

    async def _rotate(self) -> None:
        """Look at what lies behind: one whole turn, then again when something came, or something seen is nearly due."""
        left = rested = 0
        soonest = _NEVER
        while True:
            await asyncio.sleep(ROTATE_S)
            if len(self._held) < HELD_MAX:
                left = rested = 0
                continue
            try:
                behind = await self.waiting()
                if not behind or (rested and behind <= rested and soonest > self._clock.now_ms()):
                    continue
                if left <= 0:
                    left, rested, soonest = behind + len(self._held), 0, _NEVER
                moved, first = await self._rotate_some()
            except GroundplaneError:
                continue  # the broker is away, or busy
            left, soonest = left - max(1, moved), min(soonest, first)
            if left <= 0:
                rested = behind

    async def _rotate_some(self) -> tuple[int, int]:
        """Put those that are due last behind all others; how many, and when the first of them is due."""
        last = heapq.nlargest(_ROTATED_AT_ONCE, self._due)
        bodies = [(entry, body) for entry in last if (body := self._held.get(entry[2])) is not None]
        chosen = bodies[: max(1, HELD_MAX // 2)]
        if not chosen:
            return 0, _NEVER
        gone = {entry[2] for entry, _ in chosen}
        self._due = [entry for entry in self._due if entry[2] not in gone]
        heapq.heapify(self._due)
        copies, first = [], _NEVER
        for _, delivery in chosen:
            note = messages.note_of(delivery)
            first = min(first, note.due_at)
            copy = messages.moved(note, repeat=note.repeat or delivery.redelivered)
            copies.append(messages.encode(self._exchange, self._source, copy, delivery.body))
        try:
            await self._publish(copies)
        except BaseException:
            for entry, _ in chosen:
                heapq.heappush(self._due, entry)
            raise
        for _, delivery in chosen:
            self._forget(delivery.tag)
            if self._intake.channel.is_open:
                self._intake.drop_aside(delivery.tag, requeue=False)
        return len(chosen), first

    def _forget(self, tag: int) -> None:
        delivery = self._held.pop(tag)
        if delivery is not None:
            self._bytes -= len(delivery.body)


def _due_at(delivery: Delivery) -> int:
    """When it is due; never, where the message is of a newer version: it waits for a consumer that can read it."""
    try:
        return messages.note_of(delivery).due_at
    except GroundplaneError:
        return _NEVER
