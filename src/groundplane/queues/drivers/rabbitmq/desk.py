"""The desk at which the dead letters of one queue are read: alone, all at once, and for as long as somebody asks.

A queue of RabbitMQ cannot be looked at, only consumed. So whoever wants to see dead letters consumes them all and
settles none: when the desk closes, a moment after the last question, they are back. That nobody else does so meanwhile
is seen to by a queue that only one connection can have (quorum queues know no exclusive consumers). Payloads are kept
up to a bound; beyond it the broker sends them again when they are wanted.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from groundplane.backends.amqp import Channel, Delivery
from groundplane.core.errors import FailedPrecondition, GroundplaneError, Unavailable
from groundplane.queues.drivers.rabbitmq import asking, messages
from groundplane.queues.drivers.rabbitmq.asking import Share
from groundplane.queues.drivers.rabbitmq.link import Session
from groundplane.queues.drivers.rabbitmq.messages import Death, Note
from groundplane.queues.drivers.rabbitmq.names import Names

BYTES_MAX = 32_000_000
LINGER_S = 0.5
_ALONE_S = 6.0
_AGAIN_S = 0.05
_READ_S = 60.0
_VISIBLE_S = 1.0


class Letter:
    """One dead letter on the desk."""

    __slots__ = ("body", "key", "note", "tag")

    def __init__(self, key: str, tag: int, note: Note, body: bytes | None) -> None:
        self.key = key
        self.tag = tag
        self.note = note
        self.body = body


class Desk:
    """The dead letters of one queue, all of them, by key; keys grow with the time of death."""

    def __init__(self, session: Session, lock: Channel, channel: Channel, broker_queue: str) -> None:
        self.session = session
        self._lock = lock
        self.letters: dict[str, Letter] = {}
        self._channel = channel
        self._queue = broker_queue
        self._who = os.urandom(12)
        self._bytes = 0
        self._wanted: dict[str, asyncio.Future[bytes]] = {}
        self._tag: str | None = None

    @classmethod
    async def open(cls, session: Session, names: Names, broker_queue: str) -> Desk:
        """Wait until nobody else reads, then read. `unavailable` while another process does."""
        lock = await _locked(session, broker_queue)
        desk = cls(session, lock, await session.consuming.channel(), broker_queue)
        try:
            await desk._consume(names)
        except BaseException:
            await desk.aclose()
            raise
        return desk

    @property
    def is_open(self) -> bool:
        return self._channel.is_open and self._tag is not None

    async def read(self) -> None:
        """Returns when every letter that was there at the call is on the desk."""
        async with _in_time(self._queue):
            while (await self._channel.declare_queue(self._queue, passive=True)).ready:  # noqa: ASYNC110
                await asyncio.sleep(0.002)  # the broker tells nobody
            await self._channel.declare_queue(self._queue, passive=True)  # what waited in its channel has come

    async def body(self, letter: Letter) -> bytes:
        """Its payload, fetched again where it was too much to keep, and let go again then. `unavailable` where the
        connection breaks, or the broker does not give it.
        """
        if letter.body is not None:
            return letter.body
        wanted = self._wanted.setdefault(letter.key, asyncio.get_running_loop().create_future())
        self._channel.nack(letter.tag)
        del self.letters[letter.key]
        async with _in_time(self._queue):
            body = await asyncio.shield(wanted)
        letter = self.letters.get(letter.key, letter)
        if self._bytes > BYTES_MAX and letter.body is not None:
            self._bytes -= len(letter.body)
            letter.body = None
        return body

    def remove(self, key: str) -> None:
        """It is a dead letter no more."""
        letter = self.letters.pop(key)
        self._bytes -= len(letter.body or b"")
        self._channel.ack(letter.tag)

    async def aclose(self) -> None:
        """Give all back; returns when they are.

        By ending the channel: the broker then ends the consumer and takes the letters back in one step, so that who
        waits to read finds them.
        """
        self._tag = None
        letters, self.letters = self.letters, {}
        with suppress(GroundplaneError):
            await self._channel.aclose()
            if letters and self.session.alive:
                await self._visible(len(letters))
        with suppress(GroundplaneError):
            if self._lock.is_open:
                await self._lock.delete_queue(_lock_of(self._queue))
            await self._lock.aclose()

    async def _visible(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _VISIBLE_S
        while loop.time() < until:
            state = await self.session.state(self._queue)
            if state is None or state.ready >= count or state.consumers:
                return
            await asyncio.sleep(0.002)

    async def _consume(self, names: Names) -> None:
        self._channel.on_closed(self._end)
        self._tag = await self._channel.consume(self._queue, self._receive, on_cancel=self._end)
        await asking.answer_on(self.session, self._channel, names, self._queue, self._share)
        await self.read()

    def _share(self) -> Share:
        return Share(who=self._who, dead=len(self.letters))

    def _receive(self, delivery: Delivery) -> None:
        key, note = _key_and_note(delivery)
        wanted = self._wanted.pop(key, None)
        keep = wanted is not None or self._bytes + len(delivery.body) <= BYTES_MAX
        if keep:
            self._bytes += len(delivery.body)
        self.letters[key] = Letter(key, delivery.tag, note, delivery.body if keep else None)
        if wanted is not None and not wanted.done():
            wanted.set_result(delivery.body)

    def _end(self, error: GroundplaneError) -> None:
        self._tag = None
        wanted, self._wanted = self._wanted, {}
        for one in wanted.values():
            if not one.done():
                one.set_exception(error)
                one.exception()  # who waited may be gone


@asynccontextmanager
async def _in_time(broker_queue: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_READ_S):
            yield
    except TimeoutError as error:
        raise Unavailable(
            f"queue: the dead letters of {broker_queue!r} did not come within {_READ_S:g} s; look at the broker's load",
            reason="broker_slow",
        ) from error


def _lock_of(broker_queue: str) -> str:
    return f"{broker_queue}:desk"


async def _locked(session: Session, broker_queue: str) -> Channel:
    """A channel that has the lock; `unavailable` when another process does not give it up in time."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _ALONE_S
    while True:
        channel = await session.consuming.channel()
        try:
            await channel.declare_queue(_lock_of(broker_queue), durable=False, exclusive=True)
            return channel
        except FailedPrecondition as error:
            if error.reason != "resource_locked":
                raise
            if loop.time() > until:
                raise _taken(broker_queue) from error
        await asyncio.sleep(_AGAIN_S)


def _key_and_note(delivery: Delivery) -> tuple[str, Note]:
    try:
        note = messages.note_of(delivery)
    except GroundplaneError:
        note = None
    if note is not None and note.death is not None:
        return note.copy.hex(), note
    digest = hashlib.sha256(delivery.body).hexdigest()[:30]  # of a foreign sender: always the same key
    made_up = Note(messages.VERSION, b"", digest, 1, 0, death=Death("unknown", 1, 0)) if note is None else note
    return f"ff{digest}", made_up


def _taken(broker_queue: str) -> Unavailable:
    return Unavailable(
        f"queue: another process reads the dead letters of {broker_queue!r}; try again when it has finished",
        reason="resource_locked",
        retryable=True,
    )
