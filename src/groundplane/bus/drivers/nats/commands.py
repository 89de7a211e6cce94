"""Consuming commands: one consumer of the server for each priority, asked from the most urgent on."""

from __future__ import annotations

import asyncio
from itertools import count

import msgspec

from groundplane.backends.nats import JetStream, Subscription
from groundplane.backends.nats import Message as Arrived
from groundplane.backends.nats.jetstream import nanoseconds
from groundplane.bus.drivers.nats.consumer import Consumer, Declaration
from groundplane.bus.drivers.nats.dead_letters import NatsDeadLetters
from groundplane.bus.drivers.nats.naming import Naming
from groundplane.bus.port import STARVED_S, BusConsumer, ConsumerSpec, Priority
from groundplane.core.errors import GroundplaneError, Unavailable

LOOK_AGAIN_S = 1.0
"""How often an idle consumer looks for what came back by itself: delays and leases that ended elsewhere."""
_ANSWER_S = 2.0
_STARVING_EVERY_S = 2.0
_CUT_OFF = -1


class CommandConsumer(Consumer):
    """One of those that take part in a consumer of commands."""

    def __init__(
        self, jetstream: JetStream, naming: Naming, spec: ConsumerSpec, dead: NatsDeadLetters, declaration: Declaration
    ) -> None:
        super().__init__(jetstream, naming, spec, dead)
        self._jetstream, self._link = jetstream, jetstream.link
        self._declaration = declaration
        self._problem = ""
        self._bell = asyncio.Event()
        self._inbox = self._link.new_inbox()
        self._numbers = count(1)
        self._number = 0
        self._ended: asyncio.Future[int] | None = None
        self._missing = 0
        self._looked_at = 0.0
        self._starved: list[Priority | None] = []
        self._forget_listener = self._link.on_state(self._on_state)
        self._subscriptions: list[Subscription] = [self._link.subscribe(f"{self._inbox}.*", self._on_message)]
        for priority in declaration.urgencies:
            for subject in declaration.filters(priority):
                self._subscriptions.append(self._link.subscribe(subject, self._ring))

    @property
    def flowing(self) -> bool:
        """Whether the last look was answered."""
        return self._link.is_connected and not self._problem

    async def _wait(self, limit: int) -> None:
        while not self._ready and not self._life.closed:
            self._bell.clear()
            room = min(limit, self.spec.max_in_flight - len(self._holding))
            if room > 0:
                await self._look(room)
                if self._ready:
                    return
            try:
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self._bell.wait()
            except TimeoutError:
                continue

    async def _look(self, room: int) -> None:
        """Ask each priority in turn for what there is room for."""
        try:
            if not self._link.is_connected:
                await self._link.connected(_ANSWER_S)
            await self._look_for_starved()
            turns = [(priority, 1) for priority in self._starved]
            for priority, most in (*turns, *((one, room) for one in self._declaration.urgencies)):
                missing = room - len(self._ready)
                if missing <= 0 or self._life.closed:
                    break
                await self._ask(priority, min(most, missing))
                if most == 1 and priority in self._starved:
                    self._starved.remove(priority)  # those for which there was no room come first at the next look
            self._problem = ""
        except GroundplaneError as error:
            if error.code == "closed":
                raise
            self._problem = error.message

    async def _ask(self, priority: Priority | None, batch: int) -> None:
        """What one consumer has now, up to `batch`."""
        self._number = next(self._numbers)
        self._missing = batch
        self._ended = asyncio.get_running_loop().create_future()
        subject = self._jetstream.api_subject(
            f"CONSUMER.MSG.NEXT.{self._declaration.stream}.{self._declaration.name(priority)}"
        )
        body = msgspec.json.encode({"batch": batch, "no_wait": True})
        self._link.publish_raw(subject, body, b"", f"{self._inbox}.{self._number}")
        try:
            async with asyncio.timeout(_ANSWER_S):
                status = await self._ended
        except TimeoutError as error:
            raise Unavailable(
                f"bus: {self.spec.name!r} got no answer within {_ANSWER_S:g} s", reason="broker_silent"
            ) from error
        finally:
            self._ended = None
        if status == _CUT_OFF:
            raise Unavailable(f"bus: {self.spec.name!r} lost its connection while asking", reason="connection_lost")
        if status in (409, 503):
            await self._declaration.make_again()

    def _on_message(self, message: Arrived) -> None:
        if message.reply.startswith("$JS.ACK."):
            self._put(message)  # also what comes after `receive` was cancelled: it is handed out next
            self._missing -= 1
            if self._missing <= 0:
                self._end(0)
        elif message.subject == f"{self._inbox}.{self._number}":
            self._end(message.status)

    def _end(self, status: int) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(status)

    async def _look_for_starved(self) -> None:
        """Every other second: which of the less urgent have waited too long before the more urgent?"""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < _STARVING_EVERY_S:
            return
        self._looked_at = now
        for priority in self._declaration.urgencies[1:]:
            if priority in self._starved:
                continue
            info = await self._jetstream.consumer_info(self._declaration.stream, self._declaration.name(priority))
            if info.num_pending == 0:
                continue
            first = await self._jetstream.get_next(
                self._declaration.stream,
                self._declaration.filters(priority)[0],
                int(info.delivered.get("stream_seq", 0)) + 1,
            )
            if first is not None and first.time_ns < nanoseconds(info.ts) - STARVED_S * 1e9:
                self._starved.append(priority)

    def _ring(self, _: Arrived) -> None:
        self._bell.set()

    def _on_state(self, _: bool) -> None:
        self._end(_CUT_OFF)
        self._bell.set()

    async def _stop(self) -> None:
        self._forget_listener()
        self._bell.set()
        for one in self._subscriptions[1:]:
            one.unsubscribe()
        await self._subscriptions[0].drain(_ANSWER_S)
        self._end(_CUT_OFF)

    def _let_go(self, count: int) -> None:
        self._bell.set()


def _conforms(consumer: CommandConsumer) -> BusConsumer:
    return consumer
