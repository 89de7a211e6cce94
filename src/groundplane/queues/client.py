"""The façade: what users hold. It validates, retries, bounds, counts and closes; a driver does the work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from groundplane.core.dead_letters import DeadLetter, DeadLetterPage
from groundplane.core.errors import Closed, ErrorRecord, GroundplaneError, InvalidArgument, NotFound, Unsupported
from groundplane.core.names import check_name
from groundplane.core.retry import RetryPolicy
from groundplane.queues import limits
from groundplane.queues.drivers import definitions_of, open_driver
from groundplane.queues.port import (
    Ack,
    Capability,
    Carried,
    Delivery,
    Depth,
    Nack,
    OutgoingMessage,
    QueueConsumer,
    QueueDriver,
    QueueSpec,
    Reject,
    Settlement,
)
from groundplane.telemetry.calls import measured

T = TypeVar("T")

CLOSE_S = 10.0
RETRY = RetryPolicy(attempts=4, base_s=0.05, factor=3.0, cap_s=1.0)
_NOT_WORTH_WAITING = frozenset({"queue_full"})


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since opening. `retries` counts calls that were tried again, `failed` those that failed for good."""

    sent: int
    received: int
    redelivered: int
    acked: int
    nacked: int
    rejected: int
    redriven: int
    retries: int
    failed: int
    consumers: int


class _Counters:
    def __init__(self) -> None:
        self.sent = self.received = self.redelivered = 0
        self.acked = self.nacked = self.rejected = self.redriven = 0
        self.retries = self.failed = 0


class Queues:
    """Durable work queues of one namespace.

    Everything may be called concurrently in the loop that opened it. Calls that are safe to repeat are repeated a few
    times (about 2 s in all) when they fail with a retryable error; a message without `dedup_key` is sent again only
    where the driver settles atomically, so that a failure means that nothing was sent. After `aclose` every call
    raises `Closed`.
    """

    def __init__(self, driver: QueueDriver, *, retry: RetryPolicy = RETRY) -> None:
        """Put the façade on a driver that is open already; closing the façade closes it."""
        self.driver = driver
        self._retry = retry
        self._counters = _Counters()
        self._consumers: set[Consumer] = set()
        self._stopping = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str = "embedded://",
        *,
        namespace: str = "default",
        state: str | os.PathLike[str] = ".groundplane",
        inline: bool = False,
        upgrade: bool = False,
    ) -> AsyncIterator[Queues]:
        """Open the queues behind `url`.

        `state` is the folder of the embedded driver when the URL names none; `inline` runs its database in the loop,
        for processes that do little else; `upgrade` brings an older schema to the present one. `invalid_argument` for
        an unknown scheme or parameter, else the errors of the driver.
        """
        check_name("namespace", namespace)
        async with AsyncExitStack() as stack:
            options = {"namespace": namespace, "state": Path(state), "inline": inline, "upgrade": upgrade}
            queues = cls(await stack.enter_async_context(open_driver(url, **options)))
            stack.push_async_callback(queues.aclose)
            yield queues

    @staticmethod
    def definitions(
        url: str, *, namespace: str = "default", queues: Iterable[str] = (), with_user: bool = False
    ) -> dict[str, Any]:
        """What the broker of `url` is to load at its start, so that these queues are there: exchange, queues, bindings.

        `with_user` adds the URL's user, its password hashed. Connects to nothing. `unsupported` without a broker.
        """
        check_name("namespace", namespace)
        return definitions_of(
            url, namespace=namespace, queues=[check_name("queue", one) for one in queues], with_user=with_user
        )

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{len(self._consumers)} consumers"
        return f"<Queues on {self.driver!r}, {state}>"

    @measured("queues")
    async def declare(self, *specs: QueueSpec) -> None:
        """Create queues, or give existing ones these limits; durable, idempotent, messages stay."""
        for spec in specs:
            limits.check_spec(spec)
        if specs:
            await self._call(lambda: self.driver.declare(specs))

    @measured("queues")
    async def queues(self) -> list[QueueSpec]:
        """The declared queues, by name."""
        return await self._call(self.driver.queues)

    @measured("queues")
    async def send(self, *messages: OutgoingMessage) -> None:
        """Durable when it returns, as one commit or confirm window.

        Raises `invalid_argument` (a message over 1 MiB: `payload_too_large`), `not_found` (`queue_not_found`),
        `resource_exhausted` (`queue_full` at a queue's `depth_max`, `disk_full`); where the driver is atomic nothing
        was sent then.
        """
        limits.check_messages(messages)
        if messages:
            await self._call(lambda: self.driver.send(messages), repeat=self._may_resend(messages))
            self._counters.sent += len(messages)

    @asynccontextmanager
    async def consume(
        self, queue: str, *, max_in_flight: int = 64, lease_s: float | None = None
    ) -> AsyncIterator[Consumer]:
        """A consumer of `queue` that holds at most `max_in_flight` deliveries.

        Leaving the block hands back what is unsettled without costing an attempt. With `lease_s` a delivery that is
        neither settled nor extended in time goes back, its attempt raised; `unsupported` where the driver has no
        leases. Raises `not_found`.
        """
        check_name("queue", queue)
        limits.check_whole("max_in_flight", max_in_flight, 1, limits.IN_FLIGHT_MAX)
        if lease_s is not None:
            limits.check_seconds("lease_s", lease_s, limits.LEASE_S_MAX, zero=False)
            self._require(Capability.LEASE, "lease_s")
        self._check_open()
        async with AsyncExitStack() as stack:
            inner = await self._call(
                lambda: stack.enter_async_context(
                    self.driver.consume(queue, max_in_flight=max_in_flight, lease_s=lease_s)
                )
            )
            consumer = Consumer(self, inner, queue)
            self._consumers.add(consumer)
            try:
                yield consumer
            finally:
                self._consumers.discard(consumer)
                await consumer.aclose()

    @measured("queues")
    async def depth(self, queue: str) -> Depth:
        """Counts now. Raises `not_found`."""
        check_name("queue", queue)
        return await self._call(lambda: self.driver.depth(queue))

    @measured("queues")
    async def list_dead(
        self, queue: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> DeadLetterPage:
        """Dead letters of one queue or of all, oldest first. Raises `not_found` for no such queue."""
        if queue is not None:
            check_name("queue", queue)
        limits.check_whole("limit", limit, 1, limits.PAGE_MAX)
        return await self._call(lambda: self.driver.dead_letters.list_dead(queue, cursor=cursor, limit=limit))

    @measured("queues")
    async def get_dead(self, dead_id: str) -> DeadLetter:
        """One dead letter. Raises `not_found`."""
        return await self._call(lambda: self.driver.dead_letters.get_dead(dead_id))

    @measured("queues")
    async def redrive(self, dead_id: str, *, payload: bytes | None = None) -> None:
        """Send a dead letter again at attempt 1, with its id, headers and trace; `payload` replaces the bytes.

        Raises `not_found` when it is gone: of two redrives of one letter one sends it.
        """
        if payload is not None:
            await self._check_edit(dead_id, payload)
        await self._call(lambda: self.driver.dead_letters.redrive(dead_id, payload=payload), repeat=False)
        self._counters.redriven += 1

    async def redrive_all(self, queue: str, *, rate_per_s: float | None = None, limit: int | None = None) -> int:
        """Redrive the dead letters that `queue` has now, oldest first, evenly spaced at `rate_per_s`; how many it sent.

        At most `limit`. Letters that die while it runs, also those it has sent, are left alone.
        """
        if rate_per_s is not None and not 0 < rate_per_s <= 1_000_000:
            raise InvalidArgument(f"rate_per_s: {rate_per_s!r} must be more than 0, or None for no limit")
        if limit is not None:
            limits.check_whole("limit", limit, 1, 1_000_000_000)
        wanted = await self._dead_ids(queue, limit)
        loop = asyncio.get_running_loop()
        start, sent = loop.time(), 0
        for dead_id in wanted:
            if rate_per_s is not None:
                await self._pause(start + sent / rate_per_s - loop.time())
            try:
                await self.redrive(dead_id)
            except NotFound:
                continue  # somebody else redrove or purged it meanwhile
            sent += 1
        return sent

    @measured("queues")
    async def purge(self, *dead_ids: str) -> int:
        """Delete dead letters; how many there were."""
        return await self._call(lambda: self.driver.dead_letters.purge(list(dead_ids))) if dead_ids else 0

    async def purge_all(self, queue: str, *, limit: int | None = None) -> int:
        """Delete the dead letters that `queue` has now, at most the `limit` oldest; how many there were. Letters that
        die while it runs are left alone. Raises `not_found`.
        """
        if limit is not None:
            limits.check_whole("limit", limit, 1, 1_000_000_000)
        wanted = await self._dead_ids(queue, limit)
        batches = (wanted[start : start + limits.PAGE_MAX] for start in range(0, len(wanted), limits.PAGE_MAX))
        return sum([await self.purge(*batch) for batch in batches])

    def statistics(self) -> Statistics:
        """Counters since opening."""
        return Statistics(**vars(self._counters), consumers=len(self._consumers))

    async def aclose(self) -> None:
        """Hand back what consumers hold, end blocked calls with `Closed`, close the driver. Idempotent, ≤ 10 s."""
        if self._closing is None:
            self._stopping.set()
            self._closing = asyncio.create_task(self._close(), name="groundplane-queues-facade-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        async with asyncio.timeout(CLOSE_S):
            await self.driver.aclose()

    def _check_open(self) -> None:
        if self._closing is not None:
            raise Closed("queues: are closed; open them again")

    def _require(self, capability: Capability, field: str) -> None:
        if capability not in self.driver.capabilities:
            raise Unsupported(
                f"{field}: {type(self.driver).__name__!r} has no {capability.name}; leave it out",
                details={"capability": capability.name},
            )

    def _may_resend(self, messages: Sequence[OutgoingMessage]) -> bool:
        capabilities = self.driver.capabilities
        return Capability.ATOMIC_SETTLE in capabilities or (
            Capability.DEDUP in capabilities and all(message.dedup_key is not None for message in messages)
        )

    async def _check_edit(self, dead_id: str, payload: bytes) -> None:
        letter = await self.get_dead(dead_id)
        edited = OutgoingMessage(queue=letter.queue, id=letter.message_id, payload=payload, headers=letter.headers)
        limits.check_messages([edited])

    async def _dead_ids(self, queue: str, limit: int | None) -> list[str]:
        found: list[str] = []
        cursor: str | None = None
        while limit is None or len(found) < limit:
            page = await self.list_dead(queue, cursor=cursor, limit=limits.PAGE_MAX)
            found += [letter.id for letter in page.items]
            cursor = page.cursor
            if cursor is None:
                break
        return found[:limit]

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until closing."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)
        self._check_open()

    async def _call(self, call: Callable[[], Awaitable[T]], *, repeat: bool = True) -> T:
        """Make a call of the driver; again after a while where that is safe and its error says that it may help."""
        attempt = 1
        while True:
            self._check_open()
            try:
                return await call()
            except GroundplaneError as error:
                hopeless = not error.retryable or error.reason in _NOT_WORTH_WAITING
                if hopeless or not repeat or attempt >= self._retry.attempts:
                    self._counters.failed += 1
                    raise
            self._counters.retries += 1
            await self._pause(self._retry.delay_s(attempt))
            attempt += 1


class Consumer:
    """One consumer of one queue. Make it with `Queues.consume`."""

    def __init__(self, queues: Queues, inner: QueueConsumer, queue: str) -> None:
        self.queue = queue
        self._queues = queues
        self._inner = inner
        self._counters = queues._counters

    def __repr__(self) -> str:
        return f"<Consumer {self._inner!r}>"

    async def receive(self, limit: int = 1, timeout_s: float | None = None) -> list[Delivery]:
        """Up to `limit` deliveries, at least one; an empty list after `timeout_s` (None: no limit, 0: what is there).

        One caller at a time. Cancelling it loses nothing and costs no attempt. `Closed` once this is closed.
        """
        limits.check_whole("limit", limit, 1, limits.IN_FLIGHT_MAX)
        if timeout_s is not None and not timeout_s >= 0:
            raise InvalidArgument(f"timeout_s: {timeout_s!r} must be 0 or more seconds, or None")
        deliveries = await self._queues._call(lambda: self._inner.receive(limit, timeout_s))
        self._counters.received += len(deliveries)
        self._counters.redelivered += sum(delivery.attempt > 1 for delivery in deliveries)
        return deliveries

    @measured("queues")
    async def settle(
        self,
        settlements: Sequence[Settlement],
        sends: Sequence[OutgoingMessage] = (),
        carry: Sequence[Carried] = (),
    ) -> None:
        """Send `sends` durably, then settle; in one transaction where the driver has `ATOMIC_SETTLE`. `carry` is what
        another store changes in that transaction; `unsupported` where the driver has no `CARRY`.

        May be called concurrently. Raises `failed_precondition` with reason `delivery_settled` or `delivery_lost`,
        what `Queues.send` and `carry` raise; where atomic nothing of the call happened then.
        """
        limits.check_messages(sends)
        for settlement in settlements:
            _check_settlement(settlement)
        if carry:
            self._queues._require(Capability.CARRY, "carry")
        if not settlements and not carry:
            return await self._queues.send(*sends)
        atomic = Capability.ATOMIC_SETTLE in self._queues.driver.capabilities
        await self._queues._call(lambda: self._inner.settle(settlements, sends, carry), repeat=atomic)
        self._count(settlements, len(sends))
        return None

    async def ack(self, delivery: Delivery) -> None:
        """The work is done."""
        await self.settle((Ack(delivery),))

    async def nack(
        self, delivery: Delivery, delay_s: float = 0.0, *, counts: bool = True, error: ErrorRecord | None = None
    ) -> None:
        """Try again after `delay_s`; `counts=False` costs no attempt."""
        await self.settle((Nack(delivery, delay_s, counts, error),))

    async def reject(self, delivery: Delivery, reason: str, error: ErrorRecord | None = None) -> None:
        """Make it a dead letter."""
        await self.settle((Reject(delivery, reason, error),))

    @measured("queues")
    async def extend(self, deliveries: Sequence[Delivery], lease_s: float) -> None:
        """Hold them for `lease_s` seconds from now. `unsupported` where the driver has no leases."""
        self._queues._require(Capability.LEASE, "lease_s")
        limits.check_seconds("lease_s", lease_s, limits.LEASE_S_MAX, zero=False)
        await self._queues._call(lambda: self._inner.extend(deliveries, lease_s))

    async def aclose(self) -> None:
        """Hand back everything in flight without costing an attempt. Idempotent, ≤ 10 s."""
        async with asyncio.timeout(CLOSE_S):
            await self._inner.aclose()

    def _count(self, settlements: Sequence[Settlement], sent: int) -> None:
        self._counters.sent += sent
        for settlement in settlements:
            if isinstance(settlement, Ack):
                self._counters.acked += 1
            elif isinstance(settlement, Nack):
                self._counters.nacked += 1
            else:
                self._counters.rejected += 1


def _check_settlement(settlement: Settlement) -> None:
    if isinstance(settlement, Nack) and settlement.delay_s:
        limits.check_seconds("delay_s", settlement.delay_s, limits.DELAY_S_MAX)
    elif isinstance(settlement, Reject) and not settlement.reason:
        raise InvalidArgument(f"reason: {settlement.reason!r} must say why the message is never tried again")
