"""The embedded store of security passes the suite of its port, and survives what the suite cannot try."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.security import LOCAL, Action, Security
from groundplane.security.conformance import SecurityConformance
from groundplane.security.drivers.embedded import EmbeddedSecurity

pytestmark = pytest.mark.anyio


class TestEmbeddedSecurity(SecurityConformance):
    @pytest.fixture
    async def security(self, tmp_path: Path) -> AsyncIterator[Security]:
        async with Security.open(state=tmp_path) as security:
            yield security

    @pytest.fixture
    async def replica(self, security: Security, tmp_path: Path) -> AsyncIterator[Security]:
        async with Security.open(state=tmp_path) as replica:
            yield replica


@pytest.mark.req("GATE-08")
async def test_neither_a_key_nor_a_sessions_id_is_anywhere_in_the_file(tmp_path: Path) -> None:
    async with Security.open(state=tmp_path) as security:
        made = await security.create_key("ci", ["tools:*"])
        await security.verify(made.secret.reveal())
        await security.sessions.put("login/0123456789abcdef", "ci", b"", ttl_s=60.0)
        security.record(LOCAL, Action.CALL_TOOL, "done", resource="tool:echo")
    data = (tmp_path / "plane.db").read_bytes()
    assert made.key.key_id.encode() in data
    assert made.secret.reveal().split("_", 2)[2].encode() not in data
    assert b"0123456789abcdef" not in data


@pytest.mark.req("GATE-18")
async def test_the_database_itself_refuses_to_change_an_entry(tmp_path: Path) -> None:
    async with Security.open(state=tmp_path) as security:
        assert isinstance(security.driver, EmbeddedSecurity)
        security.record(LOCAL, Action.CALL_TOOL, "done", resource="tool:echo")
        await security.flush()
        with pytest.raises(GroundplaneError, match="do not change"):
            await security.driver.native.write(lambda tx: tx.execute("UPDATE security_audit SET outcome = 'failed'"))


async def test_namespaces_do_not_see_each_other(tmp_path: Path) -> None:
    async with Security.open(state=tmp_path, namespace="a") as one, Security.open(state=tmp_path, namespace="b") as two:
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


@pytest.mark.parametrize("url", ["embedded://host/folder", "embedded://?x=1", "oracle://"])
async def test_a_bad_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidArgument, match="security"):
        async with Security.open(url, state=tmp_path):
            pytest.fail("opened")
