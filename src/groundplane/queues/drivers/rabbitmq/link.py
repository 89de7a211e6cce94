"""The link to the broker: one connection that publishes and one that consumes, dropped and opened together.

They are two because a broker that blocks a publisher stops reading its connection: acknowledgements must not wait for
that. They fall together, so that what was being settled while the other one broke comes again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress

from groundplane.backends.amqp import Address, Channel, Connection, Message, QueueState
from groundplane.core import failpoints
from groundplane.core.errors import Closed, FailedPrecondition, GroundplaneError, NotFound, Unavailable
from groundplane.core.pools import PoolState, announce
from groundplane.core.retry import RetryPolicy

READY_S = 3.0
"""How long after its loss calls wait for the link to be opened again, before they fail with what prevents that."""

_LEAST_S = 0.02

CONFIRM_S = 10.0
"""How long a confirmation may take: a queue without a leader never gives one."""

_BACKOFF = RetryPolicy(base_s=0.1, factor=2.0, cap_s=1.0)
_BATCH_MESSAGES = 1000
_BATCH_BYTES = 4_000_000


class Session:
    """One life of the link: everything that was opened on it ends with it."""

    def __init__(self, publishing: Connection, consuming: Connection) -> None:
        self.publishing = publishing
        self.consuming = consuming
        self.lost = asyncio.Event()
        self.error: GroundplaneError | None = None
        self._publisher: Channel | None = None
        self._prober: Channel | None = None
        self._opening = asyncio.Lock()
        self._probing = asyncio.Lock()
        for connection in (publishing, consuming):
            connection.on_closed(self._on_closed)

    @classmethod
    async def open(cls, address: Address, name: str) -> Session:
        """Both connections and the channel that publishes, within `connect_timeout_s`; errors by name."""
        publishing = await Connection.open(address, name=f"{name} publishing")
        try:
            consuming = await Connection.open(address, name=f"{name} consuming")
        except BaseException:
            await publishing.aclose()
            raise
        session = cls(publishing, consuming)
        try:
            await session.publisher()
        except BaseException:
            await session.aclose()
            raise
        return session

    @property
    def alive(self) -> bool:
        """Whether neither connection was lost."""
        return not self.lost.is_set()

    def _on_closed(self, error: GroundplaneError) -> None:
        if self.error is None:
            self.error = error
        self.lost.set()

    async def publisher(self) -> Channel:
        """The channel that publishes, opened again where the broker closed it alone."""
        channel = self._publisher
        if channel is not None and channel.is_open:
            return channel
        async with self._opening:
            if self._publisher is None or not self._publisher.is_open:
                self._publisher = await self.publishing.channel(confirms=True)
            return self._publisher

    async def publish(self, messages: Sequence[Message]) -> list[GroundplaneError | None]:
        """Publish in order, mandatory; the outcome of each. `unavailable` where the outcome of all is unknown."""
        outcomes: list[GroundplaneError | None] = []
        for batch in _batches(messages):
            if outcomes:
                await (await self.publisher()).drain()
            channel = await self.publisher()  # others may have retired it meanwhile
            try:
                async with asyncio.timeout(CONFIRM_S):
                    confirmed = channel.publish_batch(batch)
                    if failpoints.is_watched("unconfirmed"):
                        await asyncio.sleep(0)  # until it is written
                        failpoints.hit("unconfirmed")
                    outcomes += await confirmed
            except TimeoutError as error:
                self._retire(channel)
                raise Unavailable(
                    f"queues: the broker did not confirm {len(batch)} messages to {batch[0].routing_key!r} within "
                    f"{CONFIRM_S:g} s; it is overloaded, or the queue has no leader (`groundplane doctor`)",
                    reason="broker_slow",
                    details={"queue": batch[0].routing_key},
                ) from error
        return outcomes

    def _retire(self, channel: Channel) -> None:
        """Publish on another channel from now on: this one keeps what is never confirmed, until the others on it have
        had their time.
        """
        if self._publisher is channel:
            self._publisher = None
        asyncio.get_running_loop().call_later(CONFIRM_S, channel.abandon)

    async def state(self, broker_queue: str) -> QueueState | None:
        """Messages that are ready, and consumers; None where there is no such queue."""
        async with self._probing:
            if self._prober is None or not self._prober.is_open:
                self._prober = await self.consuming.channel()
            try:
                return await self._prober.declare_queue(broker_queue, passive=True)
            except NotFound as error:
                check_is_missing(error)
                return None

    async def aclose(self, why: GroundplaneError | None = None) -> None:
        """Close both connections; what is under way fails with `why`, `Closed` without one."""
        await asyncio.gather(self.publishing.aclose(why), self.consuming.aclose(why))


def check_is_missing(error: NotFound) -> None:
    """`unavailable` where the queue exists and is not up yet, as while a broker starts.

    RabbitMQ answers 404 to both, so here, and nowhere else, its words decide.
    """
    text = str(error.details.get("reply_text", ""))
    if "inaccessible" in text or "is down" in text:
        raise Unavailable(
            f"queues: a queue of the broker is not up ({text}); it is tried again by itself: look at the broker's log",
            reason="broker_error",
        ) from error


def check_is_up(error: FailedPrecondition) -> None:
    """`unavailable` where a stream is not up yet, as while a broker starts: RabbitMQ answers 406 to who consumes it."""
    text = str(error.details.get("reply_text", ""))
    if "does not have a replica" in text or "does not have a running replica" in text:
        raise Unavailable(
            f"queues: a stream of the broker is not up ({text}); it is tried again by itself: look at the broker's log",
            reason="broker_error",
        ) from error


def _batches(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """Slices that neither the write buffer nor the broker's flow control chokes on."""
    if len(messages) <= _BATCH_MESSAGES and sum(len(one.body) for one in messages) <= _BATCH_BYTES:
        return [messages] if messages else []
    batches: list[Sequence[Message]] = []
    start = size = 0
    for at, message in enumerate(messages):
        if at > start and (at - start >= _BATCH_MESSAGES or size + len(message.body) > _BATCH_BYTES):
            batches.append(messages[start:at])
            start, size = at, 0
        size += len(message.body)
    return [*batches, messages[start:]]


class Link:
    """The present session, renewed by itself for as long as this is open."""

    def __init__(self, address: Address, name: str) -> None:
        self.address = address
        self.name = name
        self.renewals = 0
        self.last_failure: GroundplaneError | None = None
        self._session: Session | None = None
        self._up = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._closing = False
        self._lost_at = 0.0

    def __repr__(self) -> str:
        state = "closed" if self._closing else "up" if self._up.is_set() else f"down: {self.last_failure}"
        return f"<Link to {self.address.masked()}, {state}>"

    async def start(self) -> None:
        """Open the first session; raises what prevents it."""
        self._session = await Session.open(self.address, self.name)
        self._up.set()
        announce(self)
        self._keeping = asyncio.create_task(self._keep(), name="groundplane-rabbitmq-link")

    def pools(self) -> list[PoolState]:
        """Channels, and what was published and is not confirmed. See `core.pools`."""
        if self._closing or (session := self.session) is None:
            return []
        counts = [one.statistics() for one in (session.publishing, session.consuming)]
        channels, unconfirmed = (sum(one[name] for one in counts) for name in ("channels", "unconfirmed"))
        return [PoolState(backend="rabbitmq", in_use=channels, idle=0, waiting=unconfirmed)]

    @property
    def session(self) -> Session | None:
        """The session that is alive now, if one is."""
        session = self._session
        return session if session is not None and session.alive else None

    async def ready(self, within_s: float = READY_S) -> Session:
        """The session that is alive, waited for: `unavailable` with the cause `within_s` after its loss; `Closed`."""
        session = self.session
        if session is not None:
            return session
        now = asyncio.get_running_loop().time()
        lost_at = now if self._up.is_set() else self._lost_at  # who renews it has not seen it yet
        until = max(lost_at + within_s, now + _LEAST_S)
        while not self._closing:
            try:
                async with asyncio.timeout_at(until):
                    await self._up.wait()
            except TimeoutError:
                raise self._unavailable() from self.last_failure
            if (session := self.session) is not None:
                return session
            await asyncio.sleep(0)  # lost, and not seen yet by who renews it
        raise Closed("queues: are closed; open them again")

    async def aclose(self) -> None:
        """Close for good."""
        self._closing = True
        self._up.set()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        if self._session is not None:
            await self._session.aclose()

    def _unavailable(self) -> GroundplaneError:
        why = self.last_failure
        return Unavailable(
            f"queues: {self.address.masked()!r} cannot be reached ({why.message if why else 'the connection broke'}); "
            "it is tried again by itself: start the broker, or mend the network",
            reason=why.reason if why is not None and why.code == "unavailable" else "broker_unreachable",
        )

    async def _keep(self) -> None:
        while True:
            assert self._session is not None
            await self._session.lost.wait()
            self._up.clear()
            self._lost_at = asyncio.get_running_loop().time()
            self.last_failure = self._session.error
            with suppress(GroundplaneError):
                await self._session.aclose(self._session.error)
            self._session = await self._renew()
            self.renewals += 1
            self._up.set()

    async def _renew(self) -> Session:
        attempt = 0
        while True:
            attempt += 1
            await asyncio.sleep(_BACKOFF.delay_s(attempt) * random.uniform(0.5, 1.0) if attempt > 1 else 0.05)
            try:
                return await Session.open(self.address, self.name)
            except GroundplaneError as error:
                self.last_failure = error
