"""Keys: made, looked up, revoked, expired."""

from __future__ import annotations

import asyncio

import pytest

from groundplane.core.errors import AlreadyExists, Closed, InvalidArgument, NotFound
from groundplane.security.conformance.waiting import until_gone
from groundplane.security.keys import key_id_of
from groundplane.security.store import Security


class KeyConformance:
    """What every store of keys does."""

    pytestmark = pytest.mark.anyio

    @pytest.mark.req("GATE-08")
    async def test_a_key_that_was_made_is_verified_and_tells_its_holder(self, security: Security) -> None:
        made = await security.create_key("ci", ["tools:build.*", "read"], principal="team-a")
        caller = await security.verify(made.secret.reveal())
        assert caller is not None
        assert (caller.principal, caller.name, caller.kind) == ("team-a", "ci", "key")
        assert caller.scopes == ("read", "tools:build.*")
        assert caller.key_id == made.key.key_id == key_id_of(made.secret.reveal())

    @pytest.mark.req("GATE-08")
    async def test_the_principal_of_a_key_is_its_name_where_none_is_given(self, security: Security) -> None:
        made = await security.create_key("ci", ["tools:*"])
        assert made.key.principal == "ci"

    @pytest.mark.req("GATE-08")
    async def test_what_is_kept_of_a_key_does_not_open_anything(self, security: Security) -> None:
        made = await security.create_key("ci", ["tools:*"])
        found = await security.driver.keys.find(made.key.key_id)
        assert found is not None
        secret = made.secret.reveal().split("_", 2)[2]
        assert len(found.digest) == 32
        assert secret not in repr(found)
        assert secret.encode() not in found.digest
        assert secret not in repr(made)

    @pytest.mark.req("GATE-08")
    async def test_a_wrong_secret_an_unknown_id_and_what_is_no_key_open_nothing(self, security: Security) -> None:
        made = (await security.create_key("ci", ["tools:*"])).secret.reveal()
        last = "A" if made[-1] != "A" else "B"
        wrong = [made[:-1] + last, "gp_" + "a" * 16 + made[19:], made + "x", "", "gp_", "nonsense", made.upper()]
        for text in wrong:
            assert await security.verify(text) is None, text
        assert await security.verify(made) is not None

    @pytest.mark.req("GATE-18")
    async def test_a_revoked_key_opens_nothing_for_whoever_looks_it_up(
        self, security: Security, replica: Security
    ) -> None:
        made = await security.create_key("ci", ["tools:*"])
        revoked = await security.revoke_key(made.key.key_id)
        assert revoked.revoked_at is not None
        again = await replica.revoke_key(made.key.key_id)
        assert again.revoked_at == revoked.revoked_at
        assert await replica.verify(made.secret.reveal()) is None
        assert await replica.caller_of(made.key.key_id) is None

    @pytest.mark.req("GATE-08")
    async def test_an_expired_key_opens_nothing(self, security: Security) -> None:
        made = await security.create_key("short", ["tools:*"], ttl_s=2.0)
        assert made.key.expires_at == made.key.created_at + 2000
        assert await security.verify(made.secret.reveal()) is not None
        await until_gone(lambda: security.verify(made.secret.reveal()))
        found = await security.driver.keys.find(made.key.key_id)
        assert found is not None
        assert not found.live

    @pytest.mark.req("GATE-18")
    async def test_a_name_is_free_again_when_its_key_is_revoked(self, security: Security) -> None:
        made = await security.create_key("ci", ["tools:*"])
        with pytest.raises(AlreadyExists, match="'ci'"):
            await security.create_key("ci", ["read"])
        await security.revoke_key(made.key.key_id)
        assert (await security.create_key("ci", ["read"])).key.key_id != made.key.key_id

    @pytest.mark.req("GATE-18")
    async def test_of_keys_of_one_name_made_at_once_one_is_made(self, security: Security, replica: Security) -> None:
        made = await asyncio.gather(
            *(one.create_key("ci", ["tools:*"]) for one in [security, replica] * 5), return_exceptions=True
        )
        assert sorted(type(one).__name__ for one in made) == ["AlreadyExists"] * 9 + ["CreatedKey"]

    @pytest.mark.req("GATE-18")
    async def test_keys_are_listed_in_pages_with_revoked_ones_and_without_secrets(self, security: Security) -> None:
        made = [(await security.create_key(f"k{n}", ["read"])).key for n in range(5)]
        await security.revoke_key(made[0].key_id)
        first = await security.list_keys(limit=3)
        rest = await security.list_keys(after=first[-1].key_id, limit=3)
        assert sorted(one.name for one in [*first, *rest]) == [f"k{n}" for n in range(5)]
        assert {one.name for one in [*first, *rest] if one.revoked_at is not None} == {"k0"}

    @pytest.mark.req("GATE-18")
    async def test_the_last_use_of_a_key_is_noted(self, security: Security, replica: Security) -> None:
        made = await security.create_key("ci", ["tools:*"])
        assert made.key.last_used_at is None
        await security.verify(made.secret.reveal())
        await security.upkeep()
        (key,) = await replica.list_keys()
        assert key.last_used_at is not None
        assert key.last_used_at >= key.created_at

    async def test_a_key_that_nobody_made_is_not_revoked(self, security: Security) -> None:
        with pytest.raises(NotFound) as caught:
            await security.revoke_key("a" * 16)
        assert caught.value.reason == "key_not_found"

    @pytest.mark.parametrize(
        ("name", "scopes", "field"),
        [("a b", ["read"], "name"), ("ci", [], "scopes"), ("ci", ["reed"], "scopes"), ("ci", ["tools:a b"], "scopes")],
    )
    async def test_what_no_key_may_have_is_refused_by_name(
        self, security: Security, name: str, scopes: list[str], field: str
    ) -> None:
        with pytest.raises(InvalidArgument, match=f"^{field}"):
            await security.create_key(name, scopes)
        assert await security.list_keys() == []

    async def test_a_closed_store_refuses_and_may_be_closed_twice(self, security: Security) -> None:
        made = await security.create_key("ci", ["tools:*"])
        await security.aclose()
        await security.aclose()
        with pytest.raises(Closed):
            await security.verify(made.secret.reveal())
        with pytest.raises(Closed):
            await security.list_keys()
