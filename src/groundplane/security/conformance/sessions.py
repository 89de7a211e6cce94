"""Sessions and secrets."""

from __future__ import annotations

import asyncio

import pytest

from groundplane.core.errors import InvalidArgument, ResourceExhausted
from groundplane.security.conformance.waiting import until_gone
from groundplane.security.keys import digest_of
from groundplane.security.sessions import DATA_BYTES_MAX
from groundplane.security.store import Security


class SessionConformance:
    """What every store of sessions and secrets does."""

    pytestmark = pytest.mark.anyio

    @pytest.mark.req("GATE-11")
    async def test_a_session_is_read_by_every_replica_with_its_owner(
        self, security: Security, replica: Security
    ) -> None:
        await security.sessions.put("mcp/1", "alice", b"\x00\xff data", ttl_s=60.0)
        found = await replica.sessions.get("mcp/1")
        assert found is not None
        assert (found.owner, found.data) == ("alice", b"\x00\xff data")
        assert 50 < found.left_s <= 60
        assert await replica.sessions.get("mcp/2") is None

    async def test_putting_again_replaces_data_owner_and_time(self, security: Security) -> None:
        await security.sessions.put("s", "alice", b"1", ttl_s=1000.0)
        await security.sessions.put("s", "bob", b"", ttl_s=10.0)
        found = await security.sessions.get("s")
        assert found is not None
        assert (found.owner, found.data) == ("bob", b"")
        assert found.left_s <= 10

    @pytest.mark.req("GATE-11")
    async def test_of_two_replicas_that_change_a_session_at_once_one_wins_and_is_not_written_over(
        self, security: Security, replica: Security
    ) -> None:
        await security.sessions.put("s", "alice", b"0", ttl_s=1000.0)
        won = await asyncio.gather(
            security.sessions.update("s", b"1", before=b"0"), replica.sessions.update("s", b"2", before=b"0")
        )
        assert sorted(won) == [False, True]
        found = await replica.sessions.get("s")
        assert found is not None
        assert (found.owner, found.data) == ("alice", b"1" if won[0] else b"2")
        assert 900 < found.left_s <= 1000
        assert not await security.sessions.update("other", b"1", before=b"")
        with pytest.raises(InvalidArgument, match=r"^data: has 65537 bytes"):
            await security.sessions.update("s", b"x" * (DATA_BYTES_MAX + 1), before=found.data)

    @pytest.mark.req("GATE-19")
    async def test_an_expired_session_is_not_there_before_any_sweep(self, security: Security) -> None:
        await security.sessions.put("s", "alice", b"1", ttl_s=0.2)
        await until_gone(lambda: security.sessions.get("s"))
        assert not await security.sessions.touch("s", ttl_s=60.0)
        assert not await security.sessions.drop("s")
        assert await security.driver.sessions.sweep() == 1
        assert await security.driver.sessions.sweep() == 0

    async def test_a_session_that_is_touched_lives_on(self, security: Security) -> None:
        await security.sessions.put("s", "alice", b"1", ttl_s=5.0)
        assert await security.sessions.touch("s", ttl_s=600.0)
        found = await security.sessions.get("s")
        assert found is not None
        assert found.left_s > 500
        assert not await security.sessions.touch("other", ttl_s=600.0)

    @pytest.mark.req("GATE-19")
    async def test_a_dropped_session_is_gone_for_every_replica(self, security: Security, replica: Security) -> None:
        await security.sessions.put("s", "alice", b"1", ttl_s=60.0)
        assert await replica.sessions.drop("s")
        assert await security.sessions.get("s") is None
        assert not await security.sessions.drop("s")

    async def test_all_sessions_of_an_owner_end_together_and_no_others(self, security: Security) -> None:
        for name, owner in (("a", "alice"), ("b", "alice"), ("c", "bob")):
            await security.sessions.put(name, owner, b"", ttl_s=60.0)
        assert await security.sessions.drop_all("alice") == 2
        assert await security.sessions.get("c") is not None
        assert await security.sessions.drop_all("alice") == 0

    async def test_an_owner_has_no_more_sessions_than_allowed_but_may_replace_one(self, security: Security) -> None:
        store = security.driver.sessions
        for name in ("a", "b"):
            await store.put(digest_of(name), "alice", b"", 60.0, most=2)
        with pytest.raises(ResourceExhausted) as caught:
            await store.put(digest_of("c"), "alice", b"", 60.0, most=2)
        assert caught.value.reason == "too_many_sessions"
        await store.put(digest_of("a"), "alice", b"again", 60.0, most=2)
        await store.put(digest_of("c"), "bob", b"", 60.0, most=2)

    async def test_data_ids_and_times_beyond_the_bounds_are_refused(self, security: Security) -> None:
        with pytest.raises(InvalidArgument, match=r"^data"):
            await security.sessions.put("s", "", bytes(DATA_BYTES_MAX + 1), ttl_s=1.0)
        with pytest.raises(InvalidArgument, match=r"^ttl_s"):
            await security.sessions.put("s", "", b"", ttl_s=0.0)
        with pytest.raises(InvalidArgument, match=r"^session_id") as caught:
            await security.sessions.get("secret" * 100)
        assert "secret" not in str(caught.value)

    @pytest.mark.req("GATE-11")
    async def test_a_secret_is_made_once_for_all_that_ask_at_once(self, security: Security, replica: Security) -> None:
        made = await asyncio.gather(*(one.secret("cookies") for one in [security, replica] * 10))
        assert len(set(made)) == 1
        assert len(made[0]) == 32
        assert await security.secret("other") != made[0]
