"""What a key may be, and listing keys (KV-13)."""

from __future__ import annotations

import pytest

from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.kv.conformance.kit import Kit, OpenKV
from groundplane.kv.store import KV

ODD_KEYS = [
    "a", "A", "a.b", "a/b", "a/.b", "a./b", "a:b", "a-b", "a_b", "a b", "a=b", "a=2Eb", "a=2eb", "=", "=3D", "==",
    ".", "..", "...", "/", "//", "///", "a.", ".a", "a/", "/a", "a..b", "a//b", "a/../b", "./a", "~", "~a",
    " ", "  ", " a", "a ", "*", ">", "a.*", "a.>", "a/*/b", "$", "$KV.a", "%", "%2e", "%%", "\\", "'", '"', "#", "?",
    "|", "{a}", "(a)", "[a]", "@", "!", "&", "+", ",", ";", "<", "^", "`", "0", "é", "É", "e\u0301", "ß", "日本",
    "日本/語", "🙂", "🙂.🙂", "ﬀ", "x" * 255, "." * 255, "/" * 255, " " * 255, "*" * 255, "日" * 255, "🙂" * 255,
    "a/" * 127 + "b",
]  # fmt: skip
NO_KEYS = ["", "x" * 256, "a\nb", "a\tb", "a\x00b", "\x7f", "a\u00a0b", "\ud800", "\u200b", None, 1, b"a"]


class KeyConformance(Kit):
    """What every store of keys does with their names."""

    @pytest.mark.req("KV-13.1")
    async def test_odd_keys_are_kept_apart_and_come_back_as_they_were(self, kv: KV) -> None:
        values = {key: f"{n}".encode() for n, key in enumerate(ODD_KEYS)}
        await kv.put_many(values)
        assert {key: entry.value for key, entry in (await kv.get_many(ODD_KEYS)).items()} == values
        for key, value in values.items():
            entry = await kv.get(key)
            assert entry is not None
            assert (entry.key, entry.value) == (key, value)
        assert (await kv.keys()).items == sorted(ODD_KEYS)

    @pytest.mark.req("KV-13.1", "KV-06")
    async def test_any_key_can_be_watched_for_itself(self, kv: KV) -> None:
        await kv.put_many(dict.fromkeys(ODD_KEYS, b"v"))
        for key in ODD_KEYS:
            async with kv.watch(key) as watch:
                assert [change.key for change in await watch.snapshot()] == [key]

    @pytest.mark.req("KV-13.1")
    async def test_any_beginning_of_a_key_is_a_prefix(self, kv: KV) -> None:
        await kv.put_many(dict.fromkeys(ODD_KEYS, b"v"))
        for prefix in {key[:length] for key in ODD_KEYS for length in (0, 1, 2, 3, len(key))}:
            expected = sorted(key for key in ODD_KEYS if key.startswith(prefix))
            assert (await kv.keys(prefix)).items == expected
            async with kv.watch(prefix=prefix) as watch:
                assert sorted(change.key for change in await watch.snapshot()) == expected

    @pytest.mark.req("KV-13.2")
    @pytest.mark.parametrize("key", NO_KEYS, ids=repr)
    async def test_what_cannot_be_a_key_is_refused_by_every_call(self, kv: KV, key: str) -> None:
        calls = [
            kv.get(key), kv.exists(key), kv.put(key, b""), kv.create(key, b""), kv.update(key, b"", revision=1),
            kv.delete(key), kv.purge(key), kv.history(key), kv.get_many([key]), kv.put_many({key: b""}),
            kv.delete_many([key]),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(InvalidArgument, match="key: "):
                await call
        if key is not None:
            with pytest.raises(InvalidArgument, match="key: "):
                async with kv.watch(key):
                    pass

    @pytest.mark.req("KV-13.2")
    async def test_what_cannot_be_a_prefix_or_a_page_is_refused(self, kv: KV) -> None:
        for prefix in ("x" * 256, "a\n", 1):
            with pytest.raises(InvalidArgument, match="prefix: "):
                await kv.keys(prefix)  # type: ignore[arg-type]
            with pytest.raises(InvalidArgument, match="prefix: "):
                await kv.clear(prefix)  # type: ignore[arg-type]
        for cursor in ("", "x" * 256, "a\n", "\ud800", 5):
            with pytest.raises(InvalidArgument, match="cursor: "):
                await kv.keys(cursor=cursor)  # type: ignore[arg-type]
        for bad in (0, (), b""):
            with pytest.raises(InvalidArgument, match="prefix: "):
                async with kv.watch(prefix=bad):  # type: ignore[arg-type]
                    pass
        for limit in (0, 1001, True, 1.5):
            with pytest.raises(InvalidArgument, match="limit: "):
                await kv.keys(limit=limit)  # type: ignore[arg-type]

    @pytest.mark.req("KV-13.1")
    async def test_keys_come_page_by_page_in_order(self, kv: KV) -> None:
        names = [f"p/{n:03}" for n in range(25)]
        await kv.put_many(dict.fromkeys([*names, "o", "q"], b"v"))
        await kv.delete("p/007")
        names.remove("p/007")
        seen: list[str] = []
        cursor = None
        while True:
            page = await kv.keys("p/", cursor=cursor, limit=5)
            assert len(page.items) <= 5
            seen += page.items
            cursor = page.cursor
            if cursor is None:
                break
        assert seen == names

    @pytest.mark.req("KV-13.1")
    async def test_buckets_and_namespaces_never_meet(self, open_kv: OpenKV) -> None:
        places = [
            ("a", "b"),
            ("a", "c"),
            ("a_b", "c"),
            ("a", "b_c"),
            ("a.b", "c"),
            ("a", "b.c"),
            ("a-b", "c"),
            ("A", "b"),
        ]
        for namespace, bucket in places:
            async with open_kv(namespace=namespace, bucket=bucket) as kv:
                assert await kv.keys() == await kv.keys("x")
                await kv.put("key", f"{namespace} {bucket}".encode())
        for namespace, bucket in places:
            async with open_kv(namespace=namespace, bucket=bucket) as kv:
                entry = await kv.get("key")
                assert entry is not None
                assert entry.value == f"{namespace} {bucket}".encode()

    @pytest.mark.req("KV-13.1")
    async def test_who_only_looks_makes_no_bucket(self, open_kv: OpenKV) -> None:
        for _ in range(2):
            with pytest.raises(NotFound, match="bucket: 'looked'") as caught:
                async with open_kv(bucket="looked", create=False):
                    pass
            assert caught.value.reason == "bucket_not_found"
        async with open_kv(bucket="looked") as kv, open_kv(bucket="looked", create=False) as looking:
            await kv.put("a", b"1")
            assert await looking.exists("a")

    @pytest.mark.req("KV-13.2")
    async def test_what_cannot_be_a_bucket_is_refused(self, open_kv: OpenKV) -> None:
        for field in ("bucket", "namespace"):
            for name in ("", "a b", "a/b", ".a", "é", "x" * 129, "a*"):
                with pytest.raises(InvalidArgument, match=f"{field}: "):
                    async with open_kv(**{field: name}):
                        pass
