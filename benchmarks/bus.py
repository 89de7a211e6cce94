"""The bus on NATS beside nats-py alone and FastStream on the same server, and embedded: requests, events, commands.

Everything runs in one process and one loop, callers and handlers on connections of their own. Who begins changes from
round to round, and a ratio is the median of the ratios of neighbours. Payloads are texts of 200 characters. nats-py's
side does the least that can be done: bytes back as they came, without codec, ids, deadlines, traces or results that are
kept; its consumer acknowledges without waiting. Streams are file-backed, of one
replica, and written to the disk as nats-server does by default: not at each message.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import nats
from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub
from nats.js.api import StreamConfig

from benchmarks.report import Row
from groundplane.bus import Bus
from groundplane.bus.events import OutgoingEvent
from groundplane.testing.servers.instance import Instance

OURS, ALONE, FRAMEWORK, EMBEDDED = "Groundplane on NATS", "nats-py alone", "FastStream", "Groundplane embedded"
SECTION = "Bus (NATS, file-backed streams, R1; SQLite)"
TEXT = "x" * 200
BODY = TEXT.encode()
CALLERS = 50
BURST = 1000
STREAM = "peers"
PATIENCE_S = 60.0

Call = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to do it; None for what it does not offer. `burst` publishes so many events at once; `consume` publishes
    so many, consumes them and returns how many a second it consumed; `handled` does the same with commands.
    """

    request: Call
    publish: Call
    burst: Call
    consume: Callable[[int], Awaitable[float]]
    connect: Call
    send: Call | None = None
    track: Call | None = None
    handled: Callable[[int], Awaitable[float]] | None = None


def rows(rounds: int, scale: float) -> list[Row]:
    """Ours beside the peers, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        config = {"jetstream": {"store_dir": f"{folder}/nats"}}  # the kit's own settings sync every write
        with Instance.open("nats", config=config) as server:
            return asyncio.run(_measured(server.url, Path(folder), max(rounds, 3), scale))


async def _measured(url: str, folder: Path, rounds: int, scale: float) -> list[Row]:
    few, many = max(100, round(1000 * scale)), max(BURST, round(5 * scale) * BURST)
    async with AsyncExitStack() as stack:
        sides = {
            OURS: await stack.enter_async_context(_ours(url, folder)),
            ALONE: await stack.enter_async_context(_alone(url)),
            FRAMEWORK: await stack.enter_async_context(_framework(url)),
            EMBEDDED: await stack.enter_async_context(_ours("embedded://", folder)),
        }
        table = _Table(sides, rounds)
        await table.take("request, one by one", lambda one: _each_ms(one.request, few), unit="ms")
        table.times(ALONE, bar=0.9)
        await table.take(f"requests, {CALLERS} in flight", lambda one: _rate(one.request, many, CALLERS))
        table.times(ALONE, bar=1.0)
        table.times(FRAMEWORK, bar=5.0)
        await table.take("events published, each awaited", lambda one: _rate(one.publish, few, 1))
        await table.take(f"events published, {CALLERS} callers", lambda one: _rate(one.publish, many, CALLERS))
        await table.take("events published, pipelined", lambda one: _bursts(one, many), bars={OURS: 30_000})
        table.times_own("events published, each awaited", bar=10.0)
        await table.take("events consumed", lambda one: one.consume(many), bars={OURS: 40_000, EMBEDDED: 50_000})
        await table.take("command sent, not tracked", lambda one: one.send and _each_ms(one.send, few // 5), unit="ms")
        await table.take("command to its end", lambda one: one.track and _each_ms(one.track, few // 5), unit="ms")
        await table.take("commands handled", lambda one: one.handled and one.handled(few))
        await table.take("connected", lambda one: _each_ms(one.connect, 10), unit="ms", bars={OURS: 5.0})
        return table.rows


class _Table:
    """Takes turns, and keeps rows."""

    def __init__(self, sides: dict[str, Side], rounds: int) -> None:
        self._sides, self._rounds = sides, rounds
        self._taken: dict[str, dict[str, list[float]]] = {}
        self._metric = ""
        self.rows: list[Row] = []

    async def take(
        self,
        metric: str,
        measure: Callable[[Side], Awaitable[float] | None],
        *,
        unit: str = "/s",
        bars: dict[str, float] | None = None,
    ) -> None:
        """A row of each side that offers it: the median of the rounds. The first round warms up."""
        found: dict[str, list[float]] = {}
        for number in range(self._rounds + 1):
            for name in list(self._sides)[:: -1 if number % 2 else 1]:
                measured = measure(self._sides[name])
                if measured is not None:
                    value = await asyncio.wait_for(measured, PATIENCE_S)
                    if number:
                        found.setdefault(name, []).append(value)
        self._metric, self._taken[metric] = metric, found
        for name, values in found.items():
            self._add(name, metric, values, unit, (bars or {}).get(name), peer=name in (ALONE, FRAMEWORK))

    def times(self, peer: str, *, bar: float) -> None:
        """How many times as fast as the peer ours was at what was taken last, round by round."""
        found = self._taken[self._metric]
        pairs = zip(found[OURS], found[peer], strict=True)
        slower = self.rows[-1].better == "lower"
        ratios = [theirs / ours if slower else ours / theirs for ours, theirs in pairs]
        self._add(OURS, f"{self._metric}: speed to {peer}", ratios, "×", bar)

    def times_own(self, other: str, *, bar: float) -> None:
        """How many times the rate of another way of ours."""
        ratios = [one / two for one, two in zip(self._taken[self._metric][OURS], self._taken[other][OURS], strict=True)]
        self._add(OURS, f"{self._metric}: speed to {other}", ratios, "×", bar)

    def _add(
        self, name: str, metric: str, values: list[float], unit: str, bar: float | None, *, peer: bool = False
    ) -> None:
        row = Row(
            section=SECTION, subject=name, metric=metric, value=statistics.median(values), unit=unit, rounds=values,
            bar=bar, better="lower" if unit == "ms" else "higher", peer=peer,
        )  # fmt: skip
        self.rows.append(row)


async def _each_ms(call: Call, times: int) -> float:
    """Median milliseconds of one call after the other."""
    spent = []
    for number in range(times):
        began = time.perf_counter()
        await call(number)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent) * 1000


async def _rate(call: Call, times: int, callers: int) -> float:
    """Calls a second."""
    numbers = iter(range(times))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return times / (time.perf_counter() - began)


async def _bursts(side: Side, times: int) -> float:
    return BURST * await _rate(lambda _: side.burst(BURST), times // BURST, 1)


@dataclass
class Tally:
    """Counts what arrives; tells when it is all, and how many a second came after the first."""

    wanted: int
    done: asyncio.Event = field(default_factory=asyncio.Event)
    seen: int = 0
    first: float = 0.0

    def one(self) -> None:
        self.first = self.first or time.perf_counter()
        self.seen += 1
        if self.seen == self.wanted:
            self.done.set()

    async def rate(self) -> float:
        await self.done.wait()
        return (self.wanted - 1) / (time.perf_counter() - self.first)


@asynccontextmanager
async def _ours(url: str, folder: Path) -> AsyncIterator[Side]:
    numbers = count()

    async def echo(text: str) -> str:
        return text

    async def publish(domain: str, times: int) -> None:
        await bus.publish_many([OutgoingEvent(domain=domain, type="seen", payload=TEXT) for _ in range(times)])

    async def consume(times: int) -> float:
        domain, tally = f"c{next(numbers)}", Tally(times)
        for _ in range(0, times, BURST):
            await publish(domain, BURST)

        async def handle(_: Any) -> None:
            tally.one()

        async with server.subscribe(f"{domain}.seen", handle, group=domain, prefetch=500, replay=True):
            return await tally.rate()

    async def track(_: int) -> None:
        async with bus.track("worker", "echo", {"text": TEXT}) as tracked:
            await tracked.result()

    async def handled(times: int) -> float:
        service, tally = f"s{next(numbers)}", Tally(times)

        async def handle(text: str) -> None:
            tally.one()

        await asyncio.gather(*(bus.send(service, "echo", {"text": TEXT}) for _ in range(times)))
        async with server.handle(service, {"echo": handle}, concurrency=CALLERS):
            return await tally.rate()

    async def connect(_: int) -> None:
        async with Bus.open(url, state=folder):
            return

    async with (
        Bus.open(url, state=folder, name="server") as server,
        Bus.open(url, state=folder, name="client") as bus,
        server.serve("echo", {"echo": echo}),
        server.handle("worker", {"echo": echo}, concurrency=CALLERS),
    ):
        yield Side(
            request=lambda _: bus.request("echo", "echo", {"text": TEXT}),
            publish=lambda _: bus.publish("bench", "seen", TEXT),
            burst=lambda times: publish("bench", times),
            consume=consume,
            connect=connect,
            send=lambda _: bus.send("sink", "echo", {"text": TEXT}),
            track=track,
            handled=handled,
        )


@asynccontextmanager
async def _alone(url: str) -> AsyncIterator[Side]:
    numbers = count()

    async def echo(message: Any) -> None:
        await message.respond(message.data)

    async def burst(times: int, subject: str = f"{STREAM}.alone") -> None:
        publish = jetstream.publish_async
        await asyncio.gather(*[await publish(subject, BODY, wait_stall=PATIENCE_S) for _ in range(times)])

    async def consume(times: int) -> float:
        subject, tally = f"{STREAM}.a{next(numbers)}", Tally(times)
        for _ in range(0, times, BURST):
            await burst(BURST, subject)
        consumer = await serving.jetstream().pull_subscribe(subject, durable=subject.replace(".", "-"), stream=STREAM)
        while not tally.done.is_set():
            for message in await consumer.fetch(100):
                await message.ack()
                tally.one()
        return await tally.rate()

    async def connect(_: int) -> None:
        await (await nats.connect(url)).close()

    serving, client = await nats.connect(url), await nats.connect(url)
    try:
        jetstream = client.jetstream()
        await jetstream.add_stream(StreamConfig(name=STREAM, subjects=[f"{STREAM}.>"]))
        await serving.subscribe("alone.echo", queue="service", cb=echo)
        await serving.flush()
        yield Side(
            request=lambda _: client.request("alone.echo", BODY, timeout=5),
            publish=lambda _: jetstream.publish(f"{STREAM}.alone", BODY),
            burst=burst,
            consume=consume,
            connect=connect,
        )
    finally:
        await client.close()
        await serving.close()


@asynccontextmanager
async def _framework(url: str) -> AsyncIterator[Side]:
    """On the stream that nats-py alone has made."""
    numbers = count()
    serving, client = NatsBroker(url, logger=None), NatsBroker(url, logger=None)

    @serving.subscriber("framework.echo", queue="service")
    async def echo(text: str) -> str:
        return text

    async def publish(subject: str, times: int) -> None:
        await asyncio.gather(*(client.publish(TEXT, subject, stream=STREAM, timeout=PATIENCE_S) for _ in range(times)))

    async def consume(times: int) -> float:
        subject, tally = f"{STREAM}.f{next(numbers)}", Tally(times)
        for _ in range(0, times, BURST):
            await publish(subject, BURST)
        subscriber = serving.subscriber(
            subject, stream=JStream(STREAM, declare=False), durable=subject.replace(".", "-"),
            pull_sub=PullSub(batch_size=100), ack_policy=AckPolicy.NACK_ON_ERROR,
        )  # fmt: skip

        @subscriber
        async def handle(text: str) -> None:
            tally.one()

        await subscriber.start()
        try:
            return await tally.rate()
        finally:
            await subscriber.stop()

    async def connect(_: int) -> None:
        async with NatsBroker(url, logger=None):
            return

    async with serving, client:
        await serving.start()
        yield Side(
            request=lambda _: client.request(TEXT, "framework.echo", timeout=5),
            publish=lambda _: client.publish(TEXT, f"{STREAM}.framework", stream=STREAM),
            burst=lambda times: publish(f"{STREAM}.framework", times),
            consume=consume,
            connect=connect,
        )
