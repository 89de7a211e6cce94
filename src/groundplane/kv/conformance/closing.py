"""Closing (KV-11)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from groundplane.core.errors import Closed, GroundplaneError
from groundplane.kv.conformance.kit import PATIENCE_S, Kit, OpenKV
from groundplane.kv.store import KV


class ClosingConformance(Kit):
    """What is left after `aclose`: nothing."""

    @pytest.mark.req("KV-11")
    async def test_every_call_after_close_is_closed(self, open_kv: OpenKV) -> None:
        async with open_kv() as kv:
            await kv.put("a", b"1")
        calls: list[Any] = [
            kv.get("a"), kv.get_many(["a"]), kv.exists("a"), kv.put("a", b""), kv.create("a", b""),
            kv.update("a", b"", revision=1), kv.delete("a"), kv.purge("a"), kv.put_many({"a": b""}),
            kv.put_many({}), kv.delete_many(["a"]), kv.clear(""), kv.keys(), kv.history("a"), kv.status(),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(Closed):
                await call
        with pytest.raises(Closed):
            async with kv.watch():
                pass
        assert "closed" in repr(kv)

    @pytest.mark.req("KV-11")
    async def test_a_watch_that_waits_is_woken_with_closed(self, open_kv: OpenKV) -> None:
        async with open_kv() as kv:

            async def wait() -> None:
                async with kv.watch() as watch:
                    await watch.snapshot()
                    waiting.set()
                    await watch.receive()

            waiting = asyncio.Event()
            waiter = asyncio.create_task(wait())
            await waiting.wait()
            await kv.aclose()
            with pytest.raises(Closed):
                await asyncio.wait_for(waiter, PATIENCE_S)

    @pytest.mark.req("KV-11")
    async def test_closing_is_idempotent_concurrent_and_bounded_while_calls_are_under_way(
        self, open_kv: OpenKV
    ) -> None:
        async with open_kv() as kv:
            calls = [asyncio.create_task(kv.put(f"k{n}", b"x" * 1000)) for n in range(200)]
            await asyncio.sleep(0)
            began = time.monotonic()
            await asyncio.gather(kv.aclose(), kv.aclose(), kv.aclose())
            assert time.monotonic() - began < 10
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(one, int | GroundplaneError) for one in done)
            assert all(one.code == "closed" for one in done if isinstance(one, GroundplaneError))
        async with open_kv() as again:
            found = await again.get_many(f"k{n}" for n in range(200))
            told = {f"k{n}" for n, one in enumerate(done) if isinstance(one, int)}
            assert told <= set(found)

    @pytest.mark.req("KV-11")
    async def test_what_was_written_is_there_when_it_is_opened_again(self, open_kv: OpenKV) -> None:
        async with open_kv() as kv:
            revision = await kv.put("a", b"1")
        async with open_kv() as kv:
            entry = await kv.get("a")
            assert entry is not None
            assert (entry.value, entry.revision) == (b"1", revision)
            assert await kv.put("b", b"1") > revision

    @pytest.mark.req("KV-11")
    async def test_a_handle_that_closes_leaves_others_alone(self, open_kv: OpenKV, kv: KV) -> None:
        async with open_kv() as other:
            await other.put("a", b"1")
        assert await kv.exists("a")
