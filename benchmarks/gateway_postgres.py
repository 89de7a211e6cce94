"""The gateway on servers: durable accepts over REST with jobs and ledger on PostgreSQL and queues on RabbitMQ."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from benchmarks.gateway import (
    AT_ONCE,
    ONE_BY_ONE,
    UNDER_LOAD,
    accepts_at_once,
    accepts_one_by_one,
    at_rest,
    dev,
    latency_at,
    process,
)
from benchmarks.report import Row
from groundplane.testing.servers.instance import Instance

SECTION = "Gateway on servers (jobs on PostgreSQL with fsync, queues on RabbitMQ, `groundplane dev` with two actors)"
OURS, BARE = "Groundplane, the jobs run meanwhile", "Starlette and psycopg alone, one statement, nothing runs"


def rows(rounds: int, scale: float) -> list[Row]:
    """Accepts beside those of a web application that only writes the same rows."""
    with Instance.open("postgres", sync=True) as postgres, Instance.open("rabbitmq") as rabbitmq:
        return asyncio.run(_rows(postgres.url, rabbitmq.url, rounds, scale))


async def _rows(postgres: str, rabbitmq: str, rounds: int, scale: float) -> list[Row]:
    one_by_one: dict[str, list[float]] = {OURS: [], BARE: []}
    at_once: dict[str, list[float]] = {OURS: [], BARE: []}
    loaded: dict[str, list[float]] = {OURS: [], BARE: []}
    plane = dev(jobs_url=postgres, ledger_url=postgres, queues_url=rabbitmq)
    async with plane as (url, _), process(["-m", "benchmarks.bare_accepts", postgres], None, {}) as (line, _):
        urls = {OURS: url, BARE: f"http://127.0.0.1:{int(line)}"}
        for _ in range(rounds):  # in turns: the machine is the same for both
            for name in (BARE, OURS):
                one_by_one[name].append(await accepts_one_by_one(urls[name], int(200 * scale)))
                await at_rest(url)
                at_once[name].append(await accepts_at_once(urls[name], int(2000 * scale)))
                await at_rest(url)
                loaded[name].append(await latency_at(urls[name], 0.8 * at_once[name][-1], 10 * scale))
                await at_rest(url)
    return [
        _row(OURS, ONE_BY_ONE, "ms", one_by_one, better="lower", bar=10.0),
        _row(BARE, ONE_BY_ONE, "ms", one_by_one, better="lower", peer=True),
        _row(OURS, AT_ONCE, "/s", at_once, bar=1000.0),
        _row(BARE, AT_ONCE, "/s", at_once, peer=True),
        _row(OURS, UNDER_LOAD, "ms", loaded, better="lower"),
        _row(BARE, UNDER_LOAD, "ms", loaded, better="lower", peer=True),
    ]


def _row(subject: str, metric: str, unit: str, measured: dict[str, list[float]], **more: Any) -> Row:
    values = measured[subject]
    value = statistics.median(values)
    return Row(section=SECTION, subject=subject, metric=metric, unit=unit, value=value, rounds=values, **more)
