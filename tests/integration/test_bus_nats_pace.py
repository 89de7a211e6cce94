"""How fast the bus on NATS is at least, and that it keeps nothing. Bars are the best of several."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from groundplane.bus.drivers.nats import NatsBus
from groundplane.bus.port import Ack, ConsumerSpec, Message
from groundplane.testing.servers.contract import Running

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.slow]


async def _seconds_to_connect(url: str) -> float:
    began = time.perf_counter()
    async with NatsBus.open(url, namespace="pace"):
        return time.perf_counter() - began


@pytest.mark.req("BUS-24.1")
async def test_connecting_and_calling_take_milliseconds(nats_url: str) -> None:
    async with NatsBus.open(nats_url, namespace="pace") as bus:
        connects = [[await _seconds_to_connect(nats_url) for _ in range(5)] for _ in range(4)]
        await bus.subscribe("rpc.a.b", lambda message: bus._link.publish(message.reply_to))
        calls = []
        for _ in range(200):
            began = time.perf_counter()
            await bus.request(Message(subject="rpc.a.b", payload=b"x" * 100), 5)
            calls.append(time.perf_counter() - began)
    assert min(map(median, connects)) < 0.025, connects  # three streams are looked at as well
    assert median(calls) < 0.020, median(calls)


@pytest.mark.req("BUS-24.1")
async def test_a_hundred_thousand_events_come_fast_and_leave_no_memory_behind(
    own_server: Callable[..., Running], tmp_path: Path
) -> None:
    """On a server with the usual `sync_interval`; that of the kit waits for the disk at each message."""
    config = {"jetstream": {"store_dir": str(tmp_path / "store")}}
    server = await asyncio.to_thread(own_server, "nats", config=config)
    total, batch = 100_000, 500
    seconds, sizes, got = [], [], 0
    async with (
        NatsBus.open(server.url, namespace="pace") as bus,
        bus.consume(ConsumerSpec(name="worker", pattern="events.>", max_in_flight=1000)) as consumer,
    ):
        for at in range(0, total, batch):
            began = time.perf_counter()
            await bus.append([Message(subject="events.a.b", payload=b"x" * 200, id=f"{at + n}") for n in range(batch)])
            while got < at + batch:
                deliveries = await consumer.receive(batch, 10)
                got += len(deliveries)
                await consumer.settle([Ack(one) for one in deliveries])
            seconds.append(time.perf_counter() - began)
            if at % 20_000 == 0:
                gc.collect()
                sizes.append(_resident_bytes())
    assert batch / min(seconds) > 1000
    assert sizes[-1] - sizes[1] < 16 * 2**20, sizes
    assert got == total


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
