"""Writes that show a term (LEAD-02)."""

from __future__ import annotations

import asyncio

import pytest

from groundplane.core.errors import AlreadyExists, Conflict, InvalidArgument, Unsupported
from groundplane.core.fencing import Fence
from groundplane.kv.conformance.kit import PATIENCE_S, Kit, OpenKV
from groundplane.kv.port import Capability
from groundplane.kv.store import KV


class FenceConformance(Kit):
    """What every store promises to the leader of the day."""

    @pytest.mark.req("LEAD-02")
    async def test_every_write_with_an_older_term_is_refused_and_changes_nothing(self, open_kv: OpenKV) -> None:
        async with open_kv() as new, open_kv() as old:
            if Capability.FENCES not in new.capabilities:
                with pytest.raises(Unsupported):
                    await new.put("a", b"", fence=Fence("n", 1))
                return
            revision = await new.put("a", b"1", fence=Fence("leader", 7))
            late = Fence("leader", 6)
            for write in (
                old.put("a", b"2", fence=late),
                old.put("b", b"2", fence=late),
                old.create("b", b"2", fence=late),
                old.update("a", b"2", revision=revision, fence=late),
                old.delete("a", fence=late),
                old.delete("nobody", fence=late),
                old.purge("a", revision=revision, fence=late),
                old.put_many({"a": b"2", "b": b"2"}, fence=late),
                old.delete_many(["a"], fence=late),
            ):
                with pytest.raises(Conflict) as caught:
                    await write
                assert caught.value.reason == "term_old"
                assert caught.value.details == {"name": "leader", "term": 6, "actual": 7}
            entries = await new.get_many(["a", "b"])
            assert {key: entry.revision for key, entry in entries.items()} == {"a": revision}

    @pytest.mark.req("LEAD-02")
    async def test_the_same_term_writes_on_and_a_higher_one_takes_over(self, kv: KV) -> None:
        if Capability.FENCES not in kv.capabilities:
            pytest.skip(f"{kv!r} has no Capability.FENCES")
        await kv.create("a", b"1", fence=Fence("leader", 1))
        revision = await kv.put("a", b"2", fence=Fence("leader", 1))
        await kv.update("a", b"3", revision=revision, fence=Fence("leader", 2**63 - 1))
        await kv.delete("a", fence=Fence("leader", 2**63 - 1))
        with pytest.raises(Conflict):
            await kv.put("a", b"4", fence=Fence("leader", 2))
        assert await kv.get("a") is None

    @pytest.mark.req("LEAD-02")
    async def test_names_have_terms_of_their_own_and_are_no_keys(self, kv: KV) -> None:
        if Capability.FENCES not in kv.capabilities:
            pytest.skip(f"{kv!r} has no Capability.FENCES")
        await kv.put("a", b"1", fence=Fence("one", 9))
        await kv.put("a", b"2", fence=Fence("two", 1))
        await kv.put("a", b"3")
        assert (await kv.keys()).items == ["a"]
        assert (await kv.status()).keys == 1
        async with kv.watch() as watch:
            assert [change.key for change in await watch.snapshot()] == ["a"]
        assert await kv.clear("") == 1
        with pytest.raises(Conflict):
            await kv.put("a", b"4", fence=Fence("one", 8))

    @pytest.mark.req("LEAD-02")
    async def test_a_fence_goes_with_every_condition(self, kv: KV) -> None:
        if Capability.FENCES not in kv.capabilities:
            pytest.skip(f"{kv!r} has no Capability.FENCES")
        fence = Fence("leader", 3)
        first = await kv.create("a", b"1", fence=fence)
        with pytest.raises(AlreadyExists):
            await kv.create("a", b"2", fence=fence)
        second = await kv.update("a", b"2", revision=first, fence=fence)
        with pytest.raises(Conflict) as caught:
            await kv.update("a", b"3", revision=first, fence=fence)
        assert caught.value.details == {"key": "a", "expected": first, "actual": second}
        await kv.delete("a", revision=second, fence=fence)
        await kv.put_many({"a": b"4", "b": b"4"}, fence=fence)
        assert await kv.delete_many(["a", "b", "c"], fence=fence) == 2
        async with asyncio.TaskGroup() as group:
            for n in range(20):
                group.create_task(kv.create(f"k{n}", b"", fence=fence))
        assert (await kv.status()).keys == 20

    @pytest.mark.req("LEAD-02")
    async def test_after_the_first_write_of_a_term_none_of_an_older_one_gets_through(self, open_kv: OpenKV) -> None:
        async with open_kv() as one, open_kv() as two:
            if Capability.FENCES not in one.capabilities:
                pytest.skip(f"{one!r} has no Capability.FENCES")
            for term in (1, 2, 3):
                begun = asyncio.Event()

                async def lead(kv: KV = one, term: int = term, begun: asyncio.Event = begun) -> int:
                    count = 0
                    while True:
                        try:
                            await kv.put("plan", f"{term}".encode(), fence=Fence("leader", term))
                        except Conflict as error:
                            return count if error.reason == "term_old" else -1
                        count += 1
                        begun.set()

                writers = [asyncio.create_task(lead()) for _ in range(3)]
                await begun.wait()
                revision = await two.put("plan", b"new", fence=Fence("leader", term + 1))
                assert sum(await asyncio.wait_for(asyncio.gather(*writers), PATIENCE_S)) > 0
                entry = await two.get("plan")
                assert entry is not None
                assert (entry.value, entry.revision) == (b"new", revision)

    @pytest.mark.req("LEAD-02")
    @pytest.mark.parametrize(
        "fence", [Fence("", 1), Fence("a b", 1), Fence("a", 0), Fence("a", -1), Fence("a", 2**63), ("a", 1), 1]
    )
    async def test_what_is_no_fence_is_refused(self, kv: KV, fence: Fence) -> None:
        with pytest.raises(InvalidArgument, match="fence"):
            await kv.put("a", b"", fence=fence)
