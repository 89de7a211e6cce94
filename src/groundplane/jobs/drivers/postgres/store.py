"""The driver."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from groundplane.backends.postgres import Database, MigrationSet
from groundplane.core.clock import Clock
from groundplane.core.errors import Unsupported
from groundplane.jobs.drivers.postgres import applying, creating, expiry, outbox, reading
from groundplane.jobs.drivers.postgres.flights import Flights
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
    Question,
    Retention,
    Standing,
    Swept,
    Topic,
    Watch,
)

MIGRATIONS = MigrationSet(component="jobs", package="groundplane.jobs.sql.postgres")
_COUNT_SHARE = 100
_ROUNDS_MAX = 50
_LOOKS_MAX = 500


class PostgresJobs:
    """The driver. See the port for every method, and the package for what it promises."""

    def __init__(self, database: Database, scope: Scope, clock: Clock | None) -> None:
        self.native = database
        self.scope = scope
        self.outbox: Outbox = _Outbox(self)
        self._hops = _Hops(self)
        self.hops: Hops = self._hops
        self._clock = clock
        self._creations: Flights[creating.Creation] = Flights(
            lambda calls: creating.create_together(database, scope, self.now_ms(), calls), creating.pick
        )
        self._changes: Flights[applying.Applied] = Flights(
            lambda calls: applying.apply_together(database, scope, self.now_ms(), calls), applying.pick
        )
        self._stack = AsyncExitStack()
        self._counts = (0, 0, 0, 0)
        self._count_again_at = 0.0

    @classmethod
    async def open(cls, url: str, *, namespace: str, upgrade: bool = False, clock: Clock | None = None) -> PostgresJobs:
        """Open the schema that the URL names. Deadlines, leases and retention go by the clock of the server, or by
        `clock`.
        """
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(Database.open(url, [MIGRATIONS], upgrade=upgrade, field="jobs"))
            store = cls(database, await _scope(database, namespace), clock)
            store._stack = stack.pop_all()
        return store

    async def create(self, job: NewJob, messages: Sequence[OutboxMessage], *, lease_s: float = 0.0) -> Created:
        """See the port."""
        call = creating.Creation.of(job, messages, lease_s)
        while True:
            created: Created | None = await self._creations.call(call)
            if created is not None:
                return created

    async def get(self, job_id: str) -> Job:
        """See the port."""
        return await reading.get(self.native, self.scope, job_id)

    async def list_jobs(self, query: JobQuery) -> JobPage:
        """See the port."""
        return await reading.list_jobs(self.native, self.scope, query)

    async def apply(self, changes: Sequence[Change]) -> list[Outcome]:
        """See the port. Progress alone does not wait for the disk: a crash of the server may take the last of it."""
        outcomes: list[Outcome] = await self._changes.call(applying.Applied(changes))
        return outcomes

    async def events(self, *, after: int, job_id: str | None = None, limit: int = 500, final: bool = False) -> Events:
        """See the port."""
        if job_id is None:
            return await reading.events_of_all(self.native, self.scope, after, limit, final=final)
        return await reading.events_of_job(self.native, self.scope, job_id, after, limit, final=final)

    @asynccontextmanager
    async def watch(self, topic: Topic = "events") -> AsyncIterator[Watch]:
        """See the port."""
        async with self.native.listen(self.scope.topic(topic)) as listener:
            yield listener

    async def sweep(self, retention: Retention) -> Swept:
        """See the port. Writes only where there is something to do; counts as seldom as counting is dear."""
        database, scope = self.native, self.scope
        timed_out: list[str] = []
        jobs = events = 0
        due = await expiry.look(database, scope, self.now_ms(), retention)
        for _ in range(_ROUNDS_MAX):
            ended = await expiry.end_overdue(database, scope, self.now_ms()) if due.deadlines else []
            gone = (0, 0)
            if due.jobs:
                gone = await expiry.delete_finished(database, scope, self.now_ms(), retention)
            trimmed = await expiry.trim_events(database, scope, self.now_ms(), retention) if due.events else 0
            timed_out += ended
            jobs, events = jobs + gone[0], events + gone[1] + trimmed
            if not (ended or any(gone) or trimmed):  # nothing is due, or others are at it
                break
            self._count_again_at = 0.0
            due = await expiry.look(database, scope, self.now_ms(), retention)
        await self._count()
        return Swept(
            timed_out=timed_out,
            jobs_deleted=jobs,
            events_deleted=events,
            jobs=self._counts[0],
            events=self._counts[1],
            outbox=self._counts[2],
            outbox_due=self._counts[3],
            outbox_head=due.outbox_head,
            next_deadline_at=due.next_deadline_at,
        )

    async def aclose(self) -> None:
        """See the port."""
        await self._creations.aclose()
        await self._changes.aclose()
        await self._hops.aclose()
        await self._stack.aclose()

    def now_ms(self) -> int | None:
        """The moment of an injected clock; None where the server tells the time."""
        return self._clock.now_ms() if self._clock is not None else None

    async def _count(self) -> None:
        start = time.monotonic()
        if start >= self._count_again_at:
            self._counts = await expiry.count(self.native, self.scope)
            self._count_again_at = start + _COUNT_SHARE * (time.monotonic() - start)


class _Outbox:
    """The messages that wait to be relayed."""

    def __init__(self, store: PostgresJobs) -> None:
        self._store = store

    async def take(self, limit: int, lease_s: float = 30.0) -> list[tuple[int, OutboxMessage]]:
        """See the port."""
        store = self._store
        return await outbox.take(store.native, store.scope, store.now_ms(), limit, round(lease_s * 1000))

    async def done(self, ids: Sequence[int]) -> None:
        """See the port."""
        await outbox.done(self._store.native, self._store.scope, ids)


def _looked_at(job_ids: Sequence[str]) -> int:
    return min(len(job_ids), _LOOKS_MAX)


class _Hops:
    """Looks at states; queues are elsewhere."""

    def __init__(self, store: PostgresJobs) -> None:
        self._store = store
        self._looks: Flights[str] = Flights(lambda ids: reading.standings(store.native, store.scope, ids), _looked_at)

    async def standing(self, job_id: str) -> Standing | None:
        """See the port. It is asked once for each message, so those that come together share one statement."""
        standing: Standing | None = await self._looks.call(job_id)
        return standing

    async def questions(self, job_id: str, ids: Sequence[str] | None = None) -> list[Question]:
        """See the port."""
        return await reading.questions(self._store.native, self._store.scope, job_id, ids)

    async def aclose(self) -> None:
        """Wait for looks under way."""
        await self._looks.aclose()

    def share_transactions(self, queues: object) -> bool:
        """See the port: never."""
        return False

    def carried(self, changes: Sequence[Change], *, of_live: bool = True) -> Callable[[Any], object]:
        """See the port."""
        raise Unsupported("jobs: a store in PostgreSQL shares no transaction with queues; apply the changes by `apply`")


async def open_driver(url: str, *, namespace: str, state: Path, upgrade: bool, inline: bool) -> PostgresJobs:
    """Open the schema that the URL names; `state` and `inline` are of the embedded store alone."""
    return await PostgresJobs.open(url, namespace=namespace, upgrade=upgrade)


async def _scope(database: Database, namespace: str) -> Scope:
    find = f"SELECT id FROM {database.schema}.job_namespaces WHERE name = %s"
    rows = await database.query(find, (namespace,))
    if not rows:
        await database.query(
            f"""WITH made AS (INSERT INTO {database.schema}.job_namespaces (name) VALUES (%s)
                              ON CONFLICT DO NOTHING RETURNING id)
                INSERT INTO {database.schema}.job_uncrashed SELECT id FROM made""",
            (namespace,),
        )
        rows = await database.query(find, (namespace,))
    return Scope(rows[0][0], namespace)


_: type[JobStore] = PostgresJobs
