"""Dropping repeats where the queues do not: what was handled is remembered, and what may come again is looked up.

A driver of queues without `Capability.DEDUP` cannot send and settle in one transaction, so a process that dies between
the two leaves a message that is handed out again, and whose outputs are sent again under the keys they had. The order
of a hop is therefore: handle, send the outputs (confirmed), record the delivery's key, ack. A delivery that may be a
repeat is looked up before it is begun; known ones are acked and not run.

A delivery may be a repeat when it was handed out before (`attempt`, `redelivered`, `redrives`), or when its sender says
that it may have sent it before (the header `MAY_REPEAT`): because the sender handled a delivery of that kind itself, or
because it did not learn what became of an earlier sending. All others are first copies, and cost no look.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from groundplane.core.envelope import Envelope
from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument, NotFound, ResourceExhausted
from groundplane.mesh.batching import Batcher
from groundplane.mesh.ledger.port import HANDLED_WINDOW_S, Ledger
from groundplane.mesh.routing import dedup_key
from groundplane.queues.client import Queues
from groundplane.queues.port import MAY_REPEAT, Capability, Delivery, OutgoingMessage

KEYS_MAX = 200_000
"""How many keys a process remembers by itself, where it has no ledger."""
_ONE_IS_WRONG = (NotFound, InvalidArgument, FailedPrecondition, ResourceExhausted)


def needs(queues: Queues) -> bool:
    """Whether the consumers of these queues must drop repeats themselves."""
    return Capability.DEDUP not in queues.driver.capabilities


def key_of(delivery: Delivery, envelope: Envelope) -> str:
    """The key of a delivery: its queue, and what its sender gave as `dedup_key`. A redriven dead letter has its own."""
    return f"{delivery.queue}/{dedup_key(envelope, redrives=delivery.redrives)}"


def may_repeat(delivery: Delivery) -> bool:
    """Whether it may have been handed out, or sent, before. A redriven dead letter was handed out; what it sends may
    have been sent by the attempt that killed its process.
    """
    return delivery.attempt > 1 or delivery.redelivered or delivery.redrives > 0 or MAY_REPEAT in delivery.headers


def marked(messages: Iterable[OutgoingMessage]) -> list[OutgoingMessage]:
    """The messages with the word that they may be repeats."""
    return [msgspec.structs.replace(one, headers={**one.headers, MAY_REPEAT: "1"}) for one in messages]


class Window:
    """Keys that this process has handled, for where there is no ledger: forgotten after the window or at `KEYS_MAX`,
    and with the process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, keys_max: int = KEYS_MAX) -> None:
        self._clock = clock
        self._keys_max = keys_max
        self._keys: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._keys)

    async def handled(self, *, ask: Iterable[str] = (), done: Iterable[str] = ()) -> frozenset[str]:
        """As the ledger's."""
        now = self._clock()
        known = frozenset(key for key in ask if self._keys.get(key, 0.0) > now)
        for key in done:
            self._keys.pop(key, None)
            self._keys[key] = now + HANDLED_WINDOW_S
        while self._keys:  # oldest first
            oldest = next(iter(self._keys))
            if self._keys[oldest] > now and len(self._keys) <= self._keys_max:
                break
            del self._keys[oldest]
        return known


class Repeats:
    """What the consumers of one process have handled, and what they are about. Nothing is retried here."""

    def __init__(self, ledger: Ledger | Window) -> None:
        self._ledger = ledger
        self._asks: Batcher[str, bool] = Batcher(self._ask)
        self._notes: Batcher[str, None] = Batcher(self._note)
        self._under_way: dict[str, asyncio.Event] = {}

    def take(self, key: str) -> bool:
        """Begin to handle the delivery with this key, without a look; `end` it afterwards. False, and nothing is begun,
        while another copy of it is handled in this process.
        """
        if key in self._under_way:
            return False
        self._under_way[key] = asyncio.Event()
        return True

    async def begin(self, key: str) -> bool:
        """Begin to handle a delivery that may be a repeat; `end` it afterwards. False, and nothing is begun, for one
        that was handled before.

        While another copy is handled in this process it waits for that. Raises what the ledger raises.
        """
        while not self.take(key):
            await self._under_way[key].wait()
        known = True
        try:
            known = await self._asks.submit(key)
        finally:
            if known:
                self.end(key)
        return not known

    def end(self, key: str) -> None:
        """The delivery was settled, or given up."""
        self._under_way.pop(key).set()

    async def record(self, key: str) -> None:
        """It was handled, and what it sends is durable. Durable when this returns."""
        await self._notes.submit(key)

    async def aclose(self) -> None:
        """Wait for what is under way."""
        await self._asks.aclose()
        await self._notes.aclose()

    async def _ask(self, keys: list[str]) -> list[bool | Exception]:
        known = await self._ledger.handled(ask=keys)
        return [key in known for key in keys]

    async def _note(self, keys: list[str]) -> Sequence[None]:
        await self._ledger.handled(done=keys)
        return [None] * len(keys)


class Sender:
    """Sends by itself, in natural batches, what elsewhere is sent within the settlement."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._batches: Batcher[Sequence[OutgoingMessage], None] = Batcher(self._flush)

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """Durable when it returns. Raises as `Queues.send` does, about these alone; some may have been sent then."""
        await self._batches.submit(messages)

    async def aclose(self) -> None:
        """Wait for what is under way."""
        await self._batches.aclose()

    async def _flush(self, items: list[Sequence[OutgoingMessage]]) -> list[Exception | None]:
        try:
            await self._queues.send(*(message for messages in items for message in messages))
        except _ONE_IS_WRONG as error:
            if len(items) == 1:
                return [error]
            return list(await asyncio.gather(*map(self._alone, items)))
        return [None] * len(items)

    async def _alone(self, messages: Sequence[OutgoingMessage]) -> Exception | None:
        try:
            await self._queues.send(*marked(messages))
        except GroundplaneError as error:
            return error
        return None


__all__ = ["KEYS_MAX", "Repeats", "Sender", "Window", "key_of", "marked", "may_repeat", "needs"]
