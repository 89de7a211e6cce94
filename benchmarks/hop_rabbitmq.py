"""A durable hop on RabbitMQ: quorum queues, publisher confirms, manual acks; beside two clients and four frameworks."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time

from benchmarks.durable_hop import PAYLOAD, full_load
from benchmarks.plane import mesh
from benchmarks.report import Row
from groundplane.core.ids import new_id
from groundplane.mesh.spec import ActorSpec
from groundplane.queues import Queues
from groundplane.queues.port import Ack, OutgoingMessage, QueueSpec
from groundplane.testing.servers.instance import Instance

SECTION = "Durable hop on RabbitMQ (300 B, quorum queues, publisher confirms, manual acks, window 200)"
METRIC = "hops a second"
WINDOW = 200
ALONE = "aio-pika alone"
PEERS = {
    ALONE: "aio_pika_alone",
    "pika alone": "pika_alone",
    "Celery": "celery_worker",
    "Dramatiq": "dramatiq_worker",
    "Taskiq": "taskiq_worker",
    "FastStream": "faststream_app",
}


def rows(rounds: int, scale: float) -> list[Row]:
    """Ours at the queue port and through sidecar and runtime, beside the peers, on one broker. aio-pika takes turns
    with ours: a ratio is one of neighbours.
    """
    count = max(WINDOW, int(4000 * scale) // WINDOW * WINDOW)
    port: list[float] = []
    whole: list[float] = []
    alone: list[list[float]] = []
    with Instance.open("rabbitmq") as broker:
        for _ in range(rounds):
            port.append(asyncio.run(_port(broker.url, count)))
            alone.append(_peer(PEERS[ALONE], broker.url, count // 2, 2))
            whole.append(asyncio.run(_whole(broker.url, count)))
        others = {
            name: _peer(module, broker.url, count // 2, rounds) for name, module in PEERS.items() if name != ALONE
        }
    peers = {ALONE: [rate for pair in alone for rate in pair], **others}
    ratio = f"times {ALONE}"
    return [
        _row("Groundplane, queue port", METRIC, port),
        _row("Groundplane, sidecars and runtimes", METRIC, whole),
        *(_row(name, METRIC, rates, peer=True) for name, rates in peers.items()),
        _row("Groundplane, queue port", ratio, _times(port, alone), bar=6.0, unit="×"),
        _row("Groundplane, sidecars and runtimes", ratio, _times(whole, alone), bar=3.0, unit="×"),
    ]


def _times(ours: list[float], alone: list[list[float]]) -> list[float]:
    return [one / statistics.mean(its) for one, its in zip(ours, alone, strict=True)]


def _row(
    subject: str, metric: str, values: list[float], *, bar: float | None = None, unit: str = "/s", peer: bool = False
) -> Row:
    return Row(
        section=SECTION, subject=subject, metric=metric, value=statistics.median(values), unit=unit, rounds=values,
        bar=bar, peer=peer,
    )  # fmt: skip


def _peer(module: str, url: str, count: int, rounds: int) -> list[float]:
    command = [sys.executable, "-m", f"benchmarks.hop_peers.{module}", url, str(count), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr[-2000:]}")
    rates: list[float] = json.loads(done.stdout.strip().splitlines()[-1])["rates"]
    return rates


async def _port(url: str, count: int) -> float:
    async with Queues.open(url, namespace=f"bench-{new_id()}") as queues:
        await queues.declare(QueueSpec(name="first"), QueueSpec(name="second"))
        await _hops(queues, WINDOW)  # what is done once
        return await _hops(queues, count)


async def _hops(queues: Queues, count: int) -> float:
    """Hops a second: what is received is settled together with what it causes, up to eight settlements at once."""
    for _ in range(0, count, WINDOW):
        await queues.send(*(_message("first") for _ in range(WINDOW)))
    settling: set[asyncio.Task[None]] = set()
    async with queues.consume("first", max_in_flight=WINDOW) as consumer:
        begin, left = time.perf_counter(), count
        while left:
            deliveries = await consumer.receive(WINDOW // 4, timeout_s=10)
            left -= len(deliveries)
            sends = [_message("second") for _ in deliveries]
            task = asyncio.create_task(consumer.settle([Ack(one) for one in deliveries], sends))
            settling.add(task)
            task.add_done_callback(settling.discard)
        await asyncio.gather(*settling)
        rate = count / (time.perf_counter() - begin)
    async with queues.consume("second", max_in_flight=1000) as consumer:
        while count:
            deliveries = await consumer.receive(500, timeout_s=10)
            await consumer.settle([Ack(one) for one in deliveries])
            count -= len(deliveries)
    return rate


def _message(queue: str) -> OutgoingMessage:
    headers = {f"h{number}": "value" for number in range(5)}
    return OutgoingMessage(queue=queue, payload=PAYLOAD.encode(), id=new_id(), headers=headers)


async def _whole(url: str, count: int) -> float:
    actors = [ActorSpec(name=name, handler="echo_handlers:async_echo", concurrency=64) for name in ("first", "second")]
    async with mesh(actors, "out", queues=url) as (queues, _):
        await full_load(queues, WINDOW, passes=1)
        return await full_load(queues, count // 10)
