"""NATS, and the way to it, break under key-value storage: nothing acknowledged is lost or done twice, no watch is deaf,
and what is away is an error, never a missing key.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import cast
from urllib.parse import urlsplit

import pytest

from groundplane.backends.nats import Address, JetStream, Link
from groundplane.core.errors import AlreadyExists, Conflict, DeadlineExceeded, GroundplaneError, NotFound, Unavailable
from groundplane.core.fencing import Fence
from groundplane.core.retry import RetryPolicy
from groundplane.kv import KV
from groundplane.kv.conformance.kit import take, told
from groundplane.kv.drivers.nats import NatsKV
from groundplane.kv.drivers.nats.messages import Outgoing
from groundplane.kv.port import Change, ChangeKind
from groundplane.kv.watching import Watch
from groundplane.testing import eventually
from groundplane.testing.faults import Proxy
from groundplane.testing.servers.contract import Running

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.integration]

QUICK = "request_timeout=2&reconnect_wait_max=0.2"
FAULTS = ["restart", "kill", "pause"]


@pytest.fixture
def server(own_server: Callable[[str], Running]) -> Running:
    return own_server("nats")


@pytest.fixture
async def proxy(nats_url: str) -> AsyncIterator[Proxy]:
    parts = urlsplit(nats_url)
    async with Proxy.to(parts.hostname or "", parts.port or 0) as one:
        yield one


def _strike(server: Running, fault: str, away_s: float = 0.3) -> Callable[[], None]:
    """What breaks the server and mends it, in a thread."""

    def strike() -> None:
        if fault == "restart":
            server.restart()
            return
        (server.kill if fault == "kill" else server.pause)()
        pause.wait(away_s)
        (server.start if fault == "kill" else server.resume)()

    pause = threading.Event()
    return strike


async def _follow(watch: Watch, known: dict[str, bytes]) -> None:
    async for change in watch:
        if change.kind is ChangeKind.PUT:
            known[change.key] = change.value
        else:
            known.pop(change.key, None)


@pytest.mark.req("KV-16")
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_watch_goes_on_over_a_fault_of_the_server_and_misses_nothing(server: Running, fault: str) -> None:
    """Keys are written, deleted and expire before, while and after it; in the end the watcher knows what is there."""
    url = f"{server.url}?{QUICK}"
    async with KV.open(url, ttl=True) as writer, KV.open(url, ttl=True) as watcher:
        known: dict[str, bytes] = {}
        acked: dict[str, tuple[int, bytes]] = {}

        async def write() -> None:
            for n in range(120):
                key, value = f"k{n % 17}", f"{n}".encode()
                try:
                    if n % 5 == 4:
                        await writer.delete(key)
                        acked.pop(key, None)
                    else:
                        acked[key] = (await writer.put(key, value), value)
                except GroundplaneError:
                    acked.pop(key, None)  # whether it was done is not known
                await asyncio.sleep(0.02)

        await writer.put_many({"soon1": b"", "soon2": b""}, ttl_s=1)
        async with watcher.watch() as watch:
            follower = asyncio.create_task(_follow(watch, known))
            writing = asyncio.create_task(write())
            await asyncio.sleep(0.4)
            await asyncio.to_thread(_strike(server, fault))
            await writing
            await writer.put("end", b"")
            await eventually(lambda: "end" in known, timeout_s=10)
            await eventually(lambda: not {"soon1", "soon2"} & set(known), timeout_s=10)
            await eventually(lambda: watch.flowing)
            there = await writer.get_many((await writer.keys()).items)
            assert known == {key: entry.value for key, entry in there.items()}
            for key, (revision, value) in acked.items():
                assert there[key].revision >= revision
                assert there[key].revision > revision or there[key].value == value
            follower.cancel()
            await asyncio.wait({follower})


@pytest.mark.req("KV-16")
async def test_what_vanished_while_the_watcher_was_cut_off_is_told_without_its_marker(
    proxy: Proxy, nats_url: str
) -> None:
    """Another client purges the stream: no removal is left to be heard of. The watcher compares."""
    async with KV.open(proxy.through(nats_url)) as far, KV.open(nats_url) as near:
        await near.put_many({"kept": b"1", "gone": b"1", "changed": b"1"})
        async with far.watch() as watch:
            await watch.snapshot()
            proxy.down()
            await eventually(lambda: not watch.flowing, timeout_s=10)
            async with await Link.open(Address.parse(nats_url), name="foreign") as link:
                await JetStream(link).purge("KV_groundplane__default", subject="$KV.groundplane__default.gone")
            revision = await near.put("changed", b"2")
            await near.put("new", b"1")
            await near.delete("new")
            proxy.restore()
            found = {change.key: change for change in await take(watch, 3)}
            assert found["changed"] == Change(kind=ChangeKind.PUT, key="changed", value=b"2", revision=revision)
            assert found["gone"].kind is ChangeKind.DELETE
            assert found["new"].kind is ChangeKind.DELETE
            await eventually(lambda: watch.flowing, timeout_s=10)
            await near.put("after", b"1")
            await told(watch, "after", ChangeKind.PUT, b"1")


@pytest.mark.req("KV-14", "KV-10.1")
@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_compare_and_set_loses_nothing_and_does_nothing_twice_over_faults(server: Running, fault: str) -> None:
    url = f"{server.url}?{QUICK}"
    added = doubtful = 0

    async def add(kv: KV) -> None:
        nonlocal added, doubtful
        while not over.is_set():
            try:
                entry = await kv.get("sum")
                assert entry is not None  # what is away is an error, never a missing key
                await kv.update("sum", str(int(entry.value) + 1).encode(), revision=entry.revision)
                added += 1
            except Conflict:
                continue
            except (DeadlineExceeded, Unavailable):
                doubtful += 1

    over = asyncio.Event()
    async with KV.open(url) as one, KV.open(url) as two:
        await one.put("sum", b"0")
        adding = [asyncio.create_task(add((one, two)[n % 2])) for n in range(4)]
        for _ in range(3):
            before = added
            await asyncio.to_thread(_strike(server, fault, random.Random(7).random() * 0.5))
            await eventually(lambda before=before: added > before + 10, timeout_s=20)  # type: ignore[misc]
        over.set()
        await asyncio.gather(*adding)
        entry = await one.get("sum")
        assert entry is not None
        assert added <= int(entry.value) <= added + doubtful


Call = Callable[[KV], Awaitable[object]]
LOST: dict[str, Call] = {
    "put": lambda kv: kv.put("a", b"new"),
    "create": lambda kv: kv.create("b", b"new"),
    "update": lambda kv: kv.update("a", b"new", revision=1),
    "delete": lambda kv: kv.delete("a"),
    "delete with a revision": lambda kv: kv.delete("a", revision=1),
    "purge": lambda kv: kv.purge("a"),
    "put_many": lambda kv: kv.put_many({"a": b"new", "b": b"new"}),
    "delete_many": lambda kv: kv.delete_many(["a", "c"]),
    "put with a fence": lambda kv: kv.put("a", b"new", fence=Fence("leader", 1)),
    "update with a fence": lambda kv: kv.update("a", b"new", revision=1, fence=Fence("leader", 1)),
    "put with a TTL": lambda kv: kv.put("a", b"new", ttl_s=60),
}


async def _lose_the_answer(
    far: KV, near: KV, proxy: Proxy, call: Call, then: Call | None = None
) -> asyncio.Future[object]:
    """Begin a call whose write is never answered: it is done, and `then` too, before the connection breaks."""
    before, swallowed = (await near.status()).revision, proxy.traffic().swallowed_bytes
    storing = cast(NatsKV, far.driver)._writing._storing
    store = storing.store

    async def silenced(messages: Sequence[Outgoing]) -> list[int]:
        storing.store = store  # type: ignore[method-assign]
        proxy.half_open("to_client")
        return await store(messages)

    storing.store = silenced  # type: ignore[method-assign]
    calling = asyncio.ensure_future(call(far))

    async def stored() -> bool:
        return (await near.status()).revision > before

    await eventually(stored, timeout_s=10)
    await eventually(lambda: proxy.traffic().swallowed_bytes > swallowed, "its connection has lost an answer")
    if then is not None:
        await then(near)
    proxy.restore()  # connections that lost bytes are reset
    return calling


@pytest.mark.req("KV-14")
@pytest.mark.parametrize("name", [name for name in LOST if "fence" not in name])
async def test_a_write_whose_answer_was_lost_is_done_once_and_answered_at_the_end(
    proxy: Proxy, nats_url: str, name: str
) -> None:
    async with KV.open(proxy.through(nats_url), ttl=True) as far, KV.open(nats_url, ttl=True) as near:
        await near.put("a", b"old")
        await near.put("c", b"old")
        calling = await _lose_the_answer(far, near, proxy, LOST[name])
        answer = await calling
        status = await near.status()
        wrote = 2 if name.endswith("_many") else 1
        assert status.revision == 2 + wrote
        if name == "delete_many":
            assert answer == 2
        elif name == "put_many":
            assert answer == {"a": 3, "b": 4}
        elif isinstance(answer, int):
            assert answer == 3


@pytest.mark.req("KV-14", "LEAD-02")
@pytest.mark.parametrize("name", [name for name in LOST if "fence" in name])
async def test_a_fenced_write_whose_answer_was_lost_is_done_once(proxy: Proxy, nats_url: str, name: str) -> None:
    async with KV.open(proxy.through(nats_url)) as far, KV.open(nats_url) as near:
        await near.put("a", b"old")
        await far.put("other", b"", fence=Fence("leader", 1))  # the term is known by now
        calling = await _lose_the_answer(far, near, proxy, LOST[name])
        revision = await calling
        entry = await near.get("a")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"new", revision)
        assert revision == 4  # after the old value, the term and the other key


@pytest.mark.req("KV-14")
@pytest.mark.parametrize("name", ["create", "update", "delete with a revision"])
async def test_a_lost_answer_with_a_later_write_of_another_is_told_as_not_known(
    proxy: Proxy, nats_url: str, name: str
) -> None:
    async with KV.open(proxy.through(nats_url)) as far, KV.open(nats_url) as near:
        await near.put("a", b"old")
        key = "b" if name == "create" else "a"
        calling = await _lose_the_answer(far, near, proxy, LOST[name], then=lambda kv: kv.put(key, b"theirs"))
        with pytest.raises(DeadlineExceeded) as caught:
            await calling
        assert caught.value.reason == "outcome_unknown"
        entry = await near.get(key)
        assert entry is not None
        assert (entry.value, entry.revision) == (b"theirs", 3)


@pytest.mark.req("KV-14")
async def test_a_write_that_never_reached_the_server_is_refused_as_it_would_have_been(
    proxy: Proxy, nats_url: str
) -> None:
    """Nothing was sent while there was no connection: a refusal is certain."""
    async with KV.open(proxy.through(nats_url)) as far, KV.open(nats_url) as near:
        revision = await near.put("a", b"old")
        proxy.down()
        await eventually(lambda: not far.driver.native.link.is_connected, timeout_s=10)  # type: ignore[attr-defined]
        patient = KV(far.driver, retry=RetryPolicy(attempts=100, base_s=0.05, factor=1.0, jitter=False))
        calls = [
            asyncio.ensure_future(patient.create("a", b"new")),
            asyncio.ensure_future(patient.update("a", b"new", revision=revision + 1)),
            asyncio.ensure_future(patient.update("b", b"new", revision=1)),
        ]
        await asyncio.sleep(0.1)
        proxy.restore()
        refusals = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in refusals] == [AlreadyExists, Conflict, NotFound]


@pytest.mark.req("KV-01.3")
async def test_what_is_away_is_an_error_within_bounded_time_and_never_a_missing_key(
    proxy: Proxy, nats_url: str
) -> None:
    async with KV.open(proxy.through(nats_url)) as far:
        await far.put("a", b"1")
        proxy.down()
        calls = [far.get("a"), far.get_many(["a", "b"]), far.exists("a"), far.keys(), far.history("a"), far.status(),
                 far.put("a", b"2"), far.delete("a"), far.clear("a")]  # fmt: skip
        errors = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
        assert {type(error) for error in errors} == {Unavailable}
        proxy.restore()

        async def there() -> bool:
            return await far.exists("a")

        await eventually(there, timeout_s=10, tolerate=(Unavailable,))
        await asyncio.wait_for(far.aclose(), 10)


@pytest.mark.req("KV-11")
async def test_closing_while_the_server_is_silent_is_bounded(proxy: Proxy, nats_url: str) -> None:
    async with KV.open(proxy.through(nats_url)) as far:
        async with far.watch() as watch:
            proxy.half_open()
            calls = [asyncio.ensure_future(far.put("a", b"")), asyncio.ensure_future(far.get("a"))]
            await asyncio.sleep(0.05)
            await asyncio.wait_for(far.aclose(), 10)
            done = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
            assert all(isinstance(one, GroundplaneError) for one in done)
            with pytest.raises(GroundplaneError):
                await watch.receive(5)
