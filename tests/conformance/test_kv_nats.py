"""The suite of key-value storage on NATS, and what is that driver's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from functools import partial
from urllib.parse import urlsplit

import pytest

from groundplane.backends.nats import Address, JetStream, Link, StreamConfig, StreamInfo
from groundplane.core.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from groundplane.kv import KV
from groundplane.kv.conformance import KVConformance
from groundplane.kv.conformance.kit import OpenKV, take
from groundplane.kv.drivers.nats import NatsKV
from groundplane.kv.drivers.nats.names import bucket_token, decoded, encoded, filters
from groundplane.kv.port import Change, ChangeKind
from groundplane.testing import eventually, unique
from groundplane.testing.faults import Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


class TestNatsKV(KVConformance):
    @pytest.fixture
    def open_kv(self, nats_url: str) -> OpenKV:
        return partial(KV.open, nats_url)


@pytest.fixture
async def kv(nats_url: str) -> AsyncIterator[KV]:
    async with KV.open(nats_url, namespace="plane", bucket="things", ttl=True) as opened:
        yield opened


@pytest.fixture
async def jetstream(nats_url: str) -> AsyncIterator[JetStream]:
    async with await Link.open(Address.parse(nats_url), name="foreign") as link:
        yield JetStream(link)


@pytest.mark.req("KV-05.4")
async def test_many_keys_take_the_time_of_one_round_trip(nats_url: str) -> None:
    parts = urlsplit(nats_url)
    keys = [f"k{n}" for n in range(200)]
    async with Proxy.to(parts.hostname or "", parts.port or 0) as proxy:
        proxy.latency(0.02)
        async with KV.open(proxy.through(nats_url)) as far:
            times = []
            for _ in range(3):
                began = time.monotonic()
                await far.put_many(dict.fromkeys(keys, b"v"))
                assert len(await far.get_many(keys)) == 200
                await far.delete_many(keys)
                times.append(time.monotonic() - began)
    assert min(times) < 200 * 0.04 / 4  # a round trip is 40 ms, and there are 4 of them; one by one were 600


@pytest.mark.req("KV-12.2")
async def test_the_limit_of_values_follows_the_servers_with_room_for_headers(own_server: object) -> None:
    server = own_server("nats", config={"max_payload": 65536})  # type: ignore[operator]
    async with KV.open(server.url, ttl=True) as kv:
        assert 60_000 < kv.limits.value_bytes_max < 65536
        value = b"x" * kv.limits.value_bytes_max
        revision = await kv.create("日" * 255, value, ttl_s=60)
        await kv.put_many({"a": value, "b": value}, ttl_s=60)
        entry = await kv.get("日" * 255)
        assert entry is not None
        assert (entry.value, entry.revision) == (value, revision)
        with pytest.raises(InvalidArgument, match="value: "):
            await kv.put("a", value + b"x")


@pytest.mark.req("KV-01.2", "KV-13.1")
async def test_other_clients_read_and_write_a_bucket_by_its_documented_layout(kv: KV, jetstream: JetStream) -> None:
    revision = await kv.put("a.b/c d", b"1")
    stored = await jetstream.get_last("KV_plane__things", "$KV.plane__things.a.b/.c=20d")
    assert stored is not None
    assert (stored.payload, stored.seq) == (b"1", revision)
    ack = await jetstream.publish("$KV.plane__things.theirs", b"2")
    entry = await kv.get("theirs")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"2", ack.seq)
    await jetstream.publish("$KV.plane__things.theirs", b"", headers={"KV-Operation": "DEL"})
    assert await kv.get("theirs") is None
    await jetstream.publish("$KV.plane__things.not=ours", b"3")
    assert (await kv.keys()).items == ["a.b/c d"]
    async with kv.watch() as watch:
        assert [change.key for change in await watch.snapshot()] == ["a.b/c d"]


@pytest.mark.req("KV-04", "KV-14")
async def test_the_revision_of_a_removal_is_never_taken_for_that_of_a_value(kv: KV) -> None:
    async with kv.watch("a") as watch:
        await kv.put("a", b"1")
        await kv.delete("a")
        removed = (await take(watch, 2))[1]
    assert removed.kind is ChangeKind.DELETE
    with pytest.raises(NotFound):
        await kv.update("a", b"2", revision=removed.revision)
    with pytest.raises(NotFound):
        await kv.delete("a", revision=removed.revision)
    assert await kv.get("a") is None


@pytest.mark.req("KV-16")
async def test_a_watch_of_a_bucket_that_is_deleted_and_made_anew_goes_on(
    kv: KV, jetstream: JetStream, nats_url: str
) -> None:
    await kv.put("a", b"1")
    async with kv.watch() as watch:
        await watch.snapshot()
        await jetstream.delete_stream("KV_plane__things")
        with pytest.raises(Unavailable):
            await kv.status()
        async with KV.open(nats_url, namespace="plane", bucket="things") as again:
            revision = await again.put("b", b"2")
            found = {change.key: change for change in await take(watch, 2)}
    assert found["b"] == Change(kind=ChangeKind.PUT, key="b", value=b"2", revision=revision)
    assert found["a"].kind is ChangeKind.DELETE


@pytest.mark.req("KV-14")
async def test_a_stream_that_another_tool_made_is_given_what_a_bucket_needs(
    nats_url: str, jetstream: JetStream
) -> None:
    await jetstream.create_stream(
        StreamConfig(name="KV_groundplane__old", subjects=("$KV.groundplane__old.>",), max_msgs_per_subject=5)
    )
    async with KV.open(nats_url, bucket="old", ttl=True, history=2) as kv:
        await kv.put_many({"a": b"1", "b": b"1"}, ttl_s=60)
        assert (await kv.status()).history == 5


async def test_two_openers_of_one_new_bucket_both_get_it(nats_url: str) -> None:
    async def use(n: int) -> int:
        async with KV.open(nats_url, bucket="new", history=3) as kv:
            await kv.put(f"k{n}", b"")
            return (await kv.status()).history

    assert await asyncio.gather(*(use(n) for n in range(6))) == [3] * 6


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("nats://127.0.0.1:4222?replicas=2", "replicas"),
        ("nats://127.0.0.1:4222?replica=1", "replica"),
        ("nats://127.0.0.1:4222/path", "path"),
    ],
)
async def test_a_bad_url_is_refused_before_anything_is_sent(url: str, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        async with KV.open(url):
            pass


async def test_a_bucket_with_more_replicas_than_servers_is_refused_by_name(nats_url: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        async with KV.open(f"{nats_url}?replicas=3"):
            pass
    assert caught.value.reason == "not_a_cluster"


def test_names_of_buckets_never_meet_and_are_bounded() -> None:
    pairs = [
        ("a", "b"),
        ("a_", "b"),
        ("a", "_b"),
        ("a_u", "b"),
        ("a.b", "c"),
        ("a", "b.c"),
        ("a_d", "c"),
        ("a__b", "c"),
    ]
    assert len({bucket_token(*pair) for pair in pairs}) == len(pairs)
    with pytest.raises(InvalidArgument, match="too long"):
        bucket_token("_" * 128, "_" * 128)


@pytest.mark.parametrize(
    ("key", "tokens"),
    [("a", "a"), ("a.b", "a.b"), ("a/b", "a/.b"), ("a b", "a=20b"), ("a=b", "a=3Db"), (".", "=2E"), ("a.", "a=2E"),
     ("/", "/"), ("a/", "a/"), ("//", "/./"), ("a..b", "a.=2Eb"), ("*", "=2A"), ("é", "=C3=A9")],
)  # fmt: skip
def test_keys_are_encoded_as_the_documentation_says(key: str, tokens: str) -> None:
    assert encoded(key) == tokens
    assert decoded(tokens) == key


@pytest.mark.parametrize("tokens", ["a=", "a=2", "a=2e", "a=61", "a=FF", "a.", "a..b", "a/b", "=C3", "ü"])
def test_what_is_not_encoded_as_ours_is_no_key(tokens: str) -> None:
    assert decoded(tokens) is None


def test_a_prefix_that_ends_a_token_is_filtered_by_the_server() -> None:
    assert filters("") == [">"]
    assert filters("services/orders/") == ["services/.orders/.>", "services/.orders/"]
    assert filters("services/ord") == ["services/.>"]
    assert filters("a.") == ["a.>", "a=2E"]
    assert filters("a") == [">"]


@pytest.mark.req("KV-06")
async def test_a_reader_that_was_slower_than_a_removal_is_remembered_is_told_of_it_all_the_same(nats_url: str) -> None:
    async with KV.open(nats_url, bucket="deep", history=2, ttl=True) as kv, kv.watch() as watch:
        driver = kv.driver
        assert isinstance(driver, NatsKV)
        await watch.snapshot()
        await kv.put("gone", b"1", ttl_s=2)
        assert (await watch.receive(30.0)) is not None
        for n in range(6):  # more than the server sends before it waits for the reader
            await kv.put(f"large{n}", bytes(1_000_000))
        await eventually(partial(_is_forgotten, driver, "gone"), timeout_s=60)
        await kv.put("after", b"1")
        told: dict[str, ChangeKind] = {}
        while not {"gone", "after"} <= told.keys() and (change := await watch.receive(30.0)) is not None:
            told[change.key] = change.kind
    assert (told["after"], told["gone"] is ChangeKind.PUT) == (ChangeKind.PUT, False)


async def _is_forgotten(driver: NatsKV, key: str) -> bool:
    """Whether not even the note of its removal is there."""
    return await driver.native.get_last(driver._names.stream, driver._names.subject(key)) is None


@pytest.mark.req("KV-07.1")
async def test_of_two_that_let_a_bucket_keep_more_at_the_same_moment_the_one_that_wants_more_wins(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = JetStream.update_stream
    begun, go = asyncio.Event(), asyncio.Event()

    async def late(self: JetStream, config: StreamConfig) -> StreamInfo:
        if config.max_msgs_per_subject == 3:
            begun.set()
            await go.wait()
        return await update(self, config)

    async def shallow() -> int:
        async with KV.open(nats_url, bucket="raced", history=3) as kv:
            return (await kv.status()).history

    async with KV.open(nats_url, bucket="raced"):
        pass
    monkeypatch.setattr(JetStream, "update_stream", late)
    opening = asyncio.create_task(shallow())
    await begun.wait()
    async with KV.open(nats_url, bucket="raced", history=5) as deep:
        go.set()
        assert await opening == 5
        for n in range(5):
            await deep.put("k", b"%d" % n)
        assert len(await deep.history("k")) == 5


@pytest.mark.parametrize(("lost", "opens"), [(1, True), (2, False)])
async def test_a_bucket_that_nobody_answers_for_yet_is_asked_for_once_more(
    nats_url: str, monkeypatch: pytest.MonkeyPatch, lost: int, opens: bool
) -> None:
    asked, stream_info = 0, JetStream.stream_info

    async def unanswered(jetstream: JetStream, name: str) -> StreamInfo:
        nonlocal asked
        asked += 1
        if asked <= lost:
            raise DeadlineExceeded("nobody answers")
        return await stream_info(jetstream, name)

    monkeypatch.setattr(JetStream, "stream_info", unanswered)
    with nullcontext() if opens else pytest.raises(DeadlineExceeded):
        async with KV.open(nats_url, namespace=unique("plane")) as kv:
            assert await kv.put("k", b"1") > 0
    assert asked == 2
