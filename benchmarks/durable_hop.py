"""A durable hop: handled in a runtime of its own; the next message and the acknowledgement are committed and synced."""

from __future__ import annotations

import asyncio
import statistics
import time

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import peers
from benchmarks.plane import Member, caller, mesh
from benchmarks.report import Row, percentile, quantile
from groundplane.core.envelope import Envelope
from groundplane.mesh.routing import Result
from groundplane.mesh.spec import ActorSpec
from groundplane.queues import Queues
from groundplane.queues.port import Ack, OutgoingMessage

SECTION = "Durable hop on SQLite (300 B, no-op handler, sidecars and runtimes in their own processes)"
PAYLOAD = "x" * 300


def rows(rounds: int, scale: float) -> list[Row]:
    """Ours beside Huey (SQLite, fsync) and DBOS (SQLite)."""
    huey = peers.run(peers.HUEY, int(1000 * scale), rounds)
    dbos = peers.run(peers.DBOS, int(80 * scale), rounds)
    full, paced, pickups, calls = asyncio.run(_ours(rounds, scale))
    hops, wholes = zip(*paced, strict=True)
    at = "Groundplane, at 2,000 hops/s"
    return [
        _row("Groundplane, window 64", "hops a second, full load", "/s", full, bar=10_000.0),
        _row("Huey", "hops a second, full load", "/s", huey["rates"], peer=True),
        _row("DBOS", "hops a second, full load", "/s", dbos["rates"], peer=True),
        _row(at, "claimed to settled, p50", "ms", [one[0] for one in hops], bar=2.0, better="lower"),
        _row(at, "claimed to settled, p99", "ms", [one[1] for one in hops], bar=10.0, better="lower"),
        _row(at, "sent to received by the next, p50", "ms", [percentile(one, 0.5) for one in wholes], better="lower"),
        _row("sidecar + socket + runtime", "a call, p50", "ms", [percentile(calls, 0.5)], bar=0.3, better="lower"),
        _row("Groundplane", "pickup when idle, p50", "ms", [statistics.median(pickups)], bar=2.0, better="lower"),
        _row("Huey", "pickup when idle, p50", "ms", [statistics.median(huey["pickups"])], better="lower", peer=True),
        _row("DBOS", "pickup when idle, p50", "ms", [statistics.median(dbos["pickups"])], better="lower", peer=True),
    ]


def _row(
    subject: str,
    metric: str,
    unit: str,
    values: list[float],
    *,
    bar: float | None = None,
    better: str = "higher",
    peer: bool = False,
) -> Row:
    value = statistics.median(values)
    return Row(
        section=SECTION, subject=subject, metric=metric, value=value, unit=unit, rounds=values, bar=bar, better=better,
        peer=peer,
    )  # fmt: skip


Hops = tuple[float, float]
"""p50 and p99 in ms."""


async def _ours(
    rounds: int, scale: float
) -> tuple[list[float], list[tuple[Hops, list[float]]], list[float], list[float]]:
    first, second = (
        ActorSpec(name=name, handler="echo_handlers:async_echo", concurrency=64) for name in ("first", "second")
    )
    async with mesh([first, second], "out") as (queues, members):
        full = [await full_load(queues, int(2000 * scale)) for _ in range(rounds)]
        paced = [await _hops(queues, members["first.sidecar"], seconds=3.0 * scale) for _ in range(rounds)]
        pickups = await _pickups(queues, 100)
        calls = await _calls(str(members["first.runtime"].socket), int(2000 * scale))
    return full, paced, pickups, calls


async def _hops(queues: Queues, sidecar: Member, *, seconds: float) -> tuple[Hops, list[float]]:
    """From claim to settlement as the sidecar's histogram has it (its bounds lie at 1, 2, 5 and 10 ms; linear between
    them), and what each message took over all."""
    before = await _buckets(sidecar)
    whole = await _paced(queues, seconds=seconds)
    after = await _buckets(sidecar)
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in after}
    return (quantile(counts, 0.5) * 1000, quantile(counts, 0.99) * 1000), whole


async def _buckets(sidecar: Member) -> dict[float, float]:
    async with httpx2.AsyncClient() as http:
        text = (await http.get(f"http://127.0.0.1:{sidecar.admin_port}/metrics")).text
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    name = "groundplane_actor_processing_seconds_bucket"
    return {float(one.labels["le"]): one.value for one in samples if one.name == name}


async def _calls(socket: str, count: int) -> list[float]:
    """Milliseconds of one call after the other through the sidecar's client, the socket and a worker."""
    spent = []
    async with caller(socket) as (_, call):
        for _ in range(count + 100):
            begin = time.perf_counter()
            outcome = await call(PAYLOAD)
            spent.append((time.perf_counter() - begin) * 1000)
            assert isinstance(outcome, Result), outcome
    return spent[100:]


async def full_load(queues: Queues, count: int, passes: int = 10) -> float:
    """Hops a second of `count` envelopes that go through both actors `passes` times."""
    route = ["first", "second"] * passes + ["out"]
    batch = [_message(route) for _ in range(count)]
    begin = time.perf_counter()
    for start in range(0, count, 200):
        await queues.send(*batch[start : start + 200])
    await _drain(queues, count)
    return count * 2 * passes / (time.perf_counter() - begin)


async def _paced(queues: Queues, *, seconds: float, rate: int = 2000) -> list[float]:
    """Milliseconds from send to arrival after one hop, at `rate` hops a second."""
    count = int(seconds * rate)
    sent: dict[str, float] = {}
    draining = asyncio.create_task(_drain(queues, count))
    begin = time.perf_counter()
    sends = []
    for number in range(0, count, 4):
        await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        batch = [_message(["first", "out"]) for _ in range(4)]
        now = time.perf_counter()
        sent |= {message.id: now for message in batch}
        sends.append(asyncio.create_task(queues.send(*batch)))
    await asyncio.gather(*sends)
    arrived = await draining
    return [(arrived[key] - at) * 1000 for key, at in sent.items()]


async def _pickups(queues: Queues, count: int) -> list[float]:
    """Milliseconds of one pickup: half of what a message takes over an idle actor to an idle consumer."""
    found = []
    for _ in range(count):
        await asyncio.sleep(0.03)
        message = _message(["first", "out"])
        draining = asyncio.create_task(_drain(queues, 1))
        await asyncio.sleep(0.01)
        await queues.send(message)
        begin = time.perf_counter()
        arrived = await draining
        found.append((arrived[message.id] - begin) * 1000 / 2)
    return found


async def _drain(queues: Queues, count: int) -> dict[str, float]:
    arrived: dict[str, float] = {}
    async with queues.consume("out", max_in_flight=1024) as consumer:
        while len(arrived) < count:
            deliveries = await consumer.receive(512, timeout_s=30)
            if not deliveries:
                raise RuntimeError(f"only {len(arrived)} of {count} arrived")
            now = time.perf_counter()
            arrived |= dict.fromkeys((delivery.id for delivery in deliveries), now)
            await consumer.settle([Ack(delivery) for delivery in deliveries])
    return arrived


def _message(route: list[str]) -> OutgoingMessage:
    envelope = Envelope.new(route, PAYLOAD)
    return OutgoingMessage(queue=route[0], payload=envelope.to_bytes(), id=envelope.id)
