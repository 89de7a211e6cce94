"""The driver: opens the file, joins the others, routes, appends, and makes consumers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from groundplane.backends.sqlite import Database, Merging, MigrationSet, Transaction
from groundplane.bus.drivers.embedded import rows
from groundplane.bus.drivers.embedded.consumer import EmbeddedConsumer
from groundplane.bus.drivers.embedded.dead_letters import EmbeddedDeadLetters
from groundplane.bus.drivers.embedded.exchange import Exchange
from groundplane.bus.drivers.embedded.sessions import Session
from groundplane.bus.drivers.embedded.switch import Local
from groundplane.bus.port import (
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
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.dead_letters import DeadLetterSource
from groundplane.core.errors import Closed, GroundplaneError, InvalidArgument
from groundplane.core.secrets import mask_url

MIGRATIONS = MigrationSet(component="bus", package="groundplane.bus.sql.sqlite")
_CLOSE_CONSUMERS_S = 5.0
_APPENDED_AT_ONCE = 1000
"""Messages that the calls which share one transaction have in all."""
_OF_ONE_CALL = frozenset({"resource_exhausted", "invalid_argument"})


class EmbeddedBus:
    """Messages of one namespace of a plane. Make it with `open`."""

    capabilities = Capability.PRIORITY | Capability.REPLAY
    limits = Limits()

    def __init__(self, database: Database, namespace: str, folder: Path, *, clock: Clock) -> None:
        self.native = database
        self.dead_letters: DeadLetterSource = EmbeddedDeadLetters(database, namespace, clock)
        self.clock = clock
        self._namespace = namespace
        self._session = Session(database, namespace, folder, clock)
        self._exchange = Exchange(self._session)
        self._merging: Merging[Sequence[Message], list[Message]] = Merging(
            database,
            self._append,
            concerns_one=lambda error, _: isinstance(error, GroundplaneError) and error.code in _OF_ONE_CALL,
            weight=len,
            weight_max=_APPENDED_AT_ONCE,
        )
        self._sweeping: asyncio.Task[None] | None = None
        self._subscriptions: set[EmbeddedSubscription] = set()
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str = "embedded://",
        *,
        namespace: str = "default",
        state: Path = Path(".groundplane"),
        inline: bool = False,
        upgrade: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> AsyncIterator[EmbeddedBus]:
        """Open the bus in `state`, or in the folder that the URL names. Errors: those of `Database.open`."""
        folder = state_folder(url, state)
        async with AsyncExitStack() as stack:
            opening = Database.open(folder / "plane.db", [MIGRATIONS], inline=inline, upgrade=upgrade)
            driver = cls(await stack.enter_async_context(opening), namespace, folder / "run" / "bus", clock=clock)
            stack.push_async_callback(driver.aclose)
            await driver._start()
            yield driver

    def __repr__(self) -> str:
        counts = f"{len(self._subscriptions)} subscriptions, {len(self._session.consumers)} consumers"
        return f"<EmbeddedBus {self._namespace!r}, {'closed' if self._closing else counts}>"

    async def publish(self, message: Message) -> None:
        """See `BusDriver.publish`."""
        self._check_open()
        await self._exchange.publish(message)

    async def request(self, message: Message, timeout_s: float) -> Message:
        """See `BusDriver.request`."""
        self._check_open()
        return await self._exchange.request(message, timeout_s)

    async def subscribe(self, pattern: str, deliver: Deliver, *, group: str = "") -> BusSubscription:
        """See `BusDriver.subscribe`."""
        self._check_open()
        subscription = EmbeddedSubscription(self._exchange, Local(pattern, group, deliver), self._subscriptions)
        await self._exchange.add(subscription.local)
        return subscription

    async def append(self, messages: Sequence[Message]) -> None:
        """See `BusDriver.append`. One transaction: all or none; those of concurrent callers share it."""
        self._check_open()
        for message in await self._merging.make(messages):
            if self._exchange.is_heard(message.subject):
                await self._exchange.publish(message)

    @asynccontextmanager
    async def consume(self, spec: ConsumerSpec) -> AsyncIterator[BusConsumer]:
        """See `BusDriver.consume`."""
        self._check_open()
        now_ms = self.clock.now_ms()
        number = await self.native.write(lambda tx: rows.declare(tx, self._namespace, spec, now_ms))
        async with self.native.listen(rows.topic(number)) as listener:
            consumer = EmbeddedConsumer(
                self.native, listener, spec, number=number, session=lambda: self._session.id, clock=self.clock
            )
            self._session.consumers.add(consumer)
            try:
                yield consumer
            finally:
                await consumer.aclose()
                self._session.consumers.discard(consumer)

    async def last(self, subjects: Sequence[str]) -> dict[str, Message]:
        """See `BusDriver.last`."""
        self._check_open()
        return await self.native.read(lambda tx: self._last(tx, subjects))

    async def status(self) -> tuple[Status, list[Lag]]:
        """See `BusDriver.status`."""
        self._check_open()
        problem, lags = "", []
        try:
            lags = await self.native.read(self._lags)
        except GroundplaneError as error:
            problem = str(error)
        links, reconnects, dropped = self._exchange.counts()
        failure = self._session.last_failure
        if self._sweeping is not None and self._sweeping.done() and failure is not None:
            problem = problem or str(failure)
        status = Status(
            ready=not problem, problem=problem, connections=1 + links, reconnects=reconnects, dropped=dropped
        )
        return status, lags

    async def aclose(self) -> None:
        """See `BusDriver.aclose`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="groundplane-bus-close")
        await asyncio.shield(self._closing)

    async def _start(self) -> None:
        await self._exchange.open()
        await self._session.sweep()
        self._sweeping = asyncio.create_task(self._session.run(self._exchange.refresh), name="groundplane-bus-sweep")

    async def _close(self) -> None:
        try:
            closing = [asyncio.ensure_future(one.aclose()) for one in self._session.consumers]
            if closing:
                await asyncio.wait(closing, timeout=_CLOSE_CONSUMERS_S)
            if self._sweeping is not None:
                self._sweeping.cancel()
                await asyncio.wait([self._sweeping])
            await self._exchange.aclose()
        finally:
            await self.native.aclose()

    def _append(self, tx: Transaction, changes: Sequence[Sequence[Message]]) -> list[list[Message]]:
        """What of each change is new."""
        messages = [message for change in changes for message in change]
        new = rows.append(tx, self._namespace, messages, self.clock.now_ms())
        if len(new) == len(messages):
            return [list(change) for change in changes]
        kept = {id(message) for message in new}
        return [[message for message in change if id(message) in kept] for change in changes]

    def _last(self, tx: Transaction, subjects: Sequence[str]) -> dict[str, Message]:
        sql = (
            "SELECT subject, payload, message_id, headers FROM bus_results "
            "WHERE namespace = ? AND subject IN (SELECT value FROM json_each(?))"
        )
        found = tx.execute(sql, (self._namespace, msgspec.json.encode(subjects).decode()))
        return {s: Message(subject=s, payload=p, id=i, headers=rows.headers_in_use(h)) for s, p, i, h in found}

    def _lags(self, tx: Transaction) -> list[Lag]:
        sql = "SELECT id, name, pattern FROM bus_consumers WHERE namespace = ? ORDER BY name"
        return [_lag(tx, *row) for row in tx.execute(sql, (self._namespace,))]

    def _check_open(self) -> None:
        if self._closing is not None:
            raise Closed(f"bus: {self._namespace!r} is closed; open it again")


class EmbeddedSubscription:
    """See `BusSubscription`."""

    def __init__(self, exchange: Exchange, local: Local, owners: set[EmbeddedSubscription]) -> None:
        self.local = local
        self._exchange = exchange
        self._owners = owners
        owners.add(self)

    async def aclose(self) -> None:
        """See `BusSubscription.aclose`."""
        if self in self._owners:
            self._owners.discard(self)
            await self._exchange.remove(self.local)


def state_folder(url: str, state: Path) -> Path:
    """The state folder that `embedded://` (then `state`) or `embedded:///folder` names."""
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise InvalidArgument(
            f"bus: {mask_url(url)!r} is neither embedded:// nor embedded:///absolute/folder, without host or parameters"
        )
    return Path(unquote(parts.path)) if parts.path else state


def _lag(tx: Transaction, number: int, name: str, pattern: str) -> Lag:
    counted = [f"(SELECT count(*) FROM {table} WHERE consumer = ?1)" for table in ("bus_ready", "bus_delayed")]
    waiting = tx.execute(f"SELECT {' + '.join(counted)}", (number,))[0][0]
    batches = tx.execute("SELECT entries FROM bus_batches WHERE consumer = ?", (number,))
    in_flight = sum(len(rows.decode_entries(row[0])) for row in batches)
    return Lag(consumer=name, pattern=pattern, waiting=waiting, in_flight=in_flight)


def _conforms(driver: EmbeddedBus) -> BusDriver:
    return driver
