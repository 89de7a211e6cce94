"""The driver: opens the link, declares, sends, counts, and makes consumers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from groundplane.backends.amqp import Address
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.dead_letters import DeadLetterSource
from groundplane.core.errors import Closed, FailedPrecondition, InvalidArgument, NotFound
from groundplane.queues.drivers.rabbitmq.consumer import RabbitConsumer
from groundplane.queues.drivers.rabbitmq.counting import Counting
from groundplane.queues.drivers.rabbitmq.dead_letters import RabbitDeadLetters
from groundplane.queues.drivers.rabbitmq.definitions import definitions
from groundplane.queues.drivers.rabbitmq.link import Link, check_is_missing
from groundplane.queues.drivers.rabbitmq.names import EXCHANGE, Declared, Names
from groundplane.queues.drivers.rabbitmq.parts import Parts
from groundplane.queues.drivers.rabbitmq.registry import Registry
from groundplane.queues.drivers.rabbitmq.returns import Returns
from groundplane.queues.drivers.rabbitmq.sending import Bounds, Sender, missing
from groundplane.queues.port import Capability, Depth, OutgoingMessage, QueueConsumer, QueueDriver, QueueSpec

GUARD_S = 1.0
VERSION_MIN = (3, 10)
_CLOSE_CONSUMERS_S = 6.0
_EXCHANGE_BYTES_MAX = 127


class RabbitQueues:
    """Queues of one namespace on a broker. Make it with `open`."""

    capabilities = Capability.NONE

    def __init__(self, link: Link, names: Names, *, clock: Clock, guard_s: float) -> None:
        self.native = link
        self._names = names
        self._guard_s = guard_s
        self._registry = Registry(link, names)
        self._returns = Returns(link, names)
        self._counting = Counting(link, names, self._returns, clock)
        bounds = Bounds(self._registry, self._counting.total)
        sender = Sender(link, names, self._registry, bounds, clock)
        self._parts = Parts(link, names, self._registry, self._returns, sender, clock)
        self._dead = RabbitDeadLetters(link, names, self._registry, sender, clock)
        self.dead_letters: DeadLetterSource = self._dead
        self._declaring = asyncio.Lock()
        self._consumers: set[RabbitConsumer] = set()
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
        clock: Clock = SYSTEM_CLOCK,
    ) -> AsyncIterator[RabbitQueues]:
        """Open the queues on the broker of `url`; `state`, `inline` and `upgrade` are of embedded drivers.

        Within the URL's `connect_timeout`, each by name: `invalid_argument` for the URL, `permission_denied` for user,
        password and virtual host, `failed_precondition` for TLS, a port that is none of AMQP and a broker that is too
        old, `unavailable` where none answers.
        """
        address = _address(url)
        names = Names(namespace, _exchange(address.options))
        link = Link(address, f"groundplane {namespace} {socket.gethostname()}:{os.getpid()}")
        guard_s = _guard(address.options)
        try:
            await link.start()
            _check_version(link)
            driver = cls(link, names, clock=clock, guard_s=guard_s)
            try:
                yield driver
            finally:
                await driver.aclose()
        finally:
            await link.aclose()

    @staticmethod
    def definitions(url: str, *, namespace: str, queues: Iterable[str], with_user: bool) -> dict[str, Any]:
        """What an empty broker is to load at its start, so that these queues are there; nothing is connected to."""
        address = _address(url)
        names = Names(namespace, _exchange(address.options))
        return definitions(address, names, queues, with_user=with_user)

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{len(self._consumers)} consumers"
        return f"<RabbitQueues {self._names.namespace!r} on {self.native!r}, {state}>"

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        """See `QueueDriver.declare`. After it created queues it waits for a second: a broker that is killed before has
        forgotten them, and what was sent to them.
        """
        self._check_open()
        for spec in specs:
            self._names.check(spec.name)
        async with self._declaring:
            wanted = [*self._names.of_namespace()]
            for spec in specs:
                wanted += self._names.of_queue(spec.name)
            created = await self._create(wanted)
            await self._registry.declare(specs)
            if created:
                await asyncio.sleep(self._guard_s)

    async def queues(self) -> list[QueueSpec]:
        """See `QueueDriver.queues`."""
        self._check_open()
        await self._registry.fresh()
        return self._registry.all()

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """See `QueueDriver.send`. One confirm window; not atomic: others of the batch may have been sent."""
        self._check_open()
        await self._parts.sender.send(messages)

    @asynccontextmanager
    async def consume(
        self, queue: str, *, max_in_flight: int, lease_s: float | None = None
    ) -> AsyncIterator[QueueConsumer]:
        """See `QueueDriver.consume`."""
        self._check_open()
        if lease_s is not None:
            raise InvalidArgument("lease_s: RabbitMQ has no leases; leave it out")
        consumer = RabbitConsumer(self._parts, queue, max_in_flight)
        self._consumers.add(consumer)
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.aclose()
            self._consumers.discard(consumer)

    async def depth(self, queue: str) -> Depth:
        """See `QueueDriver.depth`. Exact while nothing moves. `oldest_age_s` is that of the message which is next."""
        self._check_open()
        async with self._dead.still(queue):
            depth = await self._counting.depth(queue)
        if depth is None:
            raise missing(queue)
        return depth

    async def aclose(self) -> None:
        """See `QueueDriver.aclose`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="groundplane-queues-close")
        await asyncio.shield(self._closing)

    async def _create(self, wanted: Sequence[Declared]) -> bool:
        """Declare and bind; whether one of them was not there before."""
        session = await self.native.ready()
        created = False
        channel = await session.consuming.channel()
        try:
            await channel.declare_exchange(self._names.exchange, "direct")
            for name, arguments in wanted:
                created = created or await session.state(name) is None
                await channel.declare_queue(name, arguments=arguments)
                await channel.bind_queue(name, self._names.exchange, name)
        except NotFound as error:
            check_is_missing(error)
            raise
        finally:
            await channel.aclose()
        return created

    async def _close(self) -> None:
        closing = [asyncio.ensure_future(consumer.aclose()) for consumer in self._consumers]
        if closing:
            await asyncio.wait(closing, timeout=_CLOSE_CONSUMERS_S)
        await self._dead.aclose()
        await self.native.aclose()
        for one in closing:
            if one.done():
                one.result()

    def _check_open(self) -> None:
        if self._closing is not None:
            raise Closed(f"queues: {self._names.namespace!r} is closed; open it again")


def _address(url: str) -> Address:
    return Address.parse(url, field="queues", extra=("exchange", "guard"))


def _exchange(options: dict[str, str]) -> str:
    name = options.get("exchange") or EXCHANGE
    if name.startswith("amq.") or len(name.encode()) > _EXCHANGE_BYTES_MAX:
        raise InvalidArgument(f"exchange: {name!r} must not begin with 'amq.' nor be longer than 127 bytes")
    return name


def _guard(options: dict[str, str]) -> float:
    text = options.get("guard", str(GUARD_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 60:
        raise InvalidArgument(f"guard: {text!r} must be 0 to 60 seconds")
    return seconds


def _check_version(link: Link) -> None:
    session = link.session
    version = session.consuming.server.version if session is not None else ""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < VERSION_MIN:
        raise FailedPrecondition(
            f"queues: the broker is RabbitMQ {version!r}; 3.10 or newer is needed for durable queues and streams",
            reason="server_too_old",
        )


def _conforms(driver: RabbitQueues) -> QueueDriver:
    return driver
