"""The suite that a driver of blobs must pass. Subclass it and give it one fixture:

class TestMyBlobs(BlobConformance):
    @pytest.fixture
    async def blobs(self):
        async with Blobs.open("mine://…") as blobs:  # an empty store for each test
            yield blobs

The tests are asynchronous: run them with AnyIO's pytest plugin on asyncio.
"""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from groundplane.blobs.port import Capability
from groundplane.blobs.store import METADATA_BYTES_MAX, Blobs
from groundplane.core.errors import (
    AlreadyExists,
    Closed,
    Conflict,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unsupported,
)

_MIB = 1024 * 1024


async def _stream(pieces: int, size: int) -> AsyncIterator[bytes]:
    for number in range(pieces):
        yield bytes([number % 251]) * size


class BlobConformance:
    """What every store of blobs does."""

    pytestmark = pytest.mark.anyio

    @pytest.mark.req("BLOB-01.1")
    async def test_what_was_put_is_read_back_with_its_labels(self, blobs: Blobs) -> None:
        put = await blobs.put("a/b.json", b"{}", content_type="application/json", metadata={"who": "äß"})
        assert await blobs.get("a/b.json") == b"{}"
        assert await blobs.head("a/b.json") == put
        assert (put.key, put.size, put.content_type, put.metadata) == ("a/b.json", 2, "application/json", {"who": "äß"})
        assert put.checksum == hashlib.sha256(b"{}").hexdigest()

    @pytest.mark.req("BLOB-01.1")
    @pytest.mark.parametrize("data", [b"", b"\x00", bytes(range(256)) * 3])
    async def test_any_bytes_are_kept(self, blobs: Blobs, data: bytes) -> None:
        await blobs.put("k", data)
        assert await blobs.get("k") == data
        assert (await blobs.head("k")).size == len(data)

    @pytest.mark.req("BLOB-01.1")
    async def test_a_batch_of_ten_is_stored_listed_and_deleted(self, blobs: Blobs) -> None:
        await asyncio.gather(*(blobs.put(f"batch/{n}", bytes([n])) for n in range(10)))
        assert [info.key async for info in blobs.list("batch/")] == [f"batch/{n}" for n in range(10)]
        assert await blobs.delete(*(f"batch/{n}" for n in range(10))) == 10
        assert [info.key async for info in blobs.list()] == []

    @pytest.mark.req("BLOB-01.1")
    async def test_deleting_what_is_not_there_is_no_error_and_counts_nothing(self, blobs: Blobs) -> None:
        await blobs.put("here", b"1")
        assert await blobs.delete("here", "there", "here") == 1
        assert await blobs.delete("here") == 0

    @pytest.mark.req("BLOB-01.2")
    async def test_five_megabytes_are_streamed_unchanged(self, blobs: Blobs) -> None:
        put = await blobs.put("big", _stream(500, 10_000))
        digest, size = hashlib.sha256(), 0
        async with blobs.open_object("big") as reader:
            async for chunk in reader.chunks(64 * 1024):
                assert len(chunk) <= 64 * 1024
                digest.update(chunk)
                size += len(chunk)
        assert (size, digest.hexdigest()) == (5_000_000, put.checksum)

    @pytest.mark.req("BLOB-01.3")
    async def test_a_hundred_megabytes_pass_through_bounded_memory(self, blobs: Blobs) -> None:
        tracemalloc.start()
        try:
            await blobs.put("huge", _stream(100, _MIB))
            async with blobs.open_object("huge") as reader:
                size = 0
                async for chunk in reader.chunks():
                    size += len(chunk)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert size == 100 * _MIB
        assert peak < 32 * _MIB

    @pytest.mark.req("BLOB-01.1")
    async def test_a_listing_is_in_the_order_of_the_keys_bytes_and_goes_on_from_its_cursor(self, blobs: Blobs) -> None:
        long = "x" * 60
        keys = ["a", "a/b", "a-b", "a.b", "a0", "A", "ä", "a/b/c", f"{long}/y", f"{long}-z", f"{long}0", long, "😀 :_"]
        for key in keys:
            await blobs.put(key, key.encode())
        ordered = sorted(keys, key=str.encode)
        assert [info.key async for info in blobs.list()] == ordered
        found: list[str] = []
        cursor = None
        while True:
            page = await blobs.list_page(cursor=cursor, limit=2)
            found += [info.key for info in page.items]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == ordered
        for prefix in ("a", "a/", "a/b", "x" * 59, long, f"{long}/", "nothing"):
            assert [i.key async for i in blobs.list(prefix)] == [key for key in ordered if key.startswith(prefix)]

    @pytest.mark.req("BLOB-03.1")
    async def test_a_missing_key_is_not_found(self, blobs: Blobs) -> None:
        await blobs.put("a/b", b"")
        for key in ("missing", "a", "a/b/c"):
            with pytest.raises(NotFound, match=f"'{key}'"):
                await blobs.get(key)
            with pytest.raises(NotFound):
                await blobs.head(key)

    @pytest.mark.req("BLOB-04.1")
    async def test_create_refuses_a_key_that_is_there_and_one_of_many_wins(self, blobs: Blobs) -> None:
        results = await asyncio.gather(
            *(blobs.put("once", bytes([n]), create=True) for n in range(8)), return_exceptions=True
        )
        assert sum(isinstance(one, AlreadyExists) for one in results) == 7
        winner = next(n for n, one in enumerate(results) if not isinstance(one, BaseException))
        assert await blobs.get("once") == bytes([winner])

    @pytest.mark.req("BLOB-04.1")
    async def test_if_match_replaces_only_the_object_that_was_seen(self, blobs: Blobs) -> None:
        first = await blobs.put("k", b"1")
        second = await blobs.put("k", b"2", if_match=first.etag)
        assert second.etag != first.etag
        with pytest.raises(Conflict, match="if_match"):
            await blobs.put("k", b"3", if_match=first.etag)
        with pytest.raises(Conflict):
            await blobs.put("absent", b"3", if_match=first.etag)
        assert await blobs.get("k") == b"2"

    @pytest.mark.req("BLOB-04.1")
    async def test_of_many_conditional_replacements_of_one_object_one_wins(self, blobs: Blobs) -> None:
        seen = await blobs.put("k", b"seen")
        results = await asyncio.gather(
            *(blobs.put("k", bytes([n]), if_match=seen.etag) for n in range(8)), return_exceptions=True
        )
        assert sum(isinstance(one, Conflict) for one in results) == 7

    @pytest.mark.req("BLOB-04.1")
    async def test_a_reader_sees_the_object_that_it_opened_while_it_is_replaced(self, blobs: Blobs) -> None:
        await blobs.put("k", b"old" * 1000)
        async with blobs.open_object("k") as reader:
            await blobs.put("k", b"new")
            assert b"".join([chunk async for chunk in reader.chunks(100)]) == b"old" * 1000
        assert await blobs.get("k") == b"new"

    @pytest.mark.req("BLOB-04.1")
    async def test_a_stream_that_fails_leaves_what_was_there(self, blobs: Blobs) -> None:
        async def failing() -> AsyncIterator[bytes]:
            yield b"x" * 3 * _MIB
            raise RuntimeError("the source broke")

        with pytest.raises(RuntimeError, match="the source broke"):
            await blobs.put("new", failing())
        await blobs.put("old", b"old")
        with pytest.raises(RuntimeError):
            await blobs.put("old", failing())
        assert [info.key async for info in blobs.list()] == ["old"]
        assert await blobs.get("old") == b"old"

    @pytest.mark.req("BLOB-04.1")
    async def test_a_cancelled_put_leaves_nothing(self, blobs: Blobs) -> None:
        reached = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield b"x" * 2 * _MIB
            reached.set()
            await asyncio.Event().wait()

        put = asyncio.create_task(blobs.put("k", stuck()))
        await reached.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert [info.key async for info in blobs.list()] == []

    @pytest.mark.req("BLOB-04.1")
    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\x00b", "a\nb", "\ud800", "x" * 256]
    )
    async def test_a_key_that_is_none_is_refused(self, blobs: Blobs, key: str) -> None:
        with pytest.raises(InvalidArgument, match=r"^key: "):
            await blobs.put(key, b"")
        with pytest.raises(InvalidArgument, match=r"^key: "):
            await blobs.get(key)

    @pytest.mark.req("BLOB-04.1")
    @pytest.mark.parametrize(
        "key", ["..a", "a..", "%2e%2e", "~", "C:\\x", "-rf", "con", "ö" * 255, "😀" * 255, "a@", "a+"]
    )
    async def test_an_odd_key_is_kept(self, blobs: Blobs, key: str) -> None:
        await blobs.put(key, key.encode())
        assert await blobs.get(key) == key.encode()
        assert [info.key async for info in blobs.list()] == [key]

    @pytest.mark.req("BLOB-04.1")
    async def test_keys_that_differ_in_case_alone_are_two_objects(self, blobs: Blobs) -> None:
        await blobs.put("Key", b"upper")
        await blobs.put("key", b"lower")
        assert (await blobs.get("Key"), await blobs.get("key")) == (b"upper", b"lower")

    @pytest.mark.req("BLOB-02.1", "BLOB-02.2")
    async def test_the_last_versions_are_kept_and_can_be_read(self, blobs: Blobs) -> None:
        for n in range(5):
            await blobs.put("v/k", b"%d" % n, keep=3, metadata={"n": str(n)})
        assert await blobs.get("v/k") == b"4"
        found = await blobs.versions("v/k")
        assert [await blobs.get("v/k", version=one.id) for one in found] == [b"4", b"3", b"2"]
        assert [(one.key, one.size, one.present) for one in found] == [
            ("v/k", 1, True),
            ("v/k", 1, False),
            ("v/k", 1, False),
        ]
        async with blobs.open_object("v/k", version=found[1].id) as reader:
            assert (reader.info.metadata, [chunk async for chunk in reader.chunks()]) == ({"n": "3"}, [b"3"])
        assert len(await blobs.versions("v/k", limit=2)) == 2
        assert [info.key async for info in blobs.list()] == ["v/k"]
        assert await blobs.prune("v/k", keep=1) == 2
        assert [one.present for one in await blobs.versions("v/k")] == [True]

    @pytest.mark.req("BLOB-02.1")
    async def test_what_was_put_without_keeping_is_a_version_when_it_is_replaced(self, blobs: Blobs) -> None:
        await blobs.put("k", b"first")
        (first,) = await blobs.versions("k")
        assert first.present
        await blobs.put("k", b"second", keep=2)
        second, earlier = await blobs.versions("k")
        assert (second.present, earlier.present) == (True, False)
        assert await blobs.get("k", version=earlier.id) == b"first"
        assert await blobs.versions("nothing") == []
        with pytest.raises(NotFound):
            await blobs.get("nothing", version=earlier.id)

    @pytest.mark.req("BLOB-02.1")
    async def test_of_many_versions_written_at_once_none_is_lost(self, blobs: Blobs) -> None:
        await asyncio.gather(*(blobs.put("k", b"%d" % n, keep=10) for n in range(8)))
        found = await blobs.versions("k")
        assert {await blobs.get("k", version=one.id) for one in found} == {b"%d" % n for n in range(8)}
        assert sum(one.present for one in found) == 1

    @pytest.mark.req("BLOB-02.1")
    async def test_conditions_hold_for_versions_too_and_a_refused_one_leaves_none(self, blobs: Blobs) -> None:
        seen = await blobs.put("k", b"1", keep=5)
        with pytest.raises(AlreadyExists):
            await blobs.put("k", b"2", create=True, keep=5)
        await blobs.put("k", b"3", if_match=seen.etag, keep=5)
        with pytest.raises(Conflict):
            await blobs.put("k", b"4", if_match=seen.etag, keep=5)
        assert [await blobs.get("k", version=one.id) for one in await blobs.versions("k")] == [b"3", b"1"]

    @pytest.mark.req("BLOB-02.2")
    async def test_bounds_of_versions_are_checked(self, blobs: Blobs) -> None:
        for keep in (0, 1001):
            with pytest.raises(InvalidArgument, match=r"^keep: "):
                await blobs.put("k", b"", keep=keep)
        with pytest.raises(InvalidArgument, match=r"^key: "):
            await blobs.put("k~1700000000000.0123abcd", b"")
        if Capability.VERSIONS not in blobs.capabilities:
            with pytest.raises(Unsupported, match=r"^version: "):
                await blobs.driver.versions("k")
            with pytest.raises(Unsupported, match=r"^version: "):
                await blobs.driver.delete(["k"], version="1")

    @pytest.mark.req("BLOB-02.3")
    async def test_objects_under_a_prefix_expire_with_their_versions(self, blobs: Blobs) -> None:
        await blobs.put("old/a", b"1", keep=3)
        await blobs.put("old/a", b"2", keep=3)
        await blobs.put("other", b"1")
        assert await blobs.expire("old/", older_than_s=3600) == 0
        while True:  # a clock ticks in milliseconds
            if await blobs.expire("old/", older_than_s=0.001):
                break
        await blobs.expire("old/", older_than_s=0.001)
        assert [info.key async for info in blobs.list()] == ["other"]

    @pytest.mark.req("BLOB-04.1")
    async def test_presigned_urls_are_given_or_refused_as_declared(self, blobs: Blobs) -> None:
        await blobs.put("k", b"1")
        if Capability.PRESIGN in blobs.capabilities:
            assert "://" in await blobs.presign("k", expires_s=60)
        else:
            with pytest.raises(Unsupported, match="presign"):
                await blobs.presign("k", expires_s=60)
            with pytest.raises(Unsupported, match="presign"):
                await blobs.driver.presign("k", expires_s=60)
        with pytest.raises(InvalidArgument, match="expires_s"):
            await blobs.presign("k", expires_s=0)

    async def test_what_went_through_is_counted(self, blobs: Blobs) -> None:
        await blobs.put("k", b"12345")
        await blobs.get("k")
        await blobs.delete("k", "nothing")
        counted = blobs.statistics()
        assert (counted.puts, counted.put_bytes, counted.gets, counted.get_bytes, counted.deleted) == (1, 5, 1, 5, 1)

    async def test_an_object_over_the_callers_bound_is_refused_unread(self, blobs: Blobs) -> None:
        await blobs.put("k", b"12345")
        assert await blobs.get("k", bytes_max=5) == b"12345"
        with pytest.raises(ResourceExhausted, match=r"^bytes_max: "):
            await blobs.get("k", bytes_max=4)

    async def test_too_many_labels_are_refused(self, blobs: Blobs) -> None:
        with pytest.raises(InvalidArgument, match=r"^metadata: "):
            await blobs.put("k", b"", metadata={"a": "x" * METADATA_BYTES_MAX})
        assert [info.key async for info in blobs.list()] == []

    async def test_after_closing_every_call_raises_closed_and_closing_again_is_harmless(self, blobs: Blobs) -> None:
        await asyncio.gather(blobs.aclose(), blobs.aclose())
        await blobs.aclose()
        with pytest.raises(Closed):
            await blobs.put("k", b"")
        with pytest.raises(Closed):
            await blobs.get("k")
        with pytest.raises(Closed):
            await blobs.list_page()

    async def test_closing_ends_a_put_that_is_blocked(self, blobs: Blobs) -> None:
        reached = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield b"x"
            reached.set()
            await asyncio.Event().wait()

        put = asyncio.create_task(blobs.put("k", stuck()))
        await reached.wait()
        async with asyncio.timeout(10):
            await blobs.aclose()
        with pytest.raises(Closed):
            await put
