"""Accepting a job on PostgreSQL (with fsync): beside psycopg alone and Procrastinate, on one server in one run."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import msgspec
from procrastinate import App, PsycopgConnector
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from benchmarks.report import Row, percentile
from groundplane.core.ids import new_id
from groundplane.jobs import Job, Jobs, NewJob
from groundplane.jobs.port import Finish, OutboxMessage, Progress
from groundplane.testing.servers.instance import Instance

SECTION = "Accepting a job on PostgreSQL (fsync; job, event and first message; pools of 8)"
RATE, ALONE = "accepted a second, 32 callers", "accepted, one caller, p50"
CALLERS = 32
POOL = 8
PAYLOAD = b"x" * 300

Accept = Callable[[], Awaitable[object]]

PLAIN_TABLES = """
    CREATE TABLE plain_jobs (id text PRIMARY KEY, tool text, state text, arguments bytea, created_at timestamptz);
    CREATE TABLE plain_events (id bigserial PRIMARY KEY, job text, kind text, data text, created_at timestamptz);
    CREATE TABLE plain_outbox (id bigserial PRIMARY KEY, queue text, message bytea, leased_until timestamptz)"""
_JOB = "INSERT INTO plain_jobs VALUES (%s, 'pipeline', 'pending', %s, now())"
_EVENT = "INSERT INTO plain_events (job, kind, data, created_at) VALUES (%s, 'created', '{}', now())"
_MESSAGE = "INSERT INTO plain_outbox (queue, message) VALUES ('first', %s)"
PLAIN_STATEMENT = f"WITH a AS ({_JOB}), b AS ({_EVENT}) {_MESSAGE}"
"""Job, event and message as plain rows; binds id, arguments, id, message."""


def rows(rounds: int, scale: float) -> list[Row]:
    """Ours beside the peers, and what else the store does, in the same run."""
    count = max(CALLERS, int(2000 * scale))
    with Instance.open("postgres", sync=True) as server:
        return asyncio.run(_measured(server.url, count, rounds))


async def _measured(url: str, count: int, rounds: int) -> list[Row]:
    async with AsyncExitStack() as stack:
        jobs = await stack.enter_async_context(Jobs.open(f"{url}?pool_max={POOL}"))
        accepting: dict[str, Accept] = {
            "Groundplane": lambda: jobs.create(_job(), [_message()]),
            **await _psycopg(url, stack),
            "Procrastinate": await _procrastinate(url, stack),
        }
        rates: dict[str, list[float]] = {name: [] for name in accepting}
        alone: dict[str, list[float]] = {name: [] for name in accepting}
        for _ in range(rounds):  # in turns: the machine is the same for all
            for name, accept in accepting.items():
                rates[name].append(await _rate(accept, count))
                alone[name].append(await _alone(accept, count // 10))
        found: list[Row] = []
        for name in accepting:
            ours = name == "Groundplane"
            found.append(_row(name, RATE, rates[name], bar=1000.0 if ours else None, peer=not ours))
        for name in accepting:
            ours = name == "Groundplane"
            found.append(
                _row(name, ALONE, alone[name], unit="ms", better="lower", bar=10.0 if ours else None, peer=not ours)
            )
        told = [await _told(jobs, url, count // 20) for _ in range(rounds)]
        found.append(_row("Groundplane", "a change told to another process, p50", told, unit="ms", better="lower"))
        changed = [await _changed(jobs, count // 10) for _ in range(rounds)]
        found.append(_row("Groundplane", "changes a second, 32 callers", changed))
        return found


async def _psycopg(url: str, stack: AsyncExitStack) -> dict[str, Accept]:
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(PLAIN_TABLES)
    pool = AsyncConnectionPool(url, min_size=POOL, max_size=POOL, open=False, kwargs={"autocommit": True})
    await stack.enter_async_context(pool)

    async def transaction() -> None:
        job_id = new_id()
        async with pool.connection() as connection, connection.transaction():
            await connection.execute(_JOB, (job_id, PAYLOAD))
            await connection.execute(_EVENT, (job_id,))
            await connection.execute(_MESSAGE, (PAYLOAD,))

    async def statement() -> None:
        job_id = new_id()
        async with pool.connection() as connection:
            await connection.execute(PLAIN_STATEMENT, (job_id, PAYLOAD, job_id, PAYLOAD))

    return {"psycopg alone, a transaction": transaction, "psycopg alone, one statement": statement}


async def _procrastinate(url: str, stack: AsyncExitStack) -> Accept:
    app = App(connector=PsycopgConnector(conninfo=url, min_size=POOL, max_size=POOL))

    @app.task(name="first", pass_context=False)
    def first(payload: str) -> None: ...

    await stack.enter_async_context(app.open_async())
    await app.schema_manager.apply_schema_async()
    payload = PAYLOAD.decode()
    return lambda: first.defer_async(payload=payload)


async def _rate(accept: Accept, count: int) -> float:
    async def caller() -> None:
        for _ in range(count // CALLERS):
            await accept()

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return count // CALLERS * CALLERS / (time.perf_counter() - begin)


async def _alone(accept: Accept, count: int) -> float:
    """p50 in ms."""
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        await accept()
        taken.append((time.perf_counter() - begin) * 1000)
    return percentile(taken, 0.5)


async def _told(jobs: Jobs, url: str, count: int) -> float:
    """From the call that changes a job to the bell of a listener with connections of its own: p50 in ms."""
    job = (await jobs.create(_job())).job
    taken = []
    async with Jobs.open(f"{url}?application_name=other") as other, other.watch() as bell:
        while other.driver.native.statistics().deaf:  # type: ignore[attr-defined]  # noqa: ASYNC110 (a counter)
            await asyncio.sleep(0.01)
        for number in range(count):
            await asyncio.sleep(0.02)
            await bell.wait(0)
            begin = time.perf_counter()
            await jobs.apply(_report(job, number))
            await bell.wait()
            taken.append((time.perf_counter() - begin) * 1000)
    return percentile(taken, 0.5)


async def _changed(jobs: Jobs, count: int) -> float:
    """Three reports and an end for each job, each waited for."""
    made = [(await jobs.create(_job())).job for _ in range(CALLERS)]
    each = max(1, count // CALLERS)

    async def caller(job: Job) -> None:
        for number in range(each):
            await jobs.apply(_report(job, number))
        await jobs.apply(Finish(job_id=job.job_id, envelope_id="root", result=1))

    begin = time.perf_counter()
    await asyncio.gather(*(caller(job) for job in made))
    return CALLERS * (each + 1) / (time.perf_counter() - begin)


def _job() -> NewJob:
    return NewJob(
        job_id=new_id(), tool="pipeline", route=["first"], arguments=msgspec.Raw(b"\xc4\xff" + b"x" * 255),
        arguments_hash="h",
    )  # fmt: skip


def _message() -> OutboxMessage:
    one = new_id()
    return OutboxMessage(queue="first", id=one, payload=PAYLOAD, dedup_key=f"{one}:0")


def _report(job: Job, number: int) -> Progress:
    return Progress(job_id=job.job_id, envelope_id="root", hop=0, hops=1, actor="first", weight=50, message=str(number))


def _row(
    subject: str,
    metric: str,
    values: list[float],
    *,
    unit: str = "/s",
    better: str = "higher",
    bar: float | None = None,
    peer: bool = False,
) -> Row:
    return Row(
        section=SECTION, subject=subject, metric=metric, value=statistics.median(values), unit=unit, rounds=values,
        bar=bar, better=better, peer=peer,
    )  # fmt: skip
