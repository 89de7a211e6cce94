"""What was published on one channel and not confirmed yet, and who waits for it.

A message that comes back (`basic.return`) has no number. RabbitMQ sends its confirm after it, but confirms of others
may come between the two (3.10.8: 2 of 4,000 times), so the order does not tell which it was. It is found by what came
back: exchange, routing key, properties and body. Messages alike in all of these are interchangeable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Set
from typing import NamedTuple, Protocol

from groundplane.backends.amqp.content import Returned
from groundplane.backends.amqp.errors import PUBLISH, again, in_doubt, refused, unroutable
from groundplane.backends.amqp.tables import EMPTY, Properties, WireError, decode_properties
from groundplane.core.errors import GroundplaneError

PENDING_MAX = 100_000
PENDING_BYTES_MAX = 256 * 1024 * 1024


class Message(NamedTuple):
    """One message to publish. `properties` are those of `encode_properties`."""

    exchange: str
    routing_key: str
    body: bytes
    properties: bytes = EMPTY


class Waiter(Protocol):
    """Whoever waits for the confirm of one message or of many."""

    def settle(self, index: int, error: GroundplaneError | None) -> None:
        """The broker has it, or the error says why not (or that nobody knows)."""
        ...


class One:
    """Waits for a single message."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future

    def settle(self, index: int, error: GroundplaneError | None) -> None:
        """Resolve the future, unless its owner has given it up."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)
            self.future.exception()  # its owner may be gone: that is no fault to be reported by the loop


class Many:
    """Waits for a batch; each message has an outcome of its own."""

    __slots__ = ("_missing", "_outcomes", "future")

    def __init__(self, future: asyncio.Future[list[GroundplaneError | None]], size: int) -> None:
        self.future = future
        self._outcomes: list[GroundplaneError | None] = [None] * size
        self._missing = size

    def settle(self, index: int, error: GroundplaneError | None) -> None:
        """Note one outcome; the last one resolves the future."""
        self._outcomes[index] = error
        self._missing -= 1
        if not self._missing and not self.future.done():
            self.future.set_result(self._outcomes)


class _Pending:
    __slots__ = ("index", "message", "returned", "waiter")

    def __init__(self, waiter: Waiter, index: int, message: Message) -> None:
        self.waiter = waiter
        self.index = index
        self.message = message
        self.returned: Returned | None = None


class Confirms:
    """Numbers messages as the broker does (from 1, per channel) and settles their waiters."""

    __slots__ = ("_last", "_pending", "_proven", "confirmed", "pending_bytes", "refused", "returned")

    def __init__(self) -> None:
        self._last = 0
        self._pending: dict[int, _Pending] = {}  # ascending: that is the order of publishing
        self._proven: set[str] = {""}
        self.pending_bytes = 0
        self.confirmed = 0
        self.returned = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._pending)

    def has_room(self, count: int) -> bool:
        """Whether so many more may be in flight: they are kept until the broker has answered."""
        return len(self._pending) + count <= PENDING_MAX and self.pending_bytes < PENDING_BYTES_MAX

    @property
    def published(self) -> int:
        """How many messages have been numbered."""
        return self._last

    def add(self, waiter: Waiter, index: int, message: Message) -> None:
        """A message goes out now: it gets the next number."""
        self._last += 1
        self._pending[self._last] = _Pending(waiter, index, message)
        self.pending_bytes += len(message.body)

    def acknowledge(self, tag: int, multiple: bool) -> None:
        """`basic.ack`: the broker is responsible for them now, or has returned them before."""
        for pending in self._take(tag, multiple):
            back = pending.returned
            if back is None:
                self.confirmed += 1
                self._proven.add(pending.message.exchange)
                pending.waiter.settle(pending.index, None)
            else:
                error = unroutable(back.exchange, back.routing_key, back.code, back.text)
                pending.waiter.settle(pending.index, error)

    def refuse(self, tag: int, multiple: bool) -> None:
        """`basic.nack`: the broker did not take them."""
        for pending in self._take(tag, multiple):
            self.refused += 1
            message = pending.message
            pending.waiter.settle(pending.index, refused(message.exchange, message.routing_key))

    def give_back(self, back: Returned) -> None:
        """`basic.return`: mark the message that came back; its confirm is still to come."""
        found = self._find(back)
        if found is not None:
            found.returned = back
            self.returned += 1

    def fail(self, error: GroundplaneError, blamed: tuple[int, int] | None = None) -> None:
        """Nobody will confirm the rest. `blamed` is the method that made the broker close the channel, None when it was
        no method's fault: then the error is everybody's; else the innocent are told that theirs is in doubt.
        """
        pending, self._pending, self.pending_bytes = list(self._pending.values()), {}, 0
        guilty = None if blamed is None else self._guilty(pending, error, blamed)
        for one in pending:
            innocent = guilty is not None and one not in guilty
            one.waiter.settle(one.index, in_doubt(one.message.routing_key, error) if innocent else again(error))

    def _take(self, tag: int, multiple: bool) -> Iterator[_Pending]:
        if tag > self._last:
            raise WireError(f"a confirm of message {tag}; only {self._last} were published")
        if not multiple:
            one = self._pending.pop(tag, None)  # None: its waiters were told of a failure before
            if one is not None:
                self.pending_bytes -= len(one.message.body)
                yield one
            return
        for number in list(self._until(tag or self._last)):
            one = self._pending.pop(number)
            self.pending_bytes -= len(one.message.body)
            yield one

    def _until(self, tag: int) -> Iterator[int]:
        for number in self._pending:
            if number > tag:
                return
            yield number

    def _find(self, back: Returned) -> _Pending | None:
        alike: _Pending | None = None
        properties: Properties | None = None
        for one in self._pending.values():
            message = one.message
            if (
                one.returned is not None
                or message.routing_key != back.routing_key
                or message.exchange != back.exchange
                or message.body != back.body
            ):
                continue
            if message.properties == back.raw_properties:
                return one
            properties = properties or _decoded(back.raw_properties)
            if properties is not None and _decoded(message.properties) == properties:
                return one  # the broker wrote the same values in other bytes
            alike = alike or one
        return alike

    def _guilty(self, pending: list[_Pending], error: GroundplaneError, blamed: tuple[int, int]) -> Set[_Pending]:
        if blamed != PUBLISH:
            return frozenset()
        if error.reason not in ("exchange_not_found", "access_refused"):
            return frozenset(pending if len(pending) == 1 else ())
        unproven = {one.message.exchange for one in pending} - self._proven
        named = {name for name in unproven if f"'{name}'" in str(error.details.get("reply_text", ""))}
        return {one for one in pending if one.message.exchange in (named or unproven)}


def _decoded(properties: bytes) -> Properties | None:
    try:
        return decode_properties(properties)
    except WireError:
        return None
