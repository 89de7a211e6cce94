"""Security in PostgreSQL passes the suite of its port, and does what the suite cannot try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.security import LOCAL, Action, Security
from groundplane.security.conformance import SecurityConformance
from groundplane.security.drivers.postgres import PostgresSecurity

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


class TestPostgresSecurity(SecurityConformance):
    @pytest.fixture
    async def security(self, postgres_url: str) -> AsyncIterator[Security]:
        async with Security.open(postgres_url) as security:
            yield security

    @pytest.fixture
    async def replica(self, security: Security, postgres_url: str) -> AsyncIterator[Security]:
        async with Security.open(postgres_url) as replica:
            yield replica


@pytest.mark.req("GATE-18")
async def test_the_database_itself_refuses_to_change_an_entry(postgres_url: str) -> None:
    async with Security.open(postgres_url) as security:
        assert isinstance(security.driver, PostgresSecurity)
        security.record(LOCAL, Action.CALL_TOOL, "done", resource="tool:echo")
        await security.flush()
        database = security.driver.native
        with pytest.raises(GroundplaneError, match="do not change"):
            await database.query(f"UPDATE {database.schema}.security_audit SET outcome = 'failed'")


async def test_namespaces_do_not_see_each_other(postgres_url: str) -> None:
    async with Security.open(postgres_url, namespace="a") as one, Security.open(postgres_url, namespace="b") as two:
        made = await one.create_key("ci", ["tools:*"])
        one.record(LOCAL, Action.CALL_TOOL, "done")
        await one.sessions.put("s", "ci", b"", ttl_s=60.0)
        assert await one.list_audit() != []
        assert await two.verify(made.secret.reveal()) is None
        assert await two.list_keys() == []
        assert await two.list_audit() == []
        assert await two.sessions.get("s") is None
        assert await two.secret("cookies") != await one.secret("cookies")
        assert await two.driver.audit.prune(older_than_s=-3600.0, keep=0) == 0


@pytest.mark.req("GATE-18")
async def test_replicas_that_prune_and_note_uses_at_once_do_not_hinder_each_other(postgres_url: str) -> None:
    async with Security.open(postgres_url) as one, Security.open(postgres_url) as two:
        made = [await one.create_key(f"k{n}", ["read"]) for n in range(10)]
        for n in range(500):
            one.record(LOCAL, Action.CALL_TOOL, "done", resource=str(n))
        await one.flush()
        for security, keys in ((one, made), (two, made[::-1])):
            for key in keys:
                await security.verify(key.secret.reveal())
        await asyncio.gather(one.upkeep(), two.upkeep())
        counts = await asyncio.gather(*(each.driver.audit.prune(older_than_s=3600.0, keep=100) for each in (one, two)))
        assert sum(counts) == 400
        assert all(key.last_used_at for key in await one.list_keys())


async def test_a_bad_address_is_refused_and_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^security.*colour"):
        async with Security.open("postgresql://u@h/db?colour=red", state=tmp_path):
            pytest.fail("opened")
