"""A log on the broker that every process of the namespace reads from its beginning: a RabbitMQ stream.

Reading takes nothing away, so any number of processes read it. A mark that was appended and comes back proves that all
that was appended before has been read.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from groundplane.backends.amqp import Channel, Delivery, Message
from groundplane.core.errors import FailedPrecondition, GroundplaneError, NotFound, Unavailable
from groundplane.queues.drivers.rabbitmq.link import Link, Session, check_is_missing, check_is_up

_RECORD, _MARK = b"\x01", b"\x00"
_PREFETCH = 500
_SYNC_S = 8.0
_ANEW_S = 2.0


class Log:
    """One stream. `fold` gets each record once, in order, in every process. `forget` is called before it begins anew,
    where the stream was deleted and made again, as on a broker that lost its disk.
    """

    def __init__(
        self, link: Link, exchange: str, stream: str, fold: Callable[[bytes], None], forget: Callable[[], None]
    ) -> None:
        self._link = link
        self._exchange = exchange
        self._stream = stream
        self._fold = fold
        self._forget = forget
        self._next = 0
        self._heard = False
        self._session: Session | None = None
        self._channel: Channel | None = None
        self._following = asyncio.Lock()
        self._marks: dict[bytes, asyncio.Future[bool]] = {}

    async def append(self, *records: bytes) -> None:
        """Durable when it returns. `not_found` where the stream was never declared."""
        session = await self._link.ready()
        await self._publish(session, [_RECORD + record for record in records])

    async def sync(self) -> bool:
        """Returns when all that was appended before this call is folded; False where there is no such stream."""
        session = await self._link.ready()
        mark = os.urandom(12)
        seen: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            channel = await self._follow(session)
            self._marks[mark] = seen
            await self._publish(session, [_MARK + mark])
            if not channel.is_open:
                raise channel.error or Unavailable("queues: the channel broke", reason="connection_lost")
            async with asyncio.timeout(_SYNC_S):
                if not self._heard:
                    await self._hear(channel, seen)
                known = await seen
        except NotFound as error:
            check_is_missing(error)
            return False
        except TimeoutError as error:
            raise Unavailable(
                f"queues: the stream {self._stream!r} did not answer within {_SYNC_S:g} s; look at the broker's load",
                reason="broker_slow",
            ) from error
        finally:
            self._marks.pop(mark, None)
            if not seen.done():
                seen.cancel()
        return known or await self.sync()

    async def synced(self, session: Session) -> bool:
        """As `sync`, but once for each session: after that what comes is folded by itself."""
        if self._session is session and self._channel is not None and self._channel.is_open:
            return True
        return await self.sync()

    async def _publish(self, session: Session, bodies: list[bytes]) -> None:
        outcomes = await session.publish([Message(self._exchange, self._stream, body) for body in bodies])
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _follow(self, session: Session) -> Channel:
        async with self._following:
            if self._channel is not None and self._channel.is_open and self._session is session:
                return self._channel
            if await session.state(self._stream) is None:
                raise NotFound(
                    f"queues: there is no stream {self._stream!r}; declare a queue", reason="queue_not_found"
                )
            channel = await session.consuming.channel(prefetch=_PREFETCH)
            offset: Any = self._next or "first"
            self._heard = False
            channel.on_closed(lambda error: self._broken(channel, error))
            try:
                await channel.consume(
                    self._stream,
                    lambda delivery: self._receive(channel, delivery),
                    on_cancel=lambda error: self._broken(channel, error),
                    arguments={"x-stream-offset": offset},
                )
            except FailedPrecondition as error:
                check_is_up(error)
                raise
            self._session, self._channel = session, channel
            return channel

    def _receive(self, channel: Channel, delivery: Delivery) -> None:
        if channel.is_open:
            channel.ack(delivery.tag)
        offset = delivery.headers.get("x-stream-offset", self._next)
        kind, content = delivery.body[:1], delivery.body[1:]
        self._heard = True
        if offset < self._next:  # a chunk is delivered from its beginning
            if kind == _MARK and content in self._marks and channel is self._channel:
                self._begin_anew(channel)
            return
        self._next = offset + 1
        if kind == _RECORD:
            self._fold(content)
        elif (mark := self._marks.get(content)) is not None and not mark.done():
            mark.set_result(True)

    async def _hear(self, channel: Channel, seen: asyncio.Future[bool]) -> None:
        """The broker says nothing to who asks for what lies behind the end, also when he appends something."""
        await asyncio.wait([seen], timeout=_ANEW_S)
        if not self._heard and self._next and self._channel is channel:
            self._begin_anew(channel)

    def _begin_anew(self, channel: Channel) -> None:
        """What was appended just now lies before what was read: it is another stream of the same name."""
        self._next, self._channel = 0, None
        self._forget()
        channel.abandon()
        for mark in self._marks.values():
            if not mark.done():
                mark.set_result(False)

    def _broken(self, channel: Channel, error: GroundplaneError) -> None:
        if self._channel is not channel:
            return
        self._channel = None
        for mark in self._marks.values():
            if not mark.done():
                mark.set_exception(error)
