"""Pools of real servers: in use, idle, waiting; and calls of the ports by outcome."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from groundplane.backends.postgres import Database
from groundplane.core import pools
from groundplane.core.errors import NotFound
from groundplane.core.pools import PoolState
from groundplane.jobs import Jobs
from groundplane.mesh.ledger import JoinKey, open_ledger
from groundplane.queues import Queues
from groundplane.queues.port import OutgoingMessage, QueueSpec
from groundplane.telemetry.metrics import render
from groundplane.telemetry.process import process_registry

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
_WAIT_S = 30.0


async def _until(backend: str, wanted: PoolState) -> None:
    async with asyncio.timeout(_WAIT_S):
        while wanted not in pools.states():
            await asyncio.sleep(0.01)
    assert [one for one in pools.states() if one.backend == backend] == [wanted]


@pytest.mark.req("TEL-07.1")
async def test_a_pool_of_postgresql_tells_who_holds_and_who_waits_for_its_connections(postgres_url: str) -> None:
    mark = "&" if "?" in postgres_url else "?"
    async with Database.open(f"{postgres_url}{mark}pool_min=2&pool_max=2") as database:
        await _until("postgresql", PoolState(backend="postgresql", in_use=0, idle=2, waiting=0, size_max=2))
        await _seen(database, PoolState(backend="postgresql", in_use=2, idle=0, waiting=1, size_max=2))
        await _until("postgresql", PoolState(backend="postgresql", in_use=0, idle=2, waiting=0, size_max=2))
    assert [one for one in pools.states() if one.backend == "postgresql"] == []


async def _seen(database: Database, wanted: PoolState) -> None:
    """Three ask, again and again, until a look comes while two hold and one waits: a machine may stall."""
    found: list[PoolState] = []
    async with asyncio.timeout(_WAIT_S):
        while wanted not in found:
            asking = [asyncio.create_task(database.query("SELECT pg_sleep(0.7)")) for _ in range(3)]
            while wanted not in found and not all(one.done() for one in asking):
                await asyncio.sleep(0.01)
                found = [one for one in pools.states() if one.backend == wanted.backend]
            await asyncio.gather(*asking)
    assert found == [wanted]


@pytest.mark.req("TEL-07.1")
async def test_a_link_to_rabbitmq_tells_its_channels_and_is_not_told_when_closed(rabbitmq_url: str) -> None:
    async with Queues.open(rabbitmq_url) as queues:
        await queues.declare(QueueSpec(name="double"))
        await queues.send(OutgoingMessage(queue="double", payload=b"{}", id="1"))
        (found,) = (one for one in pools.states() if one.backend == "rabbitmq")
        assert (found.in_use >= 1, found.waiting) == (True, 0)
    assert [one for one in pools.states() if one.backend == "rabbitmq"] == []


@pytest.mark.req("TEL-01.4")
async def test_every_port_exports_rate_errors_duration_and_what_is_under_way(tmp_path: Path) -> None:
    registry = process_registry("test", folder=tmp_path)

    def value(series: str) -> float:
        lines = [line for line in render(registry).decode().splitlines() if line.startswith(series)]
        return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0

    async with Jobs.open(state=tmp_path) as jobs, Queues.open(state=tmp_path) as queues:
        async with open_ledger(state=tmp_path) as ledger:
            calls = 'groundplane_port_calls_total{operation="%s",outcome="%s",port="%s"}'
            before = {
                name: value(calls % name)
                for name in (("get", "not_found", "jobs"), ("queues", "ok", "queues"), ("join_items", "ok", "ledger"))
            }
            with pytest.raises(NotFound):
                await jobs.get("0198c0de-0000-7000-8000-000000000000")
            await queues.queues()
            await ledger.join_items(JoinKey("parent", 0, "sum"))
            assert {name: value(calls % name) - count for name, count in before.items()} == dict.fromkeys(before, 1.0)
    for port, operation in (("jobs", "get"), ("queues", "queues"), ("ledger", "join_items")):
        labels = f'{{operation="{operation}",port="{port}"}}'
        assert value(f"groundplane_port_call_seconds_count{labels}") >= 1
        assert value(f"groundplane_port_call_seconds_sum{labels}") > 0
        assert value(f'groundplane_port_calls_active{{port="{port}"}}') == 0
