"""RabbitMQ and the way to it break in every window: nothing confirmed is lost, repeats say so, all goes on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from fault.record import record
from groundplane.core.errors import GroundplaneError, Unavailable
from groundplane.core.ids import new_id
from groundplane.queues import Ack, Consumer, Delivery, OutgoingMessage, Queues, QueueSpec
from groundplane.testing.checkers import History
from groundplane.testing.faults import Proxy
from groundplane.testing.servers.contract import Running
from pace import at_most
from queue_processes import child

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.integration]

ROUNDS = int(os.environ.get("GROUNDPLANE_TEST_FAULT_ROUNDS", "100"))
BROKER_ROUNDS = max(3, ROUNDS // 40)
SEED = int(os.environ.get("GROUNDPLANE_TEST_SEED", "11"))
RESUMES_S = 5.0
_BYTES = (40, 1500)
"""A fault in the middle of frames: between nothing and a few messages after it was ordered."""


class Pump:
    """Sends to `in`, passes on to `out`, and knows what it was told."""

    def __init__(self, sending: Queues, passing: Queues) -> None:
        self.history = History()
        self.unflagged: list[str] = []
        self.failures: Counter[str] = Counter()
        self.passed = 0
        self._sending = sending
        self._passing = passing
        self._numbers = 0
        self._handled: set[str] = set()

    async def send(self) -> None:
        while True:
            ids = [f"m-{self._numbers + n}" for n in range(5)]
            self._numbers += len(ids)
            self.history.maybe_sent(*ids)  # also when this is cancelled in the middle
            try:
                await self._sending.send(
                    *(OutgoingMessage(queue="in", id=one, payload=one.encode() * 20) for one in ids)
                )
                self.history.sent(*ids)
            except GroundplaneError as error:
                self.failures[error.reason] += 1
            await asyncio.sleep(0.004)

    async def pass_on(self) -> None:
        while True:
            with suppress(GroundplaneError):
                async with self._passing.consume("in", max_in_flight=40) as consumer:
                    while True:
                        await self._settle(consumer, await consumer.receive(40, 0.5))

    async def _settle(self, consumer: Consumer, batch: list[Delivery]) -> None:
        for one in batch:
            if one.id in self._handled and one.attempt == 1 and not one.redelivered:
                self.unflagged.append(one.id)
            self._handled.add(one.id)
        sends = [OutgoingMessage(queue="out", id=one.id, payload=one.payload) for one in batch]
        try:
            await consumer.settle([Ack(one) for one in batch], sends)
            self.passed += len(batch)
        except GroundplaneError as error:
            self.failures[error.reason] += 1

    async def flows(self) -> float:
        """How long it took until something passed again."""
        start, before, within_s = time.monotonic(), self.passed, at_most(RESUMES_S)
        while self.passed == before:
            assert time.monotonic() - start < within_s, f"nothing passed for {within_s} s: {self.failures}"
            await asyncio.sleep(0.01)
        return time.monotonic() - start

    async def drained(self) -> None:
        """All that was sent has gone through `in`; then what came to `out` is noted."""
        await until(lambda: self._empty("in"), 30)
        async with self._passing.consume("out", max_in_flight=1000) as consumer:
            while (batch := await consumer.receive(1000, 1.0)) or not await self._empty("out"):
                await consumer.settle([Ack(one) for one in batch])
                self.history.done(*{one.id for one in batch})

    async def _empty(self, queue: str) -> bool:
        try:
            return (await self._sending.depth(queue)).total == 0
        except Unavailable:
            return False

    def check(self) -> None:
        self.history.check_nothing_lost()
        self.history.check_nothing_invented()
        assert self.unflagged == []


async def until(condition: Callable[[], Awaitable[bool]], within_s: float) -> None:
    start = time.monotonic()
    while not await condition():
        assert time.monotonic() - start < within_s, f"not within {within_s} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def pumping(sending_url: str, passing_url: str, namespace: str) -> AsyncIterator[Pump]:
    """A pump that runs, over queues that exist."""
    async with AsyncExitStack() as stack:
        sending = await stack.enter_async_context(Queues.open(sending_url, namespace=namespace))
        passing = await stack.enter_async_context(Queues.open(passing_url, namespace=namespace))
        await sending.declare(QueueSpec(name="in", attempts_max=1000), QueueSpec(name="out", attempts_max=1000))
        pump = Pump(sending, passing)
        sender = asyncio.create_task(pump.send())
        passer = asyncio.create_task(pump.pass_on())
        try:
            await pump.flows()
            yield pump
            sender.cancel()
            await asyncio.wait([sender])
            await pump.drained()
        finally:
            for task in (sender, passer):
                task.cancel()
            await asyncio.wait([sender, passer])
        for task in (sender, passer):
            assert task.cancelled(), task


FAULTS = ("cut", "drop_out", "drop_in", "swallow_out", "swallow_in", "down", "stall")


def put_fault(proxy: Proxy, fault: str, rng: random.Random) -> None:
    after = rng.randint(*_BYTES)
    match fault:
        case "cut":
            proxy.cut()
        case "drop_out":
            proxy.drop_after(after, direction="to_server")
        case "drop_in":
            proxy.drop_after(after, direction="to_client")
        case "swallow_out":
            proxy.drop_after(after, direction="to_server", then="swallow")
        case "swallow_in":
            proxy.drop_after(after, direction="to_client", then="swallow")
        case "down":
            proxy.down()
        case _:
            proxy.stall()


@pytest.mark.req("QUEUE-12", "QUEUE-01.1")
@pytest.mark.slow
@pytest.mark.timeout(240 + ROUNDS * 4)
async def test_connections_that_break_in_any_window_lose_nothing(rabbitmq_url: str) -> None:
    rng, hits, resumed, started = random.Random(SEED), Counter[str](), list[float](), time.monotonic()
    address = rabbitmq_url.rpartition("@")[2].partition("/")[0].split(":")
    async with (
        Proxy.to(address[0], int(address[1])) as to_send,
        Proxy.to(address[0], int(address[1])) as to_pass,
        pumping(f"{to_send.through(rabbitmq_url)}?guard=0", to_pass.through(rabbitmq_url), new_id()) as pump,
    ):
        for _ in range(ROUNDS):
            fault = rng.choice(FAULTS)
            proxies = rng.choice(([to_send], [to_pass], [to_send, to_pass]))
            for proxy in proxies:
                put_fault(proxy, fault, rng)
            hits[fault] += 1
            await asyncio.sleep(rng.uniform(0.0, 0.1))
            for proxy in proxies:
                proxy.restore()
            resumed.append(await pump.flows())
    pump.check()
    assert pump.failures, "no fault hit anything"
    assert sorted(resumed)[ROUNDS * 9 // 10] < RESUMES_S, resumed  # a machine may stall in some
    record(
        test="queues_rabbitmq_connections",
        rounds=ROUNDS,
        seed=SEED,
        hits=dict(hits),
        failures=dict(pump.failures),
        slowest_s=round(max(resumed), 2),
        seconds=round(time.monotonic() - started),
    )


@pytest.mark.req("QUEUE-12", "QUEUE-01.1")
@pytest.mark.slow
@pytest.mark.timeout(240 + BROKER_ROUNDS * 60)
async def test_a_broker_that_is_killed_frozen_or_restarted_under_load_loses_nothing(
    own_server: Callable[[str], Running],
) -> None:
    server = await asyncio.to_thread(own_server, "rabbitmq")
    rng, started, resumed = random.Random(SEED), time.monotonic(), list[float]()
    faults = ["kill", "pause", "restart"]
    async with pumping(server.url, server.url, new_id()) as pump:
        for number in range(BROKER_ROUNDS):
            fault = faults[number % len(faults)]
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            await asyncio.to_thread(put_broker_fault, server, fault)
            resumed.append(await pump.flows())
    pump.check()
    assert pump.failures
    assert statistics.median(resumed) < RESUMES_S, resumed
    record(
        test="queues_rabbitmq_broker",
        rounds=BROKER_ROUNDS,
        seed=SEED,
        failures=dict(pump.failures),
        slowest_s=round(max(resumed), 2),
        seconds=round(time.monotonic() - started),
    )


async def answers(queues: Queues) -> bool:
    """Whether the broker's queues are up; until then calls say `unavailable`, never that there are none."""
    try:
        await queues.queues()
    except Unavailable:
        return False
    return True


def put_broker_fault(server: Running, fault: str) -> None:
    """Break it and mend it; returns when it takes connections."""
    match fault:
        case "kill":
            server.kill()
            server.start()
        case "pause":
            server.pause()
            time.sleep(6.0)  # longer than its clients wait for a sign of life
            server.resume()
        case _:
            server.restart()


@pytest.mark.req("QUEUE-01.1", "QUEUE-12")
@pytest.mark.slow
async def test_a_broker_killed_as_soon_as_queues_were_declared_keeps_them_and_what_was_sent(
    own_server: Callable[[str], Running],
) -> None:
    server = await asyncio.to_thread(own_server, "rabbitmq")
    for n in range(2):
        async with Queues.open(server.url, namespace="n") as queues:
            await queues.declare(QueueSpec(name=f"q{n}"))
            await queues.send(*(OutgoingMessage(queue=f"q{n}", id=str(i), payload=b"x") for i in range(50)))
            await asyncio.to_thread(put_broker_fault, server, "kill")
        async with Queues.open(server.url, namespace="n") as queues:
            await until(lambda: answers(queues), 20)
            assert [spec.name for spec in await queues.queues()] == [f"q{i}" for i in range(n + 1)]
            async with queues.consume(f"q{n}", max_in_flight=50) as consumer:
                got: list[str] = []
                while (batch := await consumer.receive(50, 2.0)) or (await queues.depth(f"q{n}")).total:
                    got += [one.id for one in batch]
                    await consumer.settle([Ack(one) for one in batch])
            assert got == [str(i) for i in range(50)]


@pytest.mark.req("QUEUE-03.2", "QUEUE-04.2")
async def test_a_stopped_consumer_is_taken_for_dead_and_its_late_settlement_refused(rabbitmq_url: str) -> None:
    url = f"{rabbitmq_url}?guard=0"
    async with Queues.open(url, namespace="stopped") as queues:
        await queues.declare(QueueSpec(name="q"))
        await queues.send(OutgoingMessage(queue="q", id="m", payload=b""))
        async with child("hold_and_ack", url, "stopped", "q") as stopped:
            assert await stopped.read() == "m"
            stopped.signal(signal.SIGSTOP)
            async with queues.consume("q", max_in_flight=1) as consumer:
                (again,) = await consumer.receive(1, 15)
                assert (again.id, again.attempt, again.redelivered) == ("m", 2, True)
                stopped.signal(signal.SIGCONT)
                stopped.tell()
                assert await stopped.read() in ("delivery_lost", "connection_lost")
                await consumer.ack(again)
            await queues.send(OutgoingMessage(queue="q", id="next", payload=b""))
            assert await stopped.read() in ("late", "next"), "it does not consume again after it was taken for dead"
