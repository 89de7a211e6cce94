"""A NATS cluster of three nodes: what is replicated, who is asked, and the loss of each node while everything works."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from fault.cluster_load import OUTAGE, PATIENCE_S, PLANE, load_on, opened
from groundplane.backends.nats import Address, Gone, JetStream, Link, StreamConfig, Watcher
from groundplane.backends.nats import Message as NatsMessage
from groundplane.bus import Bus
from groundplane.bus.drivers.nats import NatsBus
from groundplane.bus.port import Ack, ConsumerSpec, Message
from groundplane.core.errors import Conflict, FailedPrecondition, InvalidArgument, Unavailable
from groundplane.core.fencing import Fence
from groundplane.kv import KV
from groundplane.testing import eventually, unique
from groundplane.testing.servers.nats_cluster import NatsCluster
from leadership_processes import contenders

ROUNDS = int(os.environ.get("GROUNDPLANE_TEST_FAULT_ROUNDS", "3"))
"""Of the loss of a node; six are each node by each signal."""
pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.nats, pytest.mark.timeout(240 + 30 * ROUNDS)]


@pytest.fixture(scope="module")
def cluster(own_nats_cluster_of_module: NatsCluster) -> NatsCluster:
    return own_nats_cluster_of_module


@pytest.mark.req("BUS-24.2")
async def test_replicas_of_the_url_are_those_of_streams_consumers_and_buckets(cluster: NatsCluster) -> None:
    plane, one, three = (
        unique("plane"),
        f"{cluster.url}?request_timeout=2",
        f"{cluster.url}?request_timeout=2&replicas=3",
    )
    streams = [f"bus+{plane}+{kind}" for kind in ("events", "results", "dead")] + [f"KV_{plane}__default"]
    async with AsyncExitStack() as stack:
        before = await opened(stack, lambda: Bus.open(one, namespace=plane, name="one"))
        kv = await opened(stack, lambda: KV.open(one, namespace=plane))
        await opened(stack, lambda: before.subscribe("orders.*", lambda _: None, group="g"))
        jetstream: JetStream = kv.driver.native  # type: ignore[attr-defined]
        assert [await _replicas(jetstream, name) for name in streams] == [1] * 4

        bus = await opened(stack, lambda: Bus.open(three, namespace=plane))
        await opened(stack, lambda: KV.open(three, namespace=plane))
        await opened(stack, lambda: bus.handle("desk", {"do": lambda: None}))
        streams.append(f"bus+{plane}+commands+desk")
        assert [await _replicas(jetstream, name) for name in streams] == [3] * 5
        for stream in (streams[0], streams[-1]):
            for name in await jetstream.consumer_names(stream):
                await eventually(
                    lambda stream=stream, name=name: _is_replicated(jetstream, stream, name),  # type: ignore[misc]
                    f"{name} has three replicas",
                    timeout_s=PATIENCE_S,
                    tolerate=OUTAGE,
                )

        await opened(stack, lambda: Bus.open(one, namespace=plane))
        assert await _replicas(jetstream, streams[0]) == 3


async def _replicas(jetstream: JetStream, stream: str) -> int:
    info = await eventually(lambda: jetstream.stream_info(stream), timeout_s=PATIENCE_S, tolerate=OUTAGE)
    return int(info.config["num_replicas"])


async def _is_replicated(jetstream: JetStream, stream: str, name: str) -> bool:
    answer = await jetstream.api(f"CONSUMER.INFO.{stream}.{name}")
    return len(answer["cluster"].get("replicas") or ()) == 2


@pytest.mark.req("BUS-24.2")
async def test_replicas_that_cannot_be_had_are_refused(cluster: NatsCluster, nats_url: str) -> None:
    for url in (f"{cluster.url}?replicas=5", f"{nats_url}?replicas=3"):
        for open_it in (Bus.open, KV.open):
            with pytest.raises(FailedPrecondition, match="replicas") as caught:
                async with open_it(url, namespace=unique("plane")):
                    pass
            assert caught.value.reason == "not_a_cluster"
    with pytest.raises(InvalidArgument, match=r"bus: .*replicas='2'; write one of 1, 3, 5"):
        async with Bus.open(f"{cluster.url}?replicas=2"):
            pass


@pytest.mark.req("KV-01", "KV-02.1", "KV-04", "KV-14")
async def test_what_one_client_has_written_another_reads_deletes_and_updates_at_any_node(
    cluster: NatsCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    send = Link.publish_raw
    monkeypatch.setattr(Link, "publish_raw", lambda link, to, *more: (sent.append(to), send(link, to, *more)))
    plane = unique("plane")
    urls = [f"{cluster.url_from(node)}?replicas=3" for node in range(3)]
    async with AsyncExitStack() as stack:
        stores = [await opened(stack, lambda url=url: KV.open(url, namespace=plane)) for url in urls]  # type: ignore[misc]
        for n in range(100):
            first, second, third = random.sample(stores, 3)
            revision = await first.put(f"k{n}", b"1")
            revision = await second.update(f"k{n}", b"2", revision=revision)
            await first.put(f"other{n}", b"")
            found = await third.get_many([f"k{n}", f"other{n}"])
            assert list(found) == [f"k{n}", f"other{n}"]
            assert (found[f"k{n}"].value, found[f"k{n}"].revision) == (b"2", revision)
            await third.delete(f"k{n}")
            assert await first.get(f"k{n}") is None
            assert await second.delete_many([f"k{n}", f"other{n}"]) == 1
        assert len(sent) > 1000
        assert not [subject for subject in sent if subject.startswith("$JS.API.DIRECT")]  # which any replica answers


DEPOSED = {10071: "wrong last sequence: 1", 10164: "wrong last sequence"}
"""What a leader answers that was deposed while it stood still: by what it last knew, or was about to store."""


@pytest.mark.req("KV-04")
@pytest.mark.parametrize("code", DEPOSED)
async def test_what_a_deposed_leader_refuses_and_its_successor_stores_is_done(
    cluster: NatsCluster, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Both take the message, and the first answer is read. Here the successor's is thrown away, a few times."""
    refusal = json.dumps({"error": {"code": 400, "err_code": code, "description": DEPOSED[code]}}).encode()
    times, request = 0, Link.request
    meanwhile: list[Callable[[], Awaitable[object]]] = []

    async def answered(link: Link, subject: str, *more: Any, **named: Any) -> NatsMessage:
        nonlocal times
        answer = await request(link, subject, *more, **named)
        if not times or not subject.startswith("$KV."):
            return answer
        times -= 1
        if meanwhile:
            await meanwhile.pop()()
        return NatsMessage(subject, "", refusal)

    monkeypatch.setattr(Link, "request", answered)
    plane = unique("plane")
    async with AsyncExitStack() as stack:
        one, other = [
            await opened(stack, lambda: KV.open(f"{cluster.url}?replicas=3", namespace=plane)) for _ in range(2)
        ]

        async def value() -> bytes:
            entry = await one.get("k")
            assert entry is not None
            return entry.value

        first = await one.put("k", b"1")
        times = 3
        second = await one.update("k", b"2", revision=first)
        assert (await value(), second) == (b"2", first + 1)

        times = 1
        meanwhile.append(lambda: other.update("k", b"4", revision=second + 1))
        assert await one.update("k", b"3", revision=second) == second + 1
        assert await value() == b"4"

        times = 2
        await one.delete("k", revision=second + 2)
        times = 2
        created = await one.create("k", b"5")
        await other.put("k", b"6")
        times = 2
        with pytest.raises(Conflict):
            await one.update("k", b"7", revision=created)
        fence = Fence("desk", 1)
        revision = await one.put("k", b"8", fence=fence)
        times = 2
        assert await one.update("k", b"9", revision=revision, fence=fence) > revision


@pytest.mark.req("KV-04")
async def test_a_revision_that_no_leader_has_met_is_refused_in_the_end(cluster: NatsCluster) -> None:
    async with AsyncExitStack() as stack:
        store = await opened(stack, lambda: KV.open(f"{cluster.url}?replicas=3", namespace=unique("plane")))
        revision = await store.put("k", b"1")
        store.driver._writing.live(revision + 5)  # type: ignore[attr-defined]
        with pytest.raises(Conflict, match=f"has {revision}, not {revision + 5}"):
            await store.update("k", b"2", revision=revision + 5)


@pytest.mark.req("BUS-07.1")
async def test_two_deliveries_of_one_message_are_settled_at_once(cluster: NatsCluster) -> None:
    spec = ConsumerSpec(name="c", pattern="events.a.*", lease_s=1.0)
    async with AsyncExitStack() as stack:
        bus = await opened(stack, lambda: NatsBus.open(f"{cluster.url}?replicas=3", namespace=unique("plane")))
        consumer = await opened(stack, lambda: bus.consume(spec))
        await bus.append([Message(subject="events.a.b", payload=b"1", id="1")])
        [first] = await consumer.receive(1, PATIENCE_S)
        [second] = await consumer.receive(1, PATIENCE_S)
        assert (first.attempt, second.attempt) == (1, 2)
        await consumer.settle([Ack(first), Ack(second)])
        info = await bus.native.consumer_info(bus.naming.events, "c")
        assert (info.num_ack_pending, info.num_pending) == (0, 0)


@pytest.mark.req("KV-16")
async def test_a_watcher_whose_replica_is_behind_does_not_take_for_gone_what_the_leader_has(
    cluster: NatsCluster,
) -> None:
    name = unique("stream")
    async with await Link.open(Address.parse(cluster.url), name="test") as link:
        jetstream = JetStream(link)
        await jetstream.create_stream(StreamConfig(name=name, subjects=(f"{name}.>",), allow_direct=True))
        for word in ("seen", "unseen"):
            await jetstream.publish(f"{name}.{word}")
        async with Watcher(jetstream, name, [f"{name}.seen"]) as watcher:
            await eventually(lambda: watcher.synced)
            watcher._known |= {f"{name}.unseen", f"{name}.none"}  # the one is not told, as by a replica that is behind
            watcher._go_deaf()
            async for event in watcher:
                if isinstance(event, Gone):
                    break
            assert event.subject == f"{name}.none"
            assert watcher._known == {f"{name}.seen", f"{name}.unseen"}


@pytest.mark.slow
@pytest.mark.req("BUS-24.2", "BUS-09.3", "KV-14", "LEAD-01.1")
async def test_the_loss_of_any_node_under_load_loses_nothing_and_doubles_nothing(
    cluster: NatsCluster, tmp_path: Path
) -> None:
    async with (
        load_on(cluster) as (load, task),
        contenders(f"{cluster.url_from(1)}?replicas=3", tmp_path, unique("lead"), 2, "balanced") as them,
    ):
        await them.add(f"{cluster.url_from(2)}?replicas=3")
        await load.goes_on(task)
        first = await asyncio.to_thread(cluster.leader_of, f"bus+{PLANE}+events")
        for number in range(ROUNDS):
            node, frozen = cluster.nodes[(first + number) % 3], number % 2 == 1
            await asyncio.to_thread(node.pause if frozen else node.kill)
            with pytest.raises(Unavailable, match="not whole"):
                await asyncio.to_thread(cluster.wait_current, 0)
            await load.goes_on(task)
            await asyncio.to_thread(node.resume if frozen else node.start)
            await asyncio.to_thread(cluster.wait_current)
        effects = len(them.effects())
        await eventually(lambda: len(them.effects()) > effects, "one leads", timeout_s=PATIENCE_S)
        load.stop()
        await task
        them.judge()

        jetstream: JetStream = load.buses[0].driver.native  # type: ignore[attr-defined]
        events = await load.until_done(lambda: jetstream.stream_info(f"bus+{PLANE}+events"))
        assert events.state.messages == len(load.published)
        assert load.handled.keys() == load.published
        for name, number in load.sent.items():
            assert await load.until_done(lambda name=name: load.buses[0].result(name)) == number**2  # type: ignore[misc]
        entry = await load.until_done(lambda: load.stores[0].get("names"))
        assert entry is not None
        names = json.loads(entry.value)
        assert len(names) == len(set(names))
        assert load.noted <= set(names)
        assert not load.refused & set(names)
        assert not load.deleted & set((await load.until_done(lambda: load.stores[0].keys("k"))).items)
