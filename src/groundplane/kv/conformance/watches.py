"""Watches (KV-06, 16)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.kv.conformance.kit import PATIENCE_S, QUIET_S, Kit, OpenKV, eventually, take, told
from groundplane.kv.port import Change, ChangeKind
from groundplane.kv.store import KV


class WatchConformance(Kit):
    """What every store tells those who watch."""

    @pytest.mark.req("KV-06")
    @pytest.mark.parametrize("selection", [{"key": "a/b"}, {"prefix": "a/"}, {"prefix": "a/b"}, {}], ids=str)
    async def test_a_watch_sees_put_then_delete_each_with_key_and_revision(
        self, open_kv: OpenKV, kv: KV, selection: dict[str, Any]
    ) -> None:
        async with open_kv() as writer, kv.watch(**selection) as watch:
            assert await watch.snapshot() == []
            assert watch.synced
            revision = await writer.put("a/b", b"1")
            assert await take(watch, 1) == [Change(kind=ChangeKind.PUT, key="a/b", value=b"1", revision=revision)]
            await writer.delete("a/b")
            [change] = await take(watch, 1)
            assert (change.kind, change.key, change.value) == (ChangeKind.DELETE, "a/b", b"")
            assert change.revision == watch.revision == revision + 1
            await writer.put("a/b", b"2")
            await take(watch, 1)
            await writer.purge("a/b")
            [change] = await take(watch, 1)
            assert change.kind is ChangeKind.DELETE

    @pytest.mark.req("KV-06")
    async def test_a_watch_hears_of_its_own_keys_alone(self, kv: KV) -> None:
        async with kv.watch("a") as one, kv.watch(prefix="a/") as many:
            await kv.put_many({"b": b"", "a": b"1", "a/": b"2", "a/b": b"3", "aa": b"", "A": b"", "b/a/": b""})
            assert [change.key for change in await take(one, 1)] == ["a"]
            assert [change.key for change in await take(many, 2)] == ["a/", "a/b"]
            for watch in (one, many):
                assert await watch.receive(QUIET_S) is None

    @pytest.mark.req("KV-16")
    async def test_the_snapshot_is_what_is_there_in_the_order_of_revisions(self, kv: KV) -> None:
        await kv.put_many({"a": b"1", "b": b"1", "c": b"1"})
        await kv.put("a", b"2")
        await kv.delete("b")
        async with kv.watch() as watch:
            assert not watch.synced
            first = await watch.receive()
            assert first is not None
            assert (first.kind, first.key, first.value) == (ChangeKind.PUT, "c", b"1")
            assert not watch.synced
            found = [(change.kind, change.key, change.value) for change in await watch.snapshot()]
            assert found == [(ChangeKind.PUT, "a", b"2")]
            assert watch.synced

            async def flowing() -> bool:
                return watch.flowing

            await eventually(flowing)

    @pytest.mark.req("KV-16")
    async def test_a_large_snapshot_comes_whole(self, kv: KV) -> None:
        names = [f"k{n:04}" for n in range(1800)]
        for start in range(0, len(names), 600):
            await kv.put_many(dict.fromkeys(names[start : start + 600], b"v"))
        async with kv.watch(prefix="k") as watch:
            assert [change.key for change in await watch.snapshot()] == names

    @pytest.mark.req("KV-16")
    async def test_there_is_no_gap_between_snapshot_and_stream(self, open_kv: OpenKV, kv: KV) -> None:
        """Watches that begin while somebody writes new keys see every one of them."""
        names = [f"k{n:03}" for n in range(200)]

        async def write() -> None:
            for name in names:
                await kv.put(name, name.encode())

        async def watch(store: KV, start: int) -> None:
            async def begun() -> bool:
                return (await store.status()).keys >= start

            await eventually(begun)
            async with store.watch(prefix="k") as watch:
                found = await take(watch, len(names))
                assert [change.key for change in found] == names
                assert [change.value for change in found] == [name.encode() for name in names]

        async with open_kv() as other:
            await asyncio.gather(write(), *(watch((kv, other)[n % 2], n * 30) for n in range(6)))

    @pytest.mark.req("KV-16")
    async def test_what_a_watcher_knows_is_what_is_there(self, open_kv: OpenKV, kv: KV) -> None:
        """However writes, deletes and the watcher interleave, the watcher ends where the bucket does."""
        known: dict[str, bytes] = {}

        async def follow(other: KV) -> None:
            async with other.watch() as watch:
                async for change in watch:
                    if change.kind is ChangeKind.PUT:
                        known[change.key] = change.value
                    else:
                        known.pop(change.key, None)
                    if change.key == "end":
                        return

        async with open_kv() as other:
            follower = asyncio.create_task(follow(other))
            for n in range(150):
                key = f"k{n * 7 % 11}"
                await (kv.delete(key) if n % 3 == 2 else kv.put(key, f"{n}".encode()))
            await kv.put("end", b"")
            await asyncio.wait_for(follower, PATIENCE_S)
        there = await kv.get_many((await kv.keys()).items)
        assert known == {key: entry.value for key, entry in there.items()}

    @pytest.mark.req("KV-06")
    async def test_revisions_rise_within_a_watch(self, kv: KV) -> None:
        async with kv.watch() as watch:
            for n in range(40):
                await kv.put(f"k{n % 4}", f"{n}".encode())
            seen = [(await take(watch, 1))[0]]
            while seen[-1].value != b"39":
                seen += await take(watch, 1)
        revisions = [change.revision for change in seen]
        assert revisions == sorted(set(revisions))

    @pytest.mark.req("KV-16")
    async def test_a_watch_after_a_revision_begins_with_what_changed_since(self, kv: KV) -> None:
        await kv.put_many({"a": b"1", "b": b"1", "c": b"1"})
        revision = await kv.put("a", b"2")
        await kv.put("b", b"2")
        await kv.delete("c")
        async with kv.watch(after=revision) as watch:
            found = await watch.snapshot()
            assert [(one.kind, one.key, one.value) for one in found] == [
                (ChangeKind.PUT, "b", b"2"),
                (ChangeKind.DELETE, "c", b""),
            ]
            await kv.put("d", b"1")
            assert [change.key for change in await take(watch, 1)] == ["d"]
        async with kv.watch(after=(await kv.status()).revision) as watch:
            assert await watch.snapshot() == []

    @pytest.mark.req("KV-16")
    async def test_a_revision_that_never_was_is_refused(self, kv: KV) -> None:
        revision = await kv.put("a", b"1")
        for after in (-1, True, 1.5, revision + 100):
            with pytest.raises(InvalidArgument, match="after: "):
                async with kv.watch(after=after):  # type: ignore[arg-type]
                    pass
        with pytest.raises(InvalidArgument, match="exclude each other"):
            async with kv.watch("a", prefix="b"):
                pass

    @pytest.mark.req("KV-06")
    async def test_a_wait_that_is_cancelled_loses_nothing(self, kv: KV) -> None:
        async with kv.watch() as watch:
            await watch.snapshot()
            for n in range(20):
                waiter = asyncio.create_task(watch.receive())
                await asyncio.sleep(0)
                put = asyncio.create_task(kv.put(f"k{n}", b""))
                await asyncio.sleep(0.001 * (n % 4))
                if not waiter.done():
                    waiter.cancel()
                    await asyncio.wait({waiter})
                await put
                change = (await take(watch, 1))[0] if waiter.cancelled() else waiter.result()
                assert change is not None
                assert change.key == f"k{n}"

    @pytest.mark.req("KV-06")
    async def test_many_watches_of_one_bucket_all_hear(self, kv: KV) -> None:
        async def hear(n: int) -> None:
            async with kv.watch(prefix=f"k{n % 5}") as watch:
                await told(watch, f"k{n % 5}", ChangeKind.PUT, b"last")

        async with asyncio.TaskGroup() as group:
            for n in range(30):
                group.create_task(hear(n))
            await asyncio.sleep(0.01)
            await kv.put_many({f"k{n}": b"last" for n in range(5)})
        assert kv.statistics().watches == 0
