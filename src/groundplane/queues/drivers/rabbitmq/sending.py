"""Sending: depth limits before, errors by name after."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from groundplane.backends.amqp import Message
from groundplane.core.clock import Clock
from groundplane.core.errors import GroundplaneError, InvalidArgument, NotFound, ResourceExhausted
from groundplane.queues.drivers.rabbitmq import messages
from groundplane.queues.drivers.rabbitmq.link import Link
from groundplane.queues.drivers.rabbitmq.names import Names
from groundplane.queues.drivers.rabbitmq.registry import Registry
from groundplane.queues.port import OutgoingMessage

_COUNTED_S = 1.0
_UNCOUNTED_SHARE = 10


class Bounds:
    """Keeps queues within their `depth_max`: exact for one sender, nearly so for many at once.

    The broker's own limit cannot be changed once declared, and does not count what is delayed. A queue that is far from
    full is counted once a second, and after a tenth of its room was sent; else at each call.
    """

    def __init__(self, registry: Registry, count: Callable[[str], Awaitable[int | None]]) -> None:
        self._registry = registry
        self._count = count
        self._counted: dict[str, _Counted] = {}

    async def reserve(self, wanted: Mapping[str, int]) -> None:
        """Room for so many messages in each queue, or `queue_full` and none reserved. Release it afterwards."""
        reserved: dict[str, int] = {}
        try:
            for queue, number in wanted.items():
                await self._reserve(queue, number)
                reserved[queue] = number
        except BaseException:
            self.release(reserved)
            raise

    def release(self, reserved: Mapping[str, int]) -> None:
        """They were sent, or failed."""
        for queue, number in reserved.items():
            self._counted[queue].under_way -= number

    async def _reserve(self, queue: str, number: int) -> None:
        counted = self._counted.get(queue)
        if counted is None:
            counted = self._counted[queue] = _Counted()
        limit, now = self._registry.spec(queue).depth_max, asyncio.get_running_loop().time()
        room = limit - counted.depth
        uncounted = counted.sent + counted.under_way + number
        if now - counted.at > _COUNTED_S or uncounted * _UNCOUNTED_SHARE > room:
            async with counted.counting:
                depth = await self._count(queue)
                if depth is None:
                    depth = 0  # no such queue: publishing says so
                counted.depth, counted.at, counted.sent = depth, now, 0
                if depth + counted.under_way + number > limit:
                    raise full(queue, limit)
        counted.under_way += number
        counted.sent += number


class _Counted:
    """What is known of one queue's depth."""

    __slots__ = ("at", "counting", "depth", "sent", "under_way")

    def __init__(self) -> None:
        self.depth = self.sent = self.under_way = 0
        self.at = float("-inf")
        self.counting = asyncio.Lock()


class Sender:
    """Publishes for a driver and its consumers."""

    def __init__(self, link: Link, names: Names, registry: Registry, bounds: Bounds, clock: Clock) -> None:
        self._link = link
        self._names = names
        self._registry = registry
        self._bounds = bounds
        self._clock = clock

    async def send(self, outgoing: Sequence[OutgoingMessage]) -> None:
        """See `QueueDriver.send`."""
        session = await self._link.ready()
        await self._registry.fresh()
        wanted = Counter(message.queue for message in outgoing)
        known = {queue: number for queue, number in wanted.items() if self._registry.knows(queue)}
        await self._bounds.reserve(known)
        try:
            now_ms = self._clock.now_ms()
            outcomes = await session.publish([self._encoded(message, now_ms) for message in outgoing])
        finally:
            self._bounds.release(known)
        for message, outcome in zip(outgoing, outcomes, strict=True):
            if outcome is not None:
                raise explained(outcome, message.queue)

    async def send_again(self, queue: str, copies: Sequence[Message], *, bounded: bool = False) -> None:
        """Publish copies of messages that the queue has already, or (`bounded`) had once."""
        session = await self._link.ready()
        known = {queue: len(copies)} if bounded else {}
        await self._bounds.reserve(known)
        try:
            outcomes = await session.publish(copies)
        finally:
            self._bounds.release(known)
        for outcome in outcomes:
            if outcome is not None:
                raise explained(outcome, queue)

    def _encoded(self, message: OutgoingMessage, now_ms: int) -> Message:
        note = messages.first_note(message, now_ms)
        names = self._names
        key = names.delayed(message.queue) if note.due_at else names.ready(message.queue)
        encoded = messages.encode(names.exchange, key, note, message.payload)
        if len(encoded.properties) > messages.PROPERTIES_MAX:
            raise InvalidArgument(
                f"headers: the message {message.id!r} has {len(encoded.properties)} bytes of headers, with RabbitMQ "
                f"the limit is {messages.PROPERTIES_MAX}; put the data into the payload",
                reason="payload_too_large",
            )
        return encoded


def missing(queue: str) -> NotFound:
    """The error of a queue that was not declared."""
    return NotFound(
        f"queue: {queue!r} does not exist; declare it first, or mend the name",
        reason="queue_not_found",
        details={"queue": queue},
    )


def full(queue: str, depth_max: int) -> ResourceExhausted:
    """The error of a queue that would hold too many."""
    return ResourceExhausted(
        f"depth_max: queue {queue!r} would hold more than its {depth_max} messages; "
        "wait until its consumers have caught up, or declare it with a larger depth_max",
        reason="queue_full",
        details={"queue": queue, "depth_max": depth_max},
    )


def explained(error: GroundplaneError, queue: str) -> GroundplaneError:
    """The outcome of a publishing in the words of this port."""
    if error.reason not in ("queue_not_found", "exchange_not_found", "message_refused"):
        return error
    known = _refused(queue) if error.reason == "message_refused" else missing(queue)
    known.__cause__ = error
    return known


def _refused(queue: str) -> ResourceExhausted:
    return ResourceExhausted(
        f"depth_max: the broker refused a message for queue {queue!r}: a policy of the broker limits it, or it has no "
        "leader; wait until its consumers have caught up, or mend the policy",
        reason="queue_full",
        details={"queue": queue},
    )
