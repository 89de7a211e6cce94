"""Values that expire (KV-15)."""

from __future__ import annotations

import asyncio
import time

import pytest

from groundplane.core.errors import InvalidArgument, NotFound, Unsupported
from groundplane.kv.conformance.kit import Kit, OpenKV, eventually, take, tick_of, told
from groundplane.kv.port import ChangeKind
from groundplane.kv.store import KV


class ExpiryConformance(Kit):
    """What every store with `Capability.TTL` promises, and what a bucket without refuses."""

    @pytest.mark.req("KV-15.1")
    async def test_each_key_goes_at_its_own_time_and_never_before(self, brief: KV) -> None:
        """The first of three goes on time: a machine may stall just when a value is due."""
        for _ in range(3):
            if await self._lives_are_kept(brief):
                return
        pytest.fail("three times in a row something was there a second after its time")

    async def _lives_are_kept(self, brief: KV) -> bool:
        lives = {"short": 2.0, "long": 5.0, "kept": None}
        began, written = {}, {}
        for key, ttl_s in lives.items():
            began[key] = time.monotonic()
            await brief.put(key, b"v", ttl_s=ttl_s)
            written[key] = time.monotonic()

        async def life_of(key: str) -> tuple[float, float]:
            """When a look that still found it began, and when one that did not had ended: a machine may stall."""
            there = written[key]

            async def gone() -> bool:
                nonlocal there
                looked = time.monotonic()
                found = await brief.get(key)
                there = there if found is None else looked
                return found is None

            await eventually(gone)
            return there, time.monotonic()

        short, long = await asyncio.gather(life_of("short"), life_of("long"))
        assert short[1] - began["short"] >= 2.0
        assert long[1] - began["long"] >= 5.0
        assert await brief.exists("kept")
        assert (await brief.keys()).items == ["kept"]
        assert list(await brief.get_many(lives)) == ["kept"]
        assert (await brief.status()).keys == 1
        return short[0] - written["short"] < 3.0 and long[0] - written["long"] < 6.0

    @pytest.mark.req("KV-15.1")
    async def test_overwriting_renews_or_ends_the_ttl(self, brief: KV) -> None:
        tick, names = tick_of(brief), ["renewed", "updated", "ended"]

        async def begun() -> bool:
            """Whether all were overwritten in time: a machine may stall for longer than a tick."""
            began = time.monotonic()
            revisions = await brief.put_many(dict.fromkeys([*names, "left"], b"1"), ttl_s=tick)
            try:
                await brief.update("updated", b"2", revision=revisions["updated"], ttl_s=60.0)
            except NotFound:
                assert time.monotonic() - began >= tick
                return False
            await brief.put("renewed", b"2", ttl_s=60.0)
            await brief.put("ended", b"2")
            return True

        async def gone(*keys: str) -> bool:
            return not await brief.get_many(keys)

        await eventually(begun)
        await eventually(lambda: gone("left"))
        assert list(await brief.get_many(names)) == names
        await brief.put_many({"renewed": b"3", "updated": b"3"}, ttl_s=tick)
        await eventually(lambda: gone("renewed", "updated"))
        assert await brief.exists("ended")

    @pytest.mark.req("KV-15.1")
    async def test_watches_of_every_handle_see_the_expiry_with_its_key(self, open_kv: OpenKV, brief: KV) -> None:
        async with open_kv(bucket="brief") as other, brief.watch("a") as one, other.watch(prefix="a") as two:
            revision = await brief.put("a", b"1", ttl_s=60.0)
            for watch in (one, two):
                [put] = await take(watch, 1)
                assert (put.kind, put.key, put.revision) == (ChangeKind.PUT, "a", revision)
            revision = await brief.put("a", b"2", ttl_s=tick_of(brief))
            for watch in (one, two):  # who looks late may not see what it was before
                assert (await told(watch, "a", ChangeKind.EXPIRED)).revision > revision
        assert await brief.get("a") is None
        assert await brief.history("a") == []

    @pytest.mark.req("KV-15.1")
    async def test_what_expired_can_be_created_anew_and_is_deleted_without_error(self, brief: KV) -> None:
        tick = tick_of(brief)
        await brief.put_many({"a": b"1", "b": b"1"}, ttl_s=tick)

        async def gone() -> bool:
            return not await brief.get_many(["a", "b"])

        await eventually(gone)
        await brief.delete("b")
        await brief.create("a", b"2")
        await asyncio.sleep(tick + 0.2)
        entry = await brief.get("a")
        assert entry is not None
        assert entry.value == b"2"

    @pytest.mark.req("KV-15.1", "KV-07.1")
    async def test_an_older_value_never_returns_when_a_newer_one_expires(self, open_kv: OpenKV, brief: KV) -> None:
        tick = tick_of(brief)
        async with open_kv(bucket="both", history=4, ttl=True) as kv:
            await kv.put("a", b"1")
            await kv.put("a", b"2")
            await kv.put("a", b"3", ttl_s=60.0)
            assert [entry.value for entry in await kv.history("a")] == [b"3"]
            await kv.put("a", b"4")
            await kv.put("a", b"5", ttl_s=tick)

            async def gone() -> bool:
                return await kv.get("a") is None

            await eventually(gone)
            await asyncio.sleep(0.3)
            assert await kv.get("a") is None
            assert await kv.history("a") == []
            await kv.create("a", b"6")
            assert [entry.value for entry in await kv.history("a")] == [b"6"]

    @pytest.mark.req("KV-15.2")
    async def test_a_ttl_finer_than_the_resolution_is_unsupported_and_never_rounded(self, brief: KV) -> None:
        resolution = brief.limits.ttl_resolution_s
        assert resolution is not None
        for ttl_s in (resolution / 2, resolution * 1.5, resolution * 10.25):
            with pytest.raises(Unsupported, match="ttl_s: "):
                await brief.put("a", b"1", ttl_s=ttl_s)
        assert not await brief.exists("a")

    @pytest.mark.req("KV-15.2")
    @pytest.mark.parametrize("ttl_s", [0, -1, 0.0, float("nan"), float("inf"), True, "1", 1e12])
    async def test_what_is_no_ttl_is_refused(self, brief: KV, ttl_s: float) -> None:
        with pytest.raises(InvalidArgument, match="ttl_s: "):
            await brief.put("a", b"1", ttl_s=ttl_s)

    @pytest.mark.req("KV-15.3")
    async def test_a_bucket_opened_without_ttl_refuses_it(self, open_kv: OpenKV, kv: KV) -> None:
        for write in (kv.put("a", b"", ttl_s=1), kv.create("a", b"", ttl_s=1), kv.put_many({"a": b""}, ttl_s=1)):
            with pytest.raises(Unsupported, match="ttl_s: "):
                await write
        revision = await kv.put("a", b"1")
        with pytest.raises(Unsupported, match="ttl_s: "):
            await kv.update("a", b"2", revision=revision, ttl_s=1)
        async with open_kv(bucket="later") as without:
            await without.put("a", b"1")
            async with open_kv(bucket="later", ttl=True) as with_ttl:
                await with_ttl.put("a", b"2", ttl_s=60)
                with pytest.raises(Unsupported):
                    await without.put("a", b"3", ttl_s=60)
