"""Durable consumers: declared once, and those that take part in one. Events by overlapping pulls."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import islice

import msgspec

from groundplane.backends.nats import ConsumerConfig, JetStream, Pull
from groundplane.backends.nats import Message as Arrived
from groundplane.bus.drivers.nats.dead_letters import NatsDeadLetters
from groundplane.bus.drivers.nats.holding import Holding
from groundplane.bus.drivers.nats.naming import PATTERN, Naming
from groundplane.bus.port import BusConsumer, ConsumerSpec, Delivery, Priority, Settlement
from groundplane.bus.subjects import store_of
from groundplane.core.errors import Closed, FailedPrecondition, GroundplaneError, InvalidArgument
from groundplane.core.lifecycle import Lifecycle

_AGAIN_S = 0.1
NOT_UNIQUE = 10100
"""Of a stream of commands: another consumer takes some of them."""


class Declaration:
    """Makes the server's consumers of one spec, and makes them again."""

    def __init__(
        self, jetstream: JetStream, naming: Naming, spec: ConsumerSpec, make_stream: Callable[..., Awaitable[None]]
    ) -> None:
        self.stream = naming.stream_of(spec.pattern)
        self._jetstream = jetstream
        self._naming = naming
        self._spec = spec
        self._make_stream = make_stream
        self.urgencies: tuple[Priority | None, ...] = (
            tuple(sorted(Priority, reverse=True)) if store_of(spec.pattern) == "commands" else (None,)
        )

    def name(self, priority: Priority | None) -> str:
        """The server's name of the consumer of one priority."""
        plain = priority is None or priority == Priority.NORMAL
        return self._spec.name if plain else f"{self._spec.name}~{priority.name.lower()}"  # type: ignore[union-attr]

    def filters(self, priority: Priority | None) -> tuple[str, ...]:
        """What it takes."""
        return self._naming.filters(self._spec.name, self._spec.pattern, priority)

    async def make(self) -> None:
        """The consumers, as they are where they are there. `failed_precondition` (`subscription_differs`)."""
        for priority in self.urgencies:
            await self._make(self._config(priority))

    async def make_again(self) -> None:
        """The stream as well: whoever deleted the consumer may have deleted it."""
        await self._make_stream(self.stream, again=True)
        await self.make()

    async def _make(self, config: ConsumerConfig) -> None:
        try:
            await self._jetstream.create_consumer(self.stream, config, action="create")
        except InvalidArgument as error:
            if error.details.get("err_code") != NOT_UNIQUE:
                raise
            raise self._differs("another consumer", "some of these commands") from error
        except FailedPrecondition as error:
            if error.reason != "stream_exists_differently":
                raise
            found = (await self._jetstream.consumer_info(self.stream, config.durable_name)).config
            pattern = (found.get("metadata") or {}).get(PATTERN, "")
            if pattern != self._spec.pattern:
                raise self._differs(self._spec.name, pattern) from error
            policy = found["deliver_policy"]
            await self._jetstream.create_consumer(self.stream, _with_policy(config, policy))

    def _config(self, priority: Priority | None) -> ConsumerConfig:
        spec = self._spec
        return ConsumerConfig(
            durable_name=self.name(priority),
            deliver_policy="all" if priority is not None or spec.replay else "new",
            ack_policy="explicit",
            filter_subjects=self.filters(priority),
            ack_wait_s=spec.lease_s,
            max_ack_pending=-1,
            inactive_threshold_s=spec.expires_s or 0.0,
            metadata={PATTERN: spec.pattern},
        )

    def _differs(self, name: str, pattern: str) -> FailedPrecondition:
        return FailedPrecondition(
            f"pattern: {self._spec.pattern!r} of {self._spec.name!r} clashes: {name!r} consumes {pattern!r}; "
            "give the same pattern under the same name, and commands to one consumer alone",
            reason="subscription_differs",
            details={"name": name, "pattern": pattern},
        )


class Consumer(ABC):
    """What both kinds share. See `BusConsumer`; `_take` is theirs."""

    def __init__(self, jetstream: JetStream, naming: Naming, spec: ConsumerSpec, dead: NatsDeadLetters) -> None:
        self.spec = spec
        self._ready: deque[Arrived] = deque()
        self._arrived = asyncio.Event()
        self._holding = Holding(jetstream, naming, spec, dead, self._let_go)
        self._receiving = False
        self._life = Lifecycle(f"consumer {spec.name}")
        self._life.on_close(self._leave)
        self._life.spawn(self._keep_unread(), name="leases")

    def __repr__(self) -> str:
        state = "closed" if self._life.closed else f"{len(self._holding)} of {self.spec.max_in_flight} in flight"
        return f"<{type(self).__name__} {self.spec.name!r}, {state}>"

    @property
    @abstractmethod
    def flowing(self) -> bool:
        """Whether what is appended would arrive."""

    async def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        """See `BusConsumer.receive`."""
        self._check_open()
        if self._receiving:
            raise FailedPrecondition(f"receive: {self.spec.name!r} is receiving; one caller at a time")
        self._receiving = True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wait(limit)
            found = await self._counted([self._holding.delivery(one) for one in islice(self._ready, limit)])
        finally:
            self._receiving = False
        self._check_open()
        for _ in found:
            self._ready.popleft()
        return found

    async def _counted(self, deliveries: list[Delivery]) -> list[Delivery]:
        """With their true attempts, once the server can tell. Until then they stay where they are."""
        while True:
            try:
                return await self._holding.counted(deliveries)
            except GroundplaneError as error:
                if not error.retryable:
                    raise
            await asyncio.sleep(_AGAIN_S)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `BusConsumer.settle`."""
        await self._holding.settle(settlements)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `BusConsumer.extend`."""
        self._check_open()
        await self._holding.extend(deliveries)

    async def aclose(self) -> None:
        """See `BusConsumer.aclose`."""
        await self._life.aclose()

    async def _leave(self) -> None:
        self._arrived.set()
        await self._stop()
        self._ready.clear()
        with suppress(GroundplaneError):  # without a connection their leases end by themselves
            await self._holding.hand_back()

    @abstractmethod
    async def _wait(self, limit: int) -> None:
        """Return when something is ready, or it is closed."""

    @abstractmethod
    async def _stop(self) -> None:
        """Ask for no more."""

    @abstractmethod
    def _let_go(self, count: int) -> None:
        """So many are settled."""

    def _put(self, message: Arrived) -> None:
        self._holding.hold(message)
        self._ready.append(message)
        self._arrived.set()

    async def _keep_unread(self) -> None:
        while True:
            await asyncio.sleep(self.spec.lease_s / 4)
            with suppress(GroundplaneError):  # it is tried again, twice before their leases end
                self._holding.extend_unread(self._ready)

    def _check_open(self) -> None:
        if self._life.closed:
            raise Closed(f"bus: the consumer {self.spec.name!r} is closed")


class EventConsumer(Consumer):
    """One of those that take part in a consumer of events."""

    def __init__(
        self, jetstream: JetStream, naming: Naming, spec: ConsumerSpec, dead: NatsDeadLetters, declaration: Declaration
    ) -> None:
        super().__init__(jetstream, naming, spec, dead)
        self._pull = Pull(
            jetstream,
            declaration.stream,
            spec.name,
            self._put,
            window=spec.max_in_flight,
            make=declaration.make_again,
        )

    @property
    def flowing(self) -> bool:
        """Whether the server was heard of lately."""
        return self._pull.flowing

    async def _wait(self, limit: int) -> None:
        while not self._ready and not self._life.closed:
            self._arrived.clear()
            await self._arrived.wait()

    async def _stop(self) -> None:
        await self._pull.aclose()

    def _let_go(self, count: int) -> None:
        self._pull.release(count)


def _with_policy(config: ConsumerConfig, policy: str) -> ConsumerConfig:
    """What a consumer began with cannot be changed."""
    return msgspec.structs.replace(config, deliver_policy=policy)


def _conforms(consumer: EventConsumer) -> BusConsumer:
    return consumer
