"""Jobs in the embedded engine: one SQLite file for all processes of the plane.

Address: `embedded://` (`<state>/plane.db`), or `embedded:///absolute/state/folder`.
Guarantee: what returned survives SIGKILL and a loss of power; of progress a loss of power may take what no other write
has followed yet. Events get their ids inside the file's one write lock, so no reader ever skips one; no id that was
seen is given again, not even after a loss of power.
Limits: one machine, a local disk; some thousand creations and some ten thousand changes a second.
Cannot: nothing that the port has.
Escape hatch: `native` is the `Database`; the tables are in `groundplane/jobs/sql/sqlite`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from groundplane.backends.sqlite import Database, MigrationSet, Transaction
from groundplane.core.clock import SYSTEM_CLOCK, Clock, boot_id
from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.core.secrets import mask_url
from groundplane.jobs.drivers import changes, expiry, log, outbox, records
from groundplane.jobs.drivers.file_unit import FileUnit
from groundplane.jobs.drivers.unit import Scope
from groundplane.jobs.port import (
    Change,
    Created,
    Events,
    Hops,
    Job,
    JobPage,
    JobQuery,
    JobStore,
    NewJob,
    Outbox,
    OutboxMessage,
    Outcome,
    Progress,
    Question,
    Retention,
    Standing,
    Swept,
    Topic,
    Watch,
)

T = TypeVar("T")

FILE_NAME = "plane.db"
MIGRATIONS = MigrationSet(component="jobs", package="groundplane.jobs.sql.sqlite")
_COUNT_SHARE = 100
_ROUNDS_MAX = 50
_FOR_THE_RELAY = ("queue_not_found", "queue_full")


class EmbeddedJobs:
    """The driver. See the port for every method."""

    def __init__(self, database: Database, scope: Scope, clock: Clock) -> None:
        self.native = database
        self.outbox: Outbox = _Outbox(self)
        self.hops: Hops = _Hops(self)
        self.queues: outbox.FileQueues | None = None
        self.scope = scope
        self._clock = clock
        self._stack = AsyncExitStack()
        self._counts = expiry.Counts(jobs=0, events=0, outbox=0, outbox_due=0)
        self._count_again_at = 0.0

    @classmethod
    async def open(
        cls, path: Path, *, namespace: str, upgrade: bool = False, inline: bool = False, clock: Clock = SYSTEM_CLOCK
    ) -> EmbeddedJobs:
        """Open the file; `clock` is what deadlines, leases and retention go by."""
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                Database.open(path, [MIGRATIONS], upgrade=upgrade, inline=inline)
            )
            await _skip_lost_ids(database)
            store = cls(database, await _scope(database, namespace), clock)
            store._stack = stack.pop_all()
        return store

    async def create(self, job: NewJob, messages: Sequence[OutboxMessage], *, lease_s: float = 0.0) -> Created:
        """See the port."""
        if self.queues is not None and messages:
            try:
                return await self.write(lambda unit: records.create(unit, job, messages, queues=self.queues))
            except GroundplaneError as error:
                if error.reason not in _FOR_THE_RELAY:
                    raise
        return await self.write(lambda unit: records.create(unit, job, messages, round(lease_s * 1000)))

    async def get(self, job_id: str) -> Job:
        """See the port."""
        return await self.native.read(lambda tx: records.get(tx, self.scope, job_id))

    async def list_jobs(self, query: JobQuery) -> JobPage:
        """See the port."""
        return await self.native.read(lambda tx: records.list_jobs(tx, self.scope, query))

    async def apply(self, changes_: Sequence[Change]) -> list[Outcome]:
        """See the port. Progress is synced with whatever is synced next: a loss of power may take the last of it."""
        durable = any(type(one) is not Progress for one in changes_)
        return await self.write(lambda unit: unit.run(changes.apply(unit, changes_)), durable=durable)

    async def events(self, *, after: int, job_id: str | None = None, limit: int = 500, final: bool = False) -> Events:
        """See the port."""
        if job_id is None:
            return await self.native.read(lambda tx: log.of_all(tx, self.scope, after, limit, final=final))
        return await self.native.read(lambda tx: log.of_job(tx, self.scope, job_id, after, limit, final=final))

    @asynccontextmanager
    async def watch(self, topic: Topic = "events") -> AsyncIterator[Watch]:
        """See the port."""
        async with self.native.listen(self.scope.topic(topic)) as listener:
            yield listener

    async def sweep(self, retention: Retention) -> Swept:
        """See the port. Writes only where there is something to do; counts as seldom as counting is dear."""
        timed_out: list[str] = []
        jobs = events = 0
        due = await self.look(retention)
        for _ in range(_ROUNDS_MAX):
            if due.deadlines:
                timed_out += await self.write(expiry.end_overdue)
            if due.jobs:
                deleted = await self.write(lambda unit: expiry.delete_finished(unit, retention))
                jobs, events = jobs + deleted[0], events + deleted[1]
            if due.events:
                events += await self.write(lambda unit: expiry.trim_events(unit, retention))
            if not (due.deadlines or due.jobs or due.events):
                break
            self._count_again_at = 0.0
            due = await self.look(retention)
        counts = await self._count()
        return Swept(
            timed_out=timed_out,
            jobs_deleted=jobs,
            events_deleted=events,
            jobs=counts.jobs,
            events=counts.events,
            outbox=counts.outbox,
            outbox_due=counts.outbox_due,
            outbox_head=due.outbox_head,
            next_deadline_at=due.next_deadline_at,
        )

    async def aclose(self) -> None:
        """See the port."""
        await self._stack.aclose()

    async def look(self, retention: Retention) -> expiry.Due:
        """What a sweep would find."""
        now = self._clock.now_ms()
        return await self.native.read(lambda tx: expiry.look(tx, self.scope, retention, now))

    async def write(self, work: Callable[[FileUnit], T], *, durable: bool = True, essential: bool = False) -> T:
        """`work` in the next commit."""
        return await self.native.write(
            lambda tx: work(FileUnit(tx, self.scope, self._clock.now_ms())), durable=durable, essential=essential
        )

    def now_ms(self) -> int:
        """The store's clock."""
        return self._clock.now_ms()

    async def _count(self) -> expiry.Counts:
        start = time.monotonic()
        if start >= self._count_again_at:
            self._counts = await self.native.read(lambda tx: expiry.count(tx, self.scope))
            self._count_again_at = start + _COUNT_SHARE * (time.monotonic() - start)
        return self._counts


class _Outbox:
    """The messages that wait to be relayed."""

    def __init__(self, store: EmbeddedJobs) -> None:
        self._store = store

    async def take(self, limit: int, lease_s: float = 30.0) -> list[tuple[int, OutboxMessage]]:
        """See the port. Durable: a message is never sent before the job that caused it would survive."""
        store, lease_ms = self._store, round(lease_s * 1000)
        now = store.now_ms()
        if not await store.native.read(lambda tx: outbox.any_due(tx, store.scope, now)):
            return []
        return await store.write(lambda unit: outbox.take(unit, limit, lease_ms))

    async def done(self, ids: Sequence[int]) -> None:
        """See the port. A loss of power may forget it; the message is then sent again under the same key."""
        await self._store.write(lambda unit: outbox.done(unit, ids), durable=False, essential=True)


class _Hops:
    """Looks, and changes within the transactions of queues of the same file."""

    def __init__(self, store: EmbeddedJobs) -> None:
        self._store = store

    async def standing(self, job_id: str) -> Standing | None:
        """See the port."""
        return await self._store.native.read(lambda tx: records.standing(tx, self._store.scope, job_id))

    async def questions(self, job_id: str, ids: Sequence[str] | None = None) -> list[Question]:
        """See the port."""
        return await self._store.native.read(lambda tx: records.questions(tx, self._store.scope, job_id, ids))

    def share_transactions(self, queues: object) -> bool:
        """See the port."""
        shared = isinstance(queues, outbox.FileQueues) and queues.native.same_file(self._store.native)
        self._store.queues = queues if isinstance(queues, outbox.FileQueues) and shared else None
        return shared

    def carried(self, changes_: Sequence[Change], *, of_live: bool = True) -> Callable[[Transaction], object]:
        """See the port."""
        store = self._store

        def carry(tx: Transaction) -> None:
            unit = FileUnit(tx, store.scope, store.now_ms())
            unit.run(changes.apply_to_live(unit, changes_) if of_live else changes.apply(unit, changes_))

        return carry


async def open_driver(url: str, *, namespace: str, state: Path, upgrade: bool, inline: bool) -> EmbeddedJobs:
    """Open the file in the folder that the URL names, or in `state`."""
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise InvalidArgument(f"jobs: {mask_url(url)!r} must be embedded:// or embedded:///absolute/state/folder")
    folder = Path(unquote(parts.path)) if parts.path else state
    return await EmbeddedJobs.open(folder / FILE_NAME, namespace=namespace, upgrade=upgrade, inline=inline)


async def _scope(database: Database, namespace: str) -> Scope:
    def known(tx: Transaction) -> int | None:
        rows = tx.execute("SELECT id FROM job_namespaces WHERE name = ?", (namespace,))
        return rows[0][0] if rows else None

    def made(tx: Transaction) -> int:
        tx.execute("INSERT INTO job_namespaces (name) VALUES (?) ON CONFLICT DO NOTHING", (namespace,))
        number = known(tx)
        assert number is not None
        return number

    number = await database.read(known)
    return Scope(number if number is not None else await database.write(made), namespace)


async def _skip_lost_ids(database: Database) -> None:
    """The first opener after a boot leaves a gap behind the ids that may have been seen before."""
    boot = boot_id()
    if await database.read(log.boot) != boot:
        await database.write(lambda tx: log.begin_boot(tx, boot))


_: type[JobStore] = EmbeddedJobs
