"""The driver: opens the links, makes the streams, sends, appends, subscribes, and says how it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from groundplane.backends.nats import Address, JetStream, Link, Pool, Subscription, encode_headers
from groundplane.backends.nats import Message as Arrived
from groundplane.backends.nats.burst import Burst, Request
from groundplane.backends.nats.errors import no_responder
from groundplane.backends.nats.jetstream import read_ack
from groundplane.backends.nats.message import is_no_responder
from groundplane.bus.drivers.nats.commands import CommandConsumer
from groundplane.bus.drivers.nats.consumer import Consumer, Declaration, EventConsumer
from groundplane.bus.drivers.nats.dead_letters import NatsDeadLetters
from groundplane.bus.drivers.nats.lags import lags_of
from groundplane.bus.drivers.nats.naming import Naming, head_of
from groundplane.bus.drivers.nats.server_clock import ServerClock
from groundplane.bus.port import (
    PAYLOAD_BYTES_MAX,
    BusConsumer,
    BusDriver,
    BusSubscription,
    Capability,
    ConsumerSpec,
    Deliver,
    Lag,
    Limits,
    Message,
    Status,
)
from groundplane.core.clock import Clock
from groundplane.core.dead_letters import DeadLetterSource
from groundplane.core.errors import Closed, FailedPrecondition, GroundplaneError, InvalidArgument, Unavailable

WINDOW = 500
SERVER_MIN = (2, 11)
_HEADERS_BYTES = 1024
_STATUS_S = 2.0
_CLOCK_EVERY_S = 60.0
_CLOSE_S = 5.0
_DRAIN_S = 2.0
NUMBERS = {"connections": range(1, 17), "replicas": (1, 3, 5)}


class NatsBus:
    """Messages of one namespace of a plane. Make it with `open`."""

    capabilities = Capability.PRIORITY | Capability.REPLAY

    def __init__(self, pool: Pool, naming: Naming) -> None:
        self._pool = pool
        self._link: Link = pool.links[0]
        self._alone = len(pool.links) == 1
        self.native = JetStream(self._link)
        self.naming = naming
        self.limits = Limits(payload_bytes_max=min(PAYLOAD_BYTES_MAX, self._link.max_payload - _HEADERS_BYTES))
        self._dead = NatsDeadLetters(self.native, naming)
        self.dead_letters: DeadLetterSource = self._dead
        self._clock = ServerClock()
        self.clock: Clock = self._clock
        self._made: set[str] = set()
        self._making = asyncio.Lock()
        self._consumers: set[Consumer] = set()
        self._lags: list[Lag] = []
        self._timing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        namespace: str = "default",
        state: Path = Path(".groundplane"),
        inline: bool = False,
        upgrade: bool = False,
    ) -> AsyncIterator[NatsBus]:
        """Connect, and make the plane's streams where they are missing. Nothing of `state`, `inline` and `upgrade` is
        used: the server keeps all. Errors: those of `Link.open` and `JetStream.ensure_stream`.
        """
        address = Address.parse(url, field="bus", extra=NUMBERS)
        connections, replicas = (_number(address, name) for name in NUMBERS)
        async with await Pool.open(address, size=connections, name=f"bus {namespace}") as pool:
            check_server(pool.links[0])
            asked = replicas if "replicas" in address.options else 0  # else those that a stream has stay
            driver = cls(pool, Naming(namespace, replicas=asked, inbox=address.inbox))
            try:
                for name in (driver.naming.events, driver.naming.results, driver.naming.dead):
                    await driver.make(name)
                await driver._clock.ask(driver.native, driver.naming.results)
                driver._timing = asyncio.create_task(driver._keep_time(), name="groundplane-bus-clock")
                yield driver
            finally:
                await driver.aclose()

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{len(self._consumers)} consumers"
        return f"<NatsBus {self.naming.token!r}, {state}>"

    async def publish(self, message: Message) -> None:
        """See `BusDriver.publish`."""
        self._check_open()
        if self._link.is_full:
            await self._link.room()
        self._link.publish_raw(self.naming.subject(message), message.payload, head_of(message))

    async def request(self, message: Message, timeout_s: float) -> Message:
        """See `BusDriver.request`. The links take turns."""
        self._check_open()
        link = self._link if self._alone else self._pool.link()
        subject = self.naming.subject(message)
        token, coming = link.call(subject, message.payload, head_of(message), timeout_s)
        try:
            answer = await coming
        except BaseException as error:
            link.give_up(token)
            if isinstance(error, Unavailable) and error.reason == "connection_lost":
                error.details["sent"] = True
            raise
        if answer.head and is_no_responder(answer):
            raise no_responder(subject)
        headers = dict(answer.headers) if answer.head else {}
        return Message(subject=answer.subject, payload=answer.payload, headers=headers)

    async def subscribe(self, pattern: str, deliver: Deliver, *, group: str = "") -> BusSubscription:
        """See `BusDriver.subscribe`."""
        self._check_open()
        take = self.naming.taker(pattern, deliver)
        # one queue name with several patterns would be one group
        queue = f"{group}.{pattern}" if group and ("*" in pattern or ">" in pattern) else group
        held = [self._link.subscribe(one, take, queue=queue) for one in self.naming.patterns(pattern)]
        try:
            if self._link.is_connected:
                await held[-1].confirmed()
        except BaseException:
            for one in held:
                one.unsubscribe()  # left behind it would swallow what others of its group should get
            raise
        return NatsSubscription(held)

    async def append(self, messages: Sequence[Message]) -> None:
        """See `BusDriver.append`. Up to 500 are under way at once."""
        self._check_open()
        for name in sorted({self.naming.stream_of(subject) for subject in {one.subject for one in messages}}):
            if name not in self._made:
                await self.make(name)
        sent = [(self.naming.subject(one), one.payload, head_of(one)) for one in messages]
        for message, (subject, _, _), answer in zip(messages, sent, await self._append(sent), strict=True):
            try:
                read_ack(subject, answer)
            except Unavailable as error:
                await self._not_stored(message, subject, error)
                raise

    @asynccontextmanager
    async def consume(self, spec: ConsumerSpec) -> AsyncIterator[BusConsumer]:
        """See `BusDriver.consume`."""
        self._check_open()
        await self.make(self.naming.stream_of(spec.pattern))
        declaration = Declaration(self.native, self.naming, spec, self.make)
        await declaration.make()
        kind = EventConsumer if declaration.urgencies == (None,) else CommandConsumer
        consumer: Consumer = kind(self.native, self.naming, spec, self._dead, declaration)
        self._consumers.add(consumer)
        try:
            yield consumer
        finally:
            await consumer.aclose()
            self._consumers.discard(consumer)

    async def last(self, subjects: Sequence[str]) -> dict[str, Message]:
        """See `BusDriver.last`."""
        self._check_open()
        wanted = [f"{self.naming.token}.{subject}" for subject in subjects]
        found = await self.native.get_last_many(self.naming.results, wanted)
        messages = [
            self.naming.delivered(Arrived(one.subject, "", one.payload, encode_headers(one.headers))) for one in found
        ]
        return {message.subject: message for message in messages}

    async def status(self) -> tuple[Status, list[Lag]]:
        """See `BusDriver.status`."""
        self._check_open()
        problem = ""
        try:
            async with asyncio.timeout(_STATUS_S):
                self._lags = await lags_of(self.native, self.naming)
        except TimeoutError:
            problem = f"bus: NATS at {self._link.peer} did not answer within {_STATUS_S:g} s"
        except GroundplaneError as error:
            problem = str(error)
        deaf = [one.spec.name for one in self._consumers if not one.flowing]
        if not problem and deaf:
            problem = f"bus: nothing is heard for {', '.join(sorted(deaf))}; asking anew"
        counts = self._pool.statistics()
        status = Status(
            ready=not problem,
            problem=problem,
            connections=sum(one.connected for one in counts),
            reconnects=sum(one.reconnects for one in counts),
        )
        return status, self._lags

    async def aclose(self) -> None:
        """See `BusDriver.aclose`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="groundplane-bus-close")
        await asyncio.shield(self._closing)

    async def make(self, name: str, *, again: bool = False) -> None:
        """A stream of the plane, unless it is known to be there."""
        async with self._making:
            if again or name not in self._made:
                await self.native.ensure_stream(self.naming.stream(name))
                self._made.add(name)

    async def _close(self) -> None:
        if self._timing is not None:
            self._timing.cancel()
        closing = [asyncio.ensure_future(one.aclose()) for one in self._consumers]
        if closing:
            await asyncio.wait(closing, timeout=_CLOSE_S)
        await self._pool.aclose()

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_EVERY_S)
            with suppress(GroundplaneError):  # the server is away: our own clock tells on
                await self._clock.ask(self.native, self.naming.results)

    async def _append(self, requests: Sequence[Request]) -> list[Arrived]:
        allowed_s = self._link.address.request_timeout_s
        if len(requests) > 1:
            return await Burst(self._link, what="append", window=WINDOW, timeout_s=allowed_s).run(requests)
        if self._link.is_full:
            await self._link.room()
        answers = []
        for request in requests:
            token, answer = self._link.call(*request, allowed_s)
            try:
                answers.append(await answer)
            finally:
                self._link.give_up(token)
        return answers

    async def _not_stored(self, message: Message, subject: str, error: Unavailable) -> None:
        """Where nobody answered, the stream was deleted, or JetStream is starting."""
        if error.reason == "no_responder":
            await self.make(self.naming.stream_of(message.subject), again=True)
            raise Unavailable(
                f"append: nobody stored {subject!r}; its stream was made anew, append again",
                reason="jetstream_unavailable",
            ) from error

    def _check_open(self) -> None:
        if self._closing is not None:
            raise Closed(f"bus: {self.naming.token!r} is closed; open it again")


class NatsSubscription:
    """See `BusSubscription`."""

    def __init__(self, held: list[Subscription]) -> None:
        self._held = held

    async def aclose(self) -> None:
        """See `BusSubscription.aclose`. What the server had sent is delivered before it returns."""
        held, self._held = self._held, []
        await asyncio.gather(*(one.drain(_DRAIN_S) for one in held))


def check_server(link: Link) -> None:
    """`failed_precondition` where the server is too old, or has no JetStream."""
    version = link.info.version
    numbers = tuple(int(word) for word in version.split("-")[0].split(".")[:2] if word.isdigit())
    if numbers < SERVER_MIN:
        raise FailedPrecondition(
            f"bus: NATS {version} at {link.peer} is too old; use {SERVER_MIN[0]}.{SERVER_MIN[1]} or newer",
            reason="server_too_old",
        )
    if not link.info.jetstream:
        raise FailedPrecondition(
            f"bus: NATS at {link.peer} has no JetStream; add `jetstream {{}}` to its configuration",
            reason="jetstream_disabled",
        )


def _number(address: Address, name: str) -> int:
    known = [str(number) for number in NUMBERS[name]]
    text = address.options.get(name, known[0])
    if text not in known:
        raise InvalidArgument(f"bus: {address.masked()!r} has {name}={text!r}; write one of {', '.join(known)}")
    return int(text)


def _conforms(driver: NatsBus) -> BusDriver:
    return driver
