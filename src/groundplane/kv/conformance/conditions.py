"""Conditional writes (KV-03, 04, 10, 14, 17)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from groundplane.core.errors import AlreadyExists, Conflict, GroundplaneError, InvalidArgument, NotFound
from groundplane.kv.conformance.kit import Kit, OpenKV, eventually, tick_of
from groundplane.kv.store import KV


class ConditionConformance(Kit):
    """What every store of keys promises to writers that compete."""

    @pytest.mark.req("KV-03")
    async def test_create_on_an_existing_key_says_its_revision(self, kv: KV) -> None:
        revision = await kv.create("a", b"1")
        with pytest.raises(AlreadyExists) as caught:
            await kv.create("a", b"2")
        assert caught.value.details == {"key": "a", "revision": revision}
        entry = await kv.get("a")
        assert entry is not None
        assert entry.value == b"1"

    @pytest.mark.req("KV-03")
    async def test_create_works_over_what_was_deleted_or_purged(self, deep: KV) -> None:
        first = await deep.create("a", b"1")
        await deep.delete("a")
        second = await deep.create("a", b"2")
        await deep.purge("a")
        third = await deep.create("a", b"3")
        assert first < second < third

    @pytest.mark.req("KV-04")
    async def test_update_needs_the_present_revision(self, kv: KV) -> None:
        old = await kv.put("a", b"1")
        new = await kv.update("a", b"2", revision=old)
        assert new > old
        with pytest.raises(Conflict) as caught:
            await kv.update("a", b"3", revision=old)
        assert caught.value.details == {"key": "a", "expected": old, "actual": new}
        assert not caught.value.retryable
        entry = await kv.get("a")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"2", new)

    @pytest.mark.req("KV-04")
    async def test_update_of_a_missing_key_is_not_found(self, kv: KV) -> None:
        with pytest.raises(NotFound):
            await kv.update("a", b"1", revision=1)
        revision = await kv.put("a", b"1")
        await kv.delete("a")
        for expected in (revision, revision + 1):
            with pytest.raises(NotFound):
                await kv.update("a", b"2", revision=expected)
        assert await kv.get("a") is None

    @pytest.mark.req("KV-04")
    @pytest.mark.parametrize("revision", [0, -1, True, 1.0, "1", None])
    async def test_what_is_no_revision_is_refused(self, kv: KV, revision: int) -> None:
        with pytest.raises(InvalidArgument, match="revision: "):
            await kv.update("a", b"1", revision=revision)

    @pytest.mark.req("KV-14")
    @pytest.mark.parametrize("method", ["delete", "purge"])
    async def test_a_removal_with_a_revision_needs_the_present_one(self, kv: KV, method: str) -> None:
        remove = getattr(kv, method)
        old = await kv.put("a", b"1")
        new = await kv.put("a", b"2")
        with pytest.raises(Conflict) as caught:
            await remove("a", revision=old)
        assert caught.value.details == {"key": "a", "expected": old, "actual": new}
        await remove("a", revision=new)
        assert await kv.get("a") is None
        with pytest.raises(NotFound):
            await remove("a", revision=new)

    @pytest.mark.req("KV-10.1")
    async def test_parallel_writers_that_update_with_retry_lose_nothing(self, open_kv: OpenKV) -> None:
        async with open_kv() as one, open_kv() as two:
            await one.put("sum", b"0")

            async def add(kv: KV, times: int) -> None:
                while times:
                    entry = await kv.get("sum")
                    assert entry is not None
                    try:
                        await kv.update("sum", str(int(entry.value) + 1).encode(), revision=entry.revision)
                    except Conflict:
                        continue
                    times -= 1

            await asyncio.gather(*(add((one, two)[n % 2], 5) for n in range(15)))
            entry = await one.get("sum")
            assert entry is not None
            assert entry.value == b"75"

    @pytest.mark.req("KV-10.2", "KV-14")
    async def test_of_parallel_creates_exactly_one_wins(self, open_kv: OpenKV) -> None:
        async with open_kv() as one, open_kv() as two:
            for key in ("a", "b", "c"):
                calls = [(one, two)[n % 2].create(key, f"{n}".encode()) for n in range(15)]
                done = await asyncio.gather(*calls, return_exceptions=True)
                won = [(n, revision) for n, revision in enumerate(done) if isinstance(revision, int)]
                assert len(won) == 1
                assert sum(isinstance(error, AlreadyExists) for error in done) == 14
                entry = await two.get(key)
                assert entry is not None
                assert (entry.value, entry.revision) == (str(won[0][0]).encode(), won[0][1])

    @pytest.mark.req("KV-14")
    async def test_of_parallel_conditional_writes_on_one_revision_exactly_one_wins(self, open_kv: OpenKV) -> None:
        async with open_kv() as one, open_kv() as two:
            for _ in range(5):
                revision = await one.put("a", b"0")
                calls: list[Awaitable[object]] = []
                for kv in (one, two):
                    calls += [
                        kv.update("a", b"1", revision=revision),
                        kv.delete("a", revision=revision),
                        kv.purge("a", revision=revision),
                        kv.update("a", b"2", revision=revision),
                    ]
                done = await asyncio.gather(*calls, return_exceptions=True)
                assert sum(not isinstance(outcome, GroundplaneError) for outcome in done) == 1
                assert sum(isinstance(outcome, Conflict | NotFound) for outcome in done) == 7

    @pytest.mark.req("KV-14")
    async def test_many_are_written_all_or_none(self, open_kv: OpenKV) -> None:
        """Two writers of the same keys never mix."""
        keys = [f"k{n}" for n in range(20)]
        async with open_kv() as one, open_kv() as two:

            async def write(kv: KV, value: bytes) -> None:
                for _ in range(10):
                    await kv.put_many(dict.fromkeys(keys, value))

            async def look() -> None:
                entries = (await one.get_many(keys)).values()
                ends = sorted(entry.revision for entry in entries)
                assert ends == list(range(ends[0], ends[0] + 20))
                assert len({entry.value for entry in entries}) == 1

            await asyncio.gather(write(one, b"1"), write(two, b"2"))
            await look()

    @pytest.mark.req("KV-17")
    async def test_compare_and_set_takes_a_ttl(self, brief: KV) -> None:
        tick, long = tick_of(brief), 60.0
        first = await brief.create("a", b"1", ttl_s=long)
        second = await brief.update("a", b"2", revision=first, ttl_s=long)
        with pytest.raises(Conflict):
            await brief.update("a", b"3", revision=first, ttl_s=tick)
        with pytest.raises(AlreadyExists):
            await brief.create("a", b"3", ttl_s=tick)
        third = await brief.update("a", b"3", revision=second, ttl_s=tick)
        await brief.create("b", b"1", ttl_s=tick)

        async def gone() -> bool:
            return not await brief.get_many(["a", "b"])

        await eventually(gone)
        with pytest.raises(NotFound):
            await brief.update("a", b"4", revision=third, ttl_s=tick)
        done = await asyncio.gather(*(brief.create("a", b"5", ttl_s=long) for _ in range(8)), return_exceptions=True)
        assert sum(isinstance(revision, int) for revision in done) == 1
