"""The ledger in PostgreSQL passes the suite of its port, and does what the suite cannot try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.core.errors import InvalidArgument, Unavailable
from groundplane.mesh.ledger import JoinKey, Ledger, Once, open_ledger
from groundplane.mesh.ledger.conformance import LedgerConformance
from groundplane.mesh.ledger.drivers.postgres import PostgresLedger
from groundplane.mesh.ledger.measured import MeasuredLedger

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


class TestPostgresLedger(LedgerConformance):
    @pytest.fixture
    async def ledger(self, postgres_url: str) -> AsyncIterator[Ledger]:
        async with open_ledger(postgres_url) as ledger:
            yield ledger


@pytest.mark.req("MESH-17")
async def test_notes_outlive_the_process_that_wrote_them(postgres_url: str) -> None:
    async with open_ledger(postgres_url) as ledger:
        await ledger.once_begin("k")
        await ledger.once_end("k", 7)
        await ledger.join_add(JoinKey("p", 0, "a"), 0, 2, b"x")
        await ledger.handled(done=["a/e:0"])
    async with open_ledger(postgres_url, state=Path("unused")) as again:
        assert await again.once_begin("k") == Once("done", 7)
        assert await again.join_items(JoinKey("p", 0, "a")) == {0: b"x"}
        assert await again.handled(ask=["a/e:0"]) == {"a/e:0"}


async def test_namespaces_do_not_see_each_other(postgres_url: str) -> None:
    async with open_ledger(postgres_url, namespace="a") as one, open_ledger(postgres_url, namespace="b") as two:
        await one.once_begin("k")
        await one.handled(done=["x/e:0"])
        assert (await two.once_begin("k")).state == "new"
        assert await two.handled(ask=["x/e:0"]) == frozenset()
        assert await two.collect(-3600.0) == 1
        assert (await one.once_begin("k")).state == "begun"


@pytest.mark.req("MESH-12")
async def test_a_handled_delivery_is_forgotten_after_the_window_and_its_row_is_deleted(postgres_url: str) -> None:
    async with open_ledger(postgres_url) as opened:
        assert isinstance(opened, MeasuredLedger)
        ledger = opened.driver
        assert isinstance(ledger, PostgresLedger)
        table = f"{ledger.native.schema}.ledger_handled"
        await ledger.handled(done=["a/old:0", "a/older:0"])
        await ledger.native.query(f"UPDATE {table} SET handled_at = handled_at - interval '590 seconds'")
        assert await ledger.handled(ask=["a/old:0"], done=["a/new:0"]) == {"a/old:0"}
        await ledger.native.query(f"UPDATE {table} SET handled_at = handled_at - interval '11 seconds'")
        assert await ledger.handled(ask=["a/old:0", "a/new:0"], done=["a/older:0"]) == {"a/new:0"}
        assert await ledger.handled(ask=["a/old:0", "a/older:0"]) == {"a/older:0"}
        assert await ledger.native.query(f"SELECT count(*) FROM {table}") == [(2,)]


@pytest.mark.req("MESH-13")
async def test_a_child_that_comes_with_the_release_leaves_nothing_behind(postgres_url: str) -> None:
    async with open_ledger(postgres_url) as opened, open_ledger(postgres_url) as other:
        assert isinstance(opened, MeasuredLedger)
        ledger = opened.driver
        assert isinstance(ledger, PostgresLedger)
        for number in range(20):
            key = JoinKey(f"p{number}", 0, "a")
            await ledger.join_add(key, 0, 3, b"x")
            state, _ = await asyncio.gather(other.join_add(key, 1, 3, b"y"), ledger.join_release(key))
            assert state.arrived == (1 if state.released else 2)
        rows = await ledger.native.query(f"SELECT count(*) FROM {ledger.native.schema}.ledger_children")
        assert rows == [(0,)]


async def test_a_server_that_is_not_there_is_unavailable_within_the_connect_timeout(unused_port: int) -> None:
    with pytest.raises(Unavailable):
        async with asyncio.timeout(5.0), open_ledger(f"postgresql://postgres@127.0.0.1:{unused_port}/postgres"):
            pytest.fail("opened")


async def test_a_bad_address_is_refused_and_names_the_field() -> None:
    with pytest.raises(InvalidArgument, match=r"^ledger.*colour"):
        async with open_ledger("postgresql://u@h/db?colour=red"):
            pytest.fail("opened")


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
