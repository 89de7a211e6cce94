"""Writing, reading, removing: one key, many keys, a whole prefix (KV-01, 02, 05, 07, 08, 09, 12)."""

from __future__ import annotations

import time

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.kv.conformance.kit import Kit, OpenKV
from groundplane.kv.port import MANY_MAX
from groundplane.kv.store import KV


class ValueConformance(Kit):
    """What every store of keys does with values."""

    @pytest.mark.req("KV-01.1")
    async def test_each_put_has_a_higher_revision_than_all_before_it(self, kv: KV) -> None:
        revisions = [await kv.put(key, b"v") for key in ("a", "b", "a", "c", "a")]
        assert revisions == sorted(set(revisions))

    @pytest.mark.req("KV-01.2")
    async def test_get_returns_the_value_with_the_revision_of_its_put(self, kv: KV) -> None:
        before = time.time() * 1000
        revision = await kv.put("a", b"1")
        entry = await kv.get("a")
        assert entry is not None
        assert (entry.key, entry.value, entry.revision) == ("a", b"1", revision)
        assert abs(entry.created_at - before) < 60_000

    @pytest.mark.req("KV-01.3")
    async def test_a_key_that_never_was_is_none(self, kv: KV) -> None:
        assert await kv.get("nobody") is None

    @pytest.mark.req("KV-01.2")
    @pytest.mark.parametrize("value", [b"", b"\x00", bytes(range(256)), b"\xff" * 70_000])
    async def test_any_bytes_are_kept(self, kv: KV, value: bytes) -> None:
        await kv.put("a", value)
        entry = await kv.get("a")
        assert entry is not None
        assert entry.value == value

    @pytest.mark.req("KV-02.1")
    async def test_a_deleted_key_is_gone_and_can_be_written_again(self, kv: KV) -> None:
        first = await kv.put("a", b"1")
        await kv.delete("a")
        assert await kv.get("a") is None
        assert await kv.put("a", b"2") > first + 1
        entry = await kv.get("a")
        assert entry is not None
        assert entry.value == b"2"

    @pytest.mark.req("KV-02.2")
    async def test_deleting_a_missing_key_is_no_error_and_no_write(self, kv: KV) -> None:
        revision = await kv.put("a", b"1")
        await kv.delete("nobody")
        await kv.delete("a")
        await kv.delete("a")
        assert (await kv.status()).revision == revision + 1

    @pytest.mark.req("KV-02.3")
    async def test_exists_tells_what_is_there_now(self, kv: KV) -> None:
        assert not await kv.exists("a")
        await kv.put("a", b"")
        assert await kv.exists("a")
        await kv.delete("a")
        assert not await kv.exists("a")

    @pytest.mark.req("KV-05.1")
    async def test_many_are_written_read_and_deleted_in_one_call_each(self, kv: KV) -> None:
        values = {f"k{n:04}": f"{n}".encode() for n in range(MANY_MAX)}
        revisions = await kv.put_many(values)
        found = await kv.get_many(values)
        assert {key: entry.value for key, entry in found.items()} == values
        assert {key: entry.revision for key, entry in found.items()} == revisions
        assert await kv.delete_many(list(values)) == MANY_MAX
        assert await kv.get_many(values) == {}

    @pytest.mark.req("KV-05.2")
    async def test_absent_keys_are_left_out(self, kv: KV) -> None:
        await kv.put_many({"a": b"1", "c": b"3"})
        assert list(await kv.get_many(["a", "b", "c"])) == ["a", "c"]
        assert await kv.delete_many(["a", "b", "c"]) == 2
        assert await kv.get_many([]) == {}
        assert await kv.put_many({}) == {}
        assert await kv.delete_many([]) == 0

    @pytest.mark.req("KV-05.3")
    async def test_many_keep_the_order_in_which_they_were_given(self, kv: KV) -> None:
        keys = ["z", "a", "m", "b", "y"]
        revisions = await kv.put_many({key: key.encode() for key in keys})
        assert list(revisions) == keys
        assert list(revisions.values()) == sorted(revisions.values())
        assert list(await kv.get_many(reversed(keys))) == keys[::-1]

    @pytest.mark.req("KV-05.4")
    async def test_many_cost_about_as_much_as_one_and_not_as_many(self, kv: KV) -> None:
        keys = [f"k{n}" for n in range(100)]
        one_by_one, at_once = [], []
        for _ in range(3):
            began = time.perf_counter()
            for key in keys:
                await kv.put(key, b"v")
            for key in keys:
                await kv.get(key)
            middle = time.perf_counter()
            await kv.put_many(dict.fromkeys(keys, b"v"))
            await kv.get_many(keys)
            one_by_one.append(middle - began)
            at_once.append(time.perf_counter() - middle)
        assert min(at_once) < min(one_by_one) / 1.5

    @pytest.mark.req("KV-05.1")
    async def test_more_than_many_are_refused_before_anything_is_sent(self, kv: KV) -> None:
        with pytest.raises(InvalidArgument, match="keys: 1001"):
            await kv.put_many({f"k{n}": b"" for n in range(MANY_MAX + 1)})
        assert (await kv.status()).keys == 0

    @pytest.mark.req("KV-05.1")
    async def test_what_is_not_several_keys_is_refused(self, kv: KV) -> None:
        for keys in ("ab", b"ab", None, 5):
            for call in (kv.get_many(keys), kv.delete_many(keys)):  # type: ignore[arg-type]
                with pytest.raises(InvalidArgument, match="keys: "):
                    await call
        for values in ([("a", b"")], "ab", None):
            with pytest.raises(InvalidArgument, match="values: "):
                await kv.put_many(values)  # type: ignore[arg-type]

    @pytest.mark.req("KV-07.1")
    async def test_the_history_is_as_deep_as_the_bucket_was_opened_with(self, kv: KV, deep: KV) -> None:
        for store, expected in ((kv, [b"5"]), (deep, [b"5", b"4", b"3"])):
            revisions = [await store.put("a", f"{n}".encode()) for n in range(1, 6)]
            history = await store.history("a")
            assert [entry.value for entry in history] == expected
            assert [entry.revision for entry in history] == revisions[::-1][: len(expected)]
            assert await store.history("nobody") == []

    @pytest.mark.req("KV-07.1")
    async def test_a_delete_counts_in_the_history_and_leaves_older_values(self, deep: KV) -> None:
        for value in (b"1", b"2", b"3"):
            await deep.put("a", value)
        await deep.delete("a")
        assert await deep.get("a") is None
        assert [entry.value for entry in await deep.history("a")] == [b"3", b"2"]
        await deep.put("a", b"4")
        assert [entry.value for entry in await deep.history("a")] == [b"4", b"3"]

    @pytest.mark.req("KV-07.1")
    async def test_handles_of_different_depth_share_a_bucket(self, open_kv: OpenKV) -> None:
        async with open_kv(bucket="shared", history=3) as deep, open_kv(bucket="shared") as flat:
            for value in (b"1", b"2", b"3", b"4"):
                await flat.put("a", value)
            assert [entry.value for entry in await deep.history("a")] == [b"4", b"3", b"2"]
            assert [entry.value for entry in await flat.history("a")] == [b"4"]

    @pytest.mark.req("KV-07.1", "KV-15.3")
    async def test_whoever_wants_something_else_of_a_bucket_takes_nothing_from_others(
        self, open_kv: OpenKV, deep: KV
    ) -> None:
        await deep.put("a", b"1")
        async with open_kv(bucket="deep", ttl=True):
            await deep.put("a", b"2")
        assert [entry.value for entry in await deep.history("a")] == [b"2", b"1"]

    @pytest.mark.req("KV-07.1")
    async def test_a_history_of_less_than_one_or_more_than_64_is_refused(self, open_kv: OpenKV) -> None:
        for history in (0, 65, -1, True, 1.5):
            with pytest.raises(InvalidArgument, match="history: "):
                async with open_kv(bucket="bad", history=history):
                    pass
        async with open_kv(bucket="deepest", history=64) as kv:
            for n in range(70):
                await kv.put("a", f"{n}".encode())
            assert [entry.value for entry in await kv.history("a")] == [f"{n}".encode() for n in range(69, 5, -1)]

    @pytest.mark.req("KV-07.2")
    async def test_purge_forgets_the_history_too(self, deep: KV) -> None:
        for value in (b"1", b"2", b"3"):
            await deep.put("a", value)
        await deep.purge("a")
        assert await deep.get("a") is None
        assert await deep.history("a") == []
        await deep.put("a", b"4")
        await deep.delete("a")
        await deep.purge("a")
        assert await deep.history("a") == []
        await deep.purge("nobody")

    @pytest.mark.req("KV-08")
    async def test_clear_removes_what_begins_with_the_prefix_and_nothing_else(self, kv: KV) -> None:
        ours = [f"a/{n}" for n in range(7)] + ["a/", "a/b/c", "a/."]
        others = ["a", "b/1", "A/1", "aa/1", "a.1", " a/1"]
        await kv.put_many(dict.fromkeys(ours + others, b"v"))
        await kv.delete("a/3")
        assert await kv.clear("a/") == len(ours) - 1
        assert sorted((await kv.keys()).items) == sorted(others)
        assert await kv.clear("a/") == 0
        assert await kv.clear("") == len(others)

    @pytest.mark.req("KV-09")
    async def test_status_tells_of_the_bucket(self, deep: KV) -> None:
        empty = await deep.status()
        await deep.put_many({"a": b"x" * 1000, "b": b"y" * 1000})
        await deep.delete("b")
        status = await deep.status()
        assert (status.bucket, status.keys, status.history, status.ttl) == ("deep", 1, 3, False)
        assert (empty.keys, status.revision) == (0, empty.revision + 3)
        assert status.bytes > empty.bytes + 1000
        assert status.backend
        assert status.limits == deep.limits
        assert (deep.limits.history, deep.limits.ttl_resolution_s) == (3, None)

    @pytest.mark.req("KV-12.1")
    async def test_a_value_of_the_limit_is_kept(self, kv: KV) -> None:
        value = bytes(range(256)) * (kv.limits.value_bytes_max // 256 + 1)
        value = value[: kv.limits.value_bytes_max]
        await kv.put("large", value)
        entry = await kv.get("large")
        assert entry is not None
        assert entry.value == value

    @pytest.mark.req("KV-12.2")
    async def test_a_value_over_the_limit_is_refused_and_nothing_is_written(self, kv: KV) -> None:
        value = b"x" * (kv.limits.value_bytes_max + 1)
        for write in (kv.put("large", value), kv.create("large", value), kv.put_many({"small": b"", "large": value})):
            with pytest.raises(InvalidArgument, match="value: ") as caught:
                await write
            assert caught.value.reason == "payload_too_large"
        assert (await kv.status()).keys == 0

    @pytest.mark.req("KV-12.2")
    async def test_a_value_that_is_not_bytes_is_refused(self, kv: KV) -> None:
        for value in ("text", None, 1, bytearray(b"x")):
            with pytest.raises(InvalidArgument, match="value: "):
                await kv.put("a", value)  # type: ignore[arg-type]
