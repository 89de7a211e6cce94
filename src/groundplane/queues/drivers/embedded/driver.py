"""The driver: opens the file, declares, sends, counts, and makes consumers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from groundplane.backends.sqlite import Database, MigrationSet, Transaction
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.dead_letters import DeadLetterSource
from groundplane.core.errors import Closed, InvalidArgument
from groundplane.core.secrets import mask_url
from groundplane.queues.drivers.embedded import rows
from groundplane.queues.drivers.embedded.consumer import EmbeddedConsumer
from groundplane.queues.drivers.embedded.dead_letters import EmbeddedDeadLetters
from groundplane.queues.drivers.embedded.sessions import Session
from groundplane.queues.drivers.embedded.settling import Change, Settling
from groundplane.queues.port import Capability, Depth, OutgoingMessage, QueueConsumer, QueueDriver, QueueSpec

MIGRATIONS = MigrationSet(component="queues", package="groundplane.queues.sql.sqlite")
HEARTBEAT_S = 30.0
_CLOSE_CONSUMERS_S = 6.0

_DECLARE = (
    "INSERT INTO queues (namespace, name, attempts_max, depth_max) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (namespace, name) DO UPDATE SET attempts_max = excluded.attempts_max, depth_max = excluded.depth_max "
    "WHERE attempts_max <> excluded.attempts_max OR depth_max <> excluded.depth_max"
)


class Addressed(Protocol):
    """What a message needs at the least. An entry of an outbox is one."""

    @property
    def queue(self) -> str: ...

    @property
    def id(self) -> str: ...

    @property
    def payload(self) -> bytes: ...

    @property
    def headers(self) -> dict[str, str]: ...

    @property
    def dedup_key(self) -> str: ...


class EmbeddedQueues:
    """Queues of one namespace of a plane. Make it with `open`."""

    capabilities = Capability.ATOMIC_SETTLE | Capability.DEDUP | Capability.LEASE | Capability.CARRY

    def __init__(self, database: Database, namespace: str, folder: Path, *, clock: Clock, heartbeat_s: float) -> None:
        self.native = database
        self.dead_letters: DeadLetterSource = EmbeddedDeadLetters(database, namespace)
        self._namespace = namespace
        self._clock = clock
        self._settling = Settling(database, namespace, clock)
        self._session = Session(database, folder, clock, heartbeat_s)
        self._sweeping: asyncio.Task[None] | None = None
        self._consumers: set[EmbeddedConsumer] = set()
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
        heartbeat_s: float = HEARTBEAT_S,
    ) -> AsyncIterator[EmbeddedQueues]:
        """Open the queues in `state`, or in the folder that the URL names.

        `heartbeat_s`: after this long without a sign of life a consumer is taken for dead although its process
        exists. Errors: those of `Database.open`.
        """
        folder = state_folder(url, state)
        async with Database.open(folder / "plane.db", [MIGRATIONS], inline=inline, upgrade=upgrade) as database:
            driver = cls(database, namespace, folder / "run" / "consumers", clock=clock, heartbeat_s=heartbeat_s)
            try:
                yield driver
            finally:
                await driver.aclose()

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{len(self._consumers)} consumers"
        return f"<EmbeddedQueues {self._namespace!r}, {state}>"

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        """See `QueueDriver.declare`."""
        self._check_open()
        declared = [(self._namespace, spec.name, spec.attempts_max, spec.depth_max) for spec in specs]
        await self.native.write(lambda tx: tx.executemany(_DECLARE, declared))

    async def queues(self) -> list[QueueSpec]:
        """See `QueueDriver.queues`."""
        self._check_open()
        sql = "SELECT name, attempts_max, depth_max FROM queues WHERE namespace = ? ORDER BY name"
        found = await self.native.read(lambda tx: tx.execute(sql, (self._namespace,)))
        return [QueueSpec(name=name, attempts_max=attempts, depth_max=depth) for name, attempts, depth in found]

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """See `QueueDriver.send`. One transaction: all or none."""
        self._check_open()
        await self._settling.make(Change(messages))

    def send_within(self, tx: Transaction, messages: Sequence[Addressed]) -> None:
        """Send in a transaction of somebody else, of this very file: all or none, with that."""
        outgoing = [
            OutgoingMessage(queue=m.queue, id=m.id, payload=m.payload, headers=m.headers, dedup_key=m.dedup_key)
            for m in messages
        ]
        rows.send(tx, self._namespace, outgoing, self._clock.now_ms(), self._settling.dedup)

    @asynccontextmanager
    async def consume(
        self, queue: str, *, max_in_flight: int, lease_s: float | None = None
    ) -> AsyncIterator[QueueConsumer]:
        """See `QueueDriver.consume`."""
        self._check_open()
        number = await self.native.read(lambda tx: self._find(tx, queue))
        await self._start_session()
        async with self.native.listen(rows.topic(number)) as listener:
            consumer = EmbeddedConsumer(
                self.native,
                self._session,
                listener,
                self._settling,
                queue=number,
                name=queue,
                max_in_flight=max_in_flight,
                lease_s=lease_s,
                clock=self._clock,
            )
            self._consumers.add(consumer)
            try:
                yield consumer
            finally:
                await consumer.aclose()
                self._consumers.discard(consumer)

    async def depth(self, queue: str) -> Depth:
        """See `QueueDriver.depth`."""
        self._check_open()
        now_ms = self._clock.now_ms()
        return await self.native.read(lambda tx: _depth(tx, self._find(tx, queue), queue, now_ms))

    async def aclose(self) -> None:
        """See `QueueDriver.aclose`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="groundplane-queues-close")
        await asyncio.shield(self._closing)

    async def _start_session(self) -> None:
        await self._session.start()
        self._check_open()
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._session.run(), name="groundplane-queues-sweep")

    async def _close(self) -> None:
        try:
            closing = [asyncio.ensure_future(consumer.aclose()) for consumer in self._consumers]
            if closing:
                await asyncio.wait(closing, timeout=_CLOSE_CONSUMERS_S)
            if self._sweeping is not None:
                self._sweeping.cancel()
                await asyncio.wait([self._sweeping])
            await self._session.aclose()
            for one in closing:
                if one.done():
                    one.result()
        finally:
            await self.native.aclose()
            await self._settling.drained()

    def _find(self, tx: Transaction, queue: str) -> int:
        found = tx.execute("SELECT id FROM queues WHERE namespace = ? AND name = ?", (self._namespace, queue))
        if not found:
            raise rows.missing(queue)
        return int(found[0][0])

    def _check_open(self) -> None:
        if self._closing is not None:
            raise Closed(f"queues: {self._namespace!r} is closed; open it again")


def state_folder(url: str, state: Path) -> Path:
    """The state folder that `embedded://` (then `state`) or `embedded:///folder` names."""
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise InvalidArgument(
            f"queues: {mask_url(url)!r} is neither embedded:// nor embedded:///absolute/folder, "
            "without host or parameters"
        )
    return Path(unquote(parts.path)) if parts.path else state


def _depth(tx: Transaction, queue: int, name: str, now_ms: int) -> Depth:
    last, cursor, waiting = tx.execute("SELECT last, cursor, waiting FROM queues WHERE id = ?", (queue,))[0]
    due_sql = "SELECT count(*) FROM queue_waiting WHERE queue = ? AND due_at <= ?"
    due = tx.execute(due_sql, (queue, now_ms))[0][0] if waiting else 0
    return Depth(
        queue=name,
        ready=last - cursor + due,
        in_flight=rows.in_flight(tx, queue, cursor),
        delayed=waiting - due,
        dead=tx.execute("SELECT count(*) FROM queue_dead WHERE queue = ?", (queue,))[0][0],
        oldest_age_s=max(0, now_ms - _oldest(tx, queue, cursor, now_ms)) / 1000,
    )


_OLDEST = """
SELECT min(since) FROM (
    SELECT enqueued_at AS since FROM queue_messages WHERE id = :next
    UNION ALL SELECT * FROM (
        SELECT enqueued_at FROM queue_waiting WHERE queue = :queue AND due_at = 0 ORDER BY due_at, position LIMIT 1)
    UNION ALL SELECT * FROM (
        SELECT due_at FROM queue_waiting WHERE queue = :queue AND due_at BETWEEN 1 AND :now ORDER BY due_at LIMIT 1))
"""


def _oldest(tx: Transaction, queue: int, cursor: int, now_ms: int) -> int:
    """Since when the oldest ready message is ready; now, when none is. What was delayed counts from its due time."""
    where = {"next": rows.in_turn(queue, cursor + 1), "queue": queue, "now": now_ms}
    since: int | None = tx.execute(_OLDEST, where)[0][0]
    return now_ms if since is None else since


def _conforms(driver: EmbeddedQueues) -> QueueDriver:
    return driver
