"""What a consumer has handed out, until each is settled or lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence

from groundplane.core.errors import FailedPrecondition, GroundplaneError
from groundplane.queues.drivers.rabbitmq import settling
from groundplane.queues.drivers.rabbitmq.intake import Intake, Taken
from groundplane.queues.drivers.rabbitmq.parts import Parts
from groundplane.queues.port import Delivery, OutgoingMessage, Settlement

_LOST_REMEMBERED = 10_000


class Held:
    """The deliveries of one consumer, each by a number that no other has.

    Each is settled once, by one caller at a time, and is in flight until then. What is sent and what comes again is
    confirmed before its delivery is acknowledged. One whose channel is gone is in flight no more and never
    acknowledged: who settles it is told that it was lost, or, when that is long ago, that it is not held.

    `kept` is called when some were put back into the buffer, `changed` when a settlement is through.
    """

    def __init__(self, parts: Parts, queue: str, *, kept: Callable[[], None], changed: Callable[[], None]) -> None:
        self._parts = parts
        self._queue = queue
        self._kept = kept
        self._changed = changed
        self._numbers = itertools.count(1)
        self._held: dict[int, Taken] = {}
        self._being_settled: set[int] = set()
        self._lost: dict[int, None] = {}
        self._burying = 0
        self._busy = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def in_flight(self) -> int:
        """How many are out of the queue: those held, and those that are made dead letters in this moment."""
        return len(self._held) + self._burying

    def hand_out(self, taken: Taken) -> Delivery:
        """Hold it. It is shown from now on: whoever gets it again is told that it may be a repeat."""
        number, note = next(self._numbers), taken.note
        self._held[number] = taken
        repeat = note.repeat or taken.seen or taken.shown
        taken.shown = True
        return Delivery(
            tag=number,
            queue=self._queue,
            id=note.id,
            payload=taken.delivered.body,
            headers=note.headers,
            attempt=taken.attempt,
            enqueued_at=note.enqueued_at,
            redrives=note.redrives,
            redelivered=repeat,
        )

    async def settle(self, settlements: Sequence[Settlement], sends: Sequence[OutgoingMessage]) -> None:
        """Make the copies, send, then acknowledge. Where sending fails, all of `settlements` are held as before, and a
        copy that was made is not made again.
        """
        numbers = self._begin(settlements)
        self._busy += 1
        self._unused.clear()
        try:
            held = [self._held[number] for number in numbers]
            attempts_max = self._parts.registry.spec(self._queue).attempts_max
            now_ms = self._parts.clock.now_ms()
            todo = settling.plan(self._parts.names, self._queue, settlements, held, attempts_max, now_ms)
            if todo.copies:
                await self._parts.sender.send_again(self._queue, todo.copies)
                for one in todo.copied:
                    one.copied = True
            if sends:
                await self._parts.sender.send(sends)
            lost = self._let_go(numbers, held)
            _acknowledge(todo.done)
            self._keep_in_buffer(todo.kept)
        finally:
            self._being_settled.difference_update(numbers)
            self._busy -= 1
            if not self._busy:
                self._unused.set()
        self._changed()
        if lost:
            self._remember_lost(lost)
            raise self._lost_error(lost[0])

    async def bury(self, worn: Sequence[Taken]) -> None:
        """Those that crashed too often are dead letters; where that fails they stay unsettled, and come again."""
        names, now_ms = self._parts.names, self._parts.clock.now_ms()
        copies = [
            settling.buried(names, self._queue, one, settling.EXHAUSTED, one.attempt - 1, None, now_ms) for one in worn
        ]
        self._burying += len(worn)
        try:
            await self._parts.sender.send_again(self._queue, copies)
            _acknowledge(worn)
        except GroundplaneError:
            for one in worn:
                if one.intake.alive:
                    one.intake.requeue([one])
        finally:
            self._burying -= len(worn)

    def lose(self, intake: Intake) -> None:
        """Its channel is gone, and with it everything that was held on it."""
        intake.left = True
        gone = [number for number, taken in self._held.items() if taken.intake is intake]
        for number in gone:
            del self._held[number]
        self._remember_lost(gone)

    async def settled(self) -> None:
        """Returns when nobody is settling."""
        await self._unused.wait()

    def unsettled(self) -> list[Taken]:
        """Those that nobody is settling."""
        return [taken for number, taken in self._held.items() if number not in self._being_settled]

    def clear(self) -> None:
        """None is in flight any more. What is being settled goes on."""
        self._held.clear()

    def _begin(self, settlements: Sequence[Settlement]) -> list[int]:
        numbers = [settlement.delivery.tag for settlement in settlements]
        for number in numbers:
            if number in self._lost:
                raise self._lost_error(number)
            if number not in self._held or number in self._being_settled:
                raise self._settled_error(number)
        if len(set(numbers)) < len(numbers):
            raise self._settled_error(next(one for one in numbers if numbers.count(one) > 1))
        self._being_settled.update(numbers)
        return numbers

    def _let_go(self, numbers: Sequence[int], held: Sequence[Taken]) -> list[int]:
        """They are in flight no more; the numbers of those that the broker took back meanwhile."""
        for number in numbers:
            self._held.pop(number, None)
        return [number for number, taken in zip(numbers, held, strict=True) if not taken.intake.holds]

    def _keep_in_buffer(self, taken: Sequence[Taken]) -> None:
        """Handed back without delay or cost: it is the next of this consumer, and of others when this is idle."""
        for one in reversed(taken):
            if one.intake.holds:
                one.intake.buffer.appendleft(one)
        if taken:
            self._kept()

    def _remember_lost(self, numbers: Iterable[int]) -> None:
        self._lost.update(dict.fromkeys(numbers))
        while len(self._lost) > _LOST_REMEMBERED:
            del self._lost[next(iter(self._lost))]

    def _settled_error(self, number: int) -> FailedPrecondition:
        return FailedPrecondition(
            f"delivery: {number!r} of queue {self._queue!r} was settled before, or is not of this consumer; "
            "settle each delivery once, where it was received",
            reason="delivery_settled",
            details={"queue": self._queue, "tag": number},
        )

    def _lost_error(self, number: int) -> FailedPrecondition:
        return FailedPrecondition(
            f"delivery: {number!r} of queue {self._queue!r} went back to its queue, because the connection to the "
            "broker broke; undo what can be undone, it is handed out again",
            reason="delivery_lost",
            details={"queue": self._queue, "tag": number},
        )


def _acknowledge(taken: Sequence[Taken]) -> None:
    mine = [one for one in taken if one.intake.holds]
    if mine:
        mine[0].intake.ack(mine)
