"""Asking those who hold messages of a queue how many: the broker itself says that six seconds late, or never.

A question goes to a queue that each holder has for itself, and is answered in turn with what was pushed to it before. A
holder that does not answer in time (stopped, or far away) counts with what it said last.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

import msgspec

from groundplane.backends.amqp import Channel, Delivery, Message, encode_properties
from groundplane.core.errors import GroundplaneError, NotFound
from groundplane.queues.drivers.rabbitmq.link import Link, Session
from groundplane.queues.drivers.rabbitmq.names import Names

ANSWER_S = 0.3
_REMEMBERED_S = 30.0
_replies: set[asyncio.Task[None]] = set()
_TRANSIENT = encode_properties(delivery_mode=1)


class Share(msgspec.Struct, array_like=True, frozen=True):
    """What one holder has. `oldest` is Unix ms of the oldest ready one, 0 for none; `waited_ms` is how long the message
    waited that it got last, -1 when that was a while ago.
    """

    who: bytes
    ready: int = 0
    in_flight: int = 0
    delayed: int = 0
    dead: int = 0
    oldest: int = 0
    waited_ms: int = -1
    last_copy: bytes = b""


class _Question(msgspec.Struct, array_like=True, frozen=True):
    number: bytes
    reply_to: str


class _Answer(msgspec.Struct, array_like=True, frozen=True):
    number: bytes
    share: Share


_encode = msgspec.msgpack.Encoder().encode
_question = msgspec.msgpack.Decoder(_Question).decode
_answer = msgspec.msgpack.Decoder(_Answer).decode


async def answer_on(
    session: Session, channel: Channel, names: Names, broker_queue: str, share: Callable[[], Share]
) -> None:
    """Answer questions about `broker_queue` on the channel that consumes it: what the broker pushed before a question
    is counted in its answer.
    """

    def on_question(delivery: Delivery) -> None:
        try:
            question = _question(delivery.body)
        except msgspec.DecodeError:
            return  # of somebody else
        reply = Message("", question.reply_to, _encode(_Answer(question.number, share())), _TRANSIENT)
        replying = asyncio.create_task(_reply(session, reply), name="groundplane-rabbitmq-answer")
        _replies.add(replying)
        replying.add_done_callback(_replies.discard)

    own = await channel.declare_queue(durable=False, exclusive=True, auto_delete=True)
    await channel.bind_queue(own.name, names.exchange, names.asks(broker_queue))
    await channel.consume(own.name, on_question, no_ack=True)


async def _reply(session: Session, reply: Message) -> None:
    try:
        await session.publish([reply])
    except GroundplaneError:
        return  # who asked goes by what was said last


class Asker:
    """Asks, with a queue of its own for the answers."""

    def __init__(self, link: Link, names: Names) -> None:
        self._link = link
        self._names = names
        self._session: Session | None = None
        self._channel: Channel | None = None
        self._reply_to = ""
        self._opening = asyncio.Lock()
        self._waiting: dict[bytes, _Round] = {}
        self._said: dict[str, dict[bytes, tuple[float, Share]]] = {}

    async def ask(self, broker_queue: str, expected: int) -> list[Share]:
        """What `expected` holders have; of those that are silent what they said last."""
        if expected <= 0:
            self._said.pop(broker_queue, None)
            return []
        session = await self._link.ready()
        await self._open(session)
        number, loop = os.urandom(12), asyncio.get_running_loop()
        asked = self._waiting[number] = _Round(expected)
        question = Message(
            self._names.exchange, self._names.asks(broker_queue), _encode(_Question(number, self._reply_to)), _TRANSIENT
        )
        try:
            (outcome,) = await session.publish([question])
            if isinstance(outcome, NotFound):  # nobody listens: who consumed has closed in this moment
                self._said.pop(broker_queue, None)
                return []
            if outcome is not None:
                raise outcome
            await asyncio.wait([asked.complete], timeout=ANSWER_S)
        finally:
            del self._waiting[number]
            asked.complete.cancel()
        return self._remember(broker_queue, asked.shares, expected, loop.time())

    def _remember(self, queue: str, shares: Sequence[Share], expected: int, now: float) -> list[Share]:
        said = self._said.setdefault(queue, {})
        for share in shares:
            said[share.who] = (now, share)
        present = {share.who for share in shares}
        missing = expected - len(present)
        silent = [one for who, (at, one) in said.items() if who not in present and now - at < _REMEMBERED_S]
        if missing <= 0:
            self._said[queue] = {who: entry for who, entry in said.items() if who in present}
            silent = []
        return [*shares, *silent[-missing:]] if missing > 0 else list(shares)

    async def _open(self, session: Session) -> None:
        async with self._opening:
            if self._session is session and self._channel is not None and self._channel.is_open:
                return
            channel = await session.consuming.channel()
            own = await channel.declare_queue(durable=False, exclusive=True, auto_delete=True)
            await channel.consume(own.name, self._on_answer, no_ack=True)
            self._reply_to, self._channel, self._session = own.name, channel, session

    def _on_answer(self, delivery: Delivery) -> None:
        try:
            answer = _answer(delivery.body)
        except msgspec.DecodeError:
            return  # of somebody else
        asked = self._waiting.get(answer.number)
        if asked is not None:
            asked.add(answer.share)


class _Round:
    """One question and its answers."""

    def __init__(self, expected: int) -> None:
        self.shares: list[Share] = []
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expected = expected

    def add(self, share: Share) -> None:
        self.shares.append(share)
        if len(self.shares) >= self._expected and not self.complete.done():
            self.complete.set_result(None)
