"""Consumers are killed, stopped and restarted while messages pass: nothing is lost, nothing happens twice."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest

from groundplane.queues import Ack, Capability, Consumer, Delivery, OutgoingMessage, Queues, QueueSpec
from groundplane.queues.drivers.embedded import EmbeddedQueues
from groundplane.testing.checkers import History
from pace import at_most
from queue_processes import Child, child

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

NAMESPACE = "faults"


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=[pytest.mark.integration])])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where the queues are: a state folder, or the URL of a broker."""
    if request.param == "embedded":
        return tmp_path
    return f"{request.getfixturevalue('rabbitmq_url')}?guard=0"


def _open(place: Path | str) -> AbstractAsyncContextManager[Queues]:
    if isinstance(place, str):
        return Queues.open(place, namespace=NAMESPACE)
    return Queues.open(state=place, namespace=NAMESPACE)


def _atomic(queues: Queues) -> bool:
    return Capability.ATOMIC_SETTLE in queues.driver.capabilities


async def _take_all(queues: Queues, queue: str, quiet_s: float = 0.2) -> list[Delivery]:
    got: list[Delivery] = []
    async with queues.consume(queue, max_in_flight=1000) as consumer:
        # what a busy broker has not handed out within a moment is still there, or on its way
        while (batch := await consumer.receive(1000, quiet_s)) or (await queues.depth(queue)).total:
            await consumer.settle([Ack(one) for one in batch])
            got += batch
    return got


async def _exactly(consumer: Consumer, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    while len(got) < count:
        batch = await consumer.receive(count - len(got), 20)
        assert batch, f"only {len(got)} of {count} came"
        got += batch
    return got


async def _until(condition: Callable[[], Awaitable[bool]], within_s: float) -> None:
    until = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < until, f"not within {within_s} s"
        await asyncio.sleep(0.02)


@pytest.mark.req("QUEUE-06", "QUEUE-03.2", "QUEUE-12", "QUEUE-13")
@pytest.mark.slow
async def test_fifty_killed_consumers_lose_nothing_and_double_nothing(place: Path | str) -> None:
    kills, at_once, rng, history = 51, 3, random.Random(7), History()
    async with _open(place) as queues, AsyncExitStack() as stack:
        await queues.declare(QueueSpec(name="in", attempts_max=1000), QueueSpec(name="out", attempts_max=1000))
        stop = asyncio.Event()

        async def produce() -> None:
            number = 0
            while not stop.is_set():
                ids = [f"m-{number + n}" for n in range(40)]
                number += len(ids)
                await queues.send(*(OutgoingMessage(queue="in", id=one, payload=one.encode()) for one in ids))
                history.sent(*ids)
                await asyncio.sleep(0.01)

        async def start() -> Child:
            started = await stack.enter_async_context(child("hop", place, NAMESPACE, "in", "out", 32))
            assert await started.read() == "ready"
            return started

        producing = asyncio.create_task(produce())
        running = list(await asyncio.gather(*(start() for _ in range(at_once))))
        killed = 0
        until = time.monotonic() + 120
        while killed < kills and time.monotonic() < until:
            await asyncio.sleep(rng.uniform(0.0, 0.08))
            victims = rng.sample(running, rng.randint(1, at_once))  # whoever is rung first may have all the work
            await asyncio.gather(*(victim.kill() for victim in victims))
            killed += len(victims)
            running = [one for one in running if one not in victims]
            running += await asyncio.gather(*(start() for _ in victims))
        stop.set()
        await producing

        async def all_passed() -> bool:
            return (await queues.depth("in")).total == 0

        await _until(all_passed, 100)
        await asyncio.gather(*(one.kill() for one in running))
        passed = await _take_all(queues, "out")
        if not _atomic(queues):  # a repeat says that it is one, and is dropped by whoever keeps what was handled
            first = Counter(one.id for one in passed if one.headers["attempt"] == "1")
            assert [one for one, count in first.items() if count > 1] == []
            passed = list({one.id: one for one in passed}.values())
        history.done(*(one.id for one in passed))
        assert sum(one.headers["attempt"] != "1" for one in passed) > 10, "hardly any kill hit work in flight"
        assert killed >= kills
        assert (await queues.depth("in")).dead == (await queues.depth("out")).dead == 0
    history.check_nothing_lost()
    history.check_no_effect_twice()
    history.check_nothing_invented()


@pytest.mark.req("QUEUE-03.2")
async def test_a_death_is_noticed_within_a_second_and_only_what_was_in_flight_is_raised(place: Path | str) -> None:
    async with _open(place) as queues:
        await queues.declare(QueueSpec(name="q"))
        await queues.send(*(OutgoingMessage(queue="q", id=str(n), payload=b"") for n in range(10)))
        async with queues.consume("q", max_in_flight=10) as consumer, child("hold", place, NAMESPACE, "q", 4) as one:
            held = await one.read()
            rest = await _exactly(consumer, 6)
            await consumer.settle([Ack(delivery) for delivery in rest])
            await one.kill()
            killed = time.monotonic()
            back = await _exactly(consumer, 4)
            noticed_s = time.monotonic() - killed
    assert noticed_s <= at_most(1.0)
    assert [(delivery.id, delivery.attempt) for delivery in back] == [(name, 2) for name in held]
    assert {delivery.attempt for delivery in rest} == {1}


@pytest.mark.req("QUEUE-03.2", "QUEUE-04.2")
async def test_a_stopped_consumer_is_taken_for_dead_and_its_late_settlement_refused(tmp_path: Path) -> None:
    async with EmbeddedQueues.open(state=tmp_path, namespace=NAMESPACE, heartbeat_s=1.5) as driver:
        queues = Queues(driver)
        await queues.declare(QueueSpec(name="q"))
        await queues.send(OutgoingMessage(queue="q", id="m", payload=b""))
        async with child("hold_and_ack", tmp_path, NAMESPACE, "q") as stopped:
            assert await stopped.read() == "m"
            start = time.monotonic()
            stopped.signal(signal.SIGSTOP)
            async with queues.consume("q", max_in_flight=1) as consumer:
                (again,) = await consumer.receive(1, 15)
                assert time.monotonic() - start >= 1.0
                assert (again.id, again.attempt) == ("m", 2)
                stopped.signal(signal.SIGCONT)
                stopped.tell()
                assert await stopped.read() == "delivery_lost"
                assert (await queues.depth("q")).ready == 0
                await consumer.ack(again)
            await queues.send(OutgoingMessage(queue="q", id="next", payload=b""))
            assert await stopped.read() == "next", "it does not consume again after it was taken for dead"


@pytest.mark.req("QUEUE-03.2")
async def test_a_consumer_that_works_for_longer_than_the_heartbeat_keeps_what_it_holds(tmp_path: Path) -> None:
    async with (
        EmbeddedQueues.open(state=tmp_path, heartbeat_s=2.0) as first,
        EmbeddedQueues.open(state=tmp_path, heartbeat_s=2.0) as second,
    ):
        busy, idle = Queues(first), Queues(second)
        await busy.declare(QueueSpec(name="q"))
        await busy.send(OutgoingMessage(queue="q", id="m", payload=b""))
        async with busy.consume("q", max_in_flight=1) as consumer, idle.consume("q", max_in_flight=1) as other:
            (held,) = await consumer.receive(1, 5)
            assert await other.receive(1, 3.2) == []
            await consumer.ack(held)


@pytest.mark.req("QUEUE-13")
async def test_many_processes_send_and_consume_at_one_place_at_once(place: Path | str) -> None:
    history = History()
    async with _open(place) as queues, AsyncExitStack() as stack:
        await queues.declare(QueueSpec(name="q"))
        producers = [
            await stack.enter_async_context(child("produce", place, NAMESPACE, "q", name, count, size))
            for name, count, size in (("a", 400, 1), ("b", 1500, 10), ("c", 1500, 100))
        ]
        consumers = [await stack.enter_async_context(child("consume", place, NAMESPACE, "q", 2)) for _ in range(3)]
        for said in await asyncio.gather(*(one.read_all() for one in producers)):
            history.sent(*(one for ids in said for one in ids))
        for said in await asyncio.gather(*(one.read_all() for one in consumers)):
            history.done(*(one for ids in said for one in ids))
        codes = [await one.process.wait() for one in (*producers, *consumers)]
        assert codes == [0] * 6
        assert (await queues.depth("q")).total == 0
    history.check_nothing_lost()
    history.check_no_effect_twice()
    history.check_nothing_invented()


@pytest.mark.req("QUEUE-01.1", "QUEUE-12")
async def test_a_sender_killed_in_any_window_leaves_what_it_was_told_is_durable(place: Path | str) -> None:
    rng, history = random.Random(3), History()
    async with _open(place) as queues:
        await queues.declare(QueueSpec(name="q"))
        for round_number in range(6):
            async with child("produce", place, NAMESPACE, "q", f"r{round_number}", 100_000, 7) as sender:
                history.sent(*await sender.read())
                await asyncio.sleep(rng.uniform(0.0, 0.15))
                await sender.kill()
                for ids in await sender.read_all():
                    history.sent(*ids)
        got = [one.id for one in await _take_all(queues, "q")]
        history.done(*got)
    history.check_nothing_lost()
    history.check_no_effect_twice()
    whole = [got.count(f"r{n}-0") for n in range(6)]
    assert whole == [1] * 6
    assert len(got) % 7 == 0 or not _atomic(queues), "a part of a call was sent"


@pytest.mark.req("QUEUE-10.1", "QUEUE-12")
async def test_order_is_kept_over_clean_restarts_of_the_only_consumer(place: Path | str) -> None:
    history = History()
    async with _open(place) as queues:
        await queues.declare(QueueSpec(name="q"))
        sent = [f"{n}" for n in range(300)]
        await queues.send(*(OutgoingMessage(queue="q", id=one, payload=b"") for one in sent))
        history.sent(*sent)
    while True:
        async with _open(place) as queues, queues.consume("q", max_in_flight=40) as consumer:
            batch = await consumer.receive(40, 0.1)
            if not batch and not (await queues.depth("q")).total:
                break
            done = batch[:25]
            await consumer.settle([Ack(one) for one in done])
            history.done(*(one.id for one in done))
            for one in batch:
                history.attempt(one.id, one.attempt)
    history.check_nothing_lost()
    history.check_no_effect_twice()
    history.check_order()
    history.check_attempts_grow()
