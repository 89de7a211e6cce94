"""What a consumer mends after a cancelled call, also while the file is busy or the disk is full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import Closed, Unavailable
from groundplane.queues import Ack, OutgoingMessage, Queues, QueueSpec
from groundplane.queues.conformance.kit import eventually
from groundplane.queues.drivers.embedded import EmbeddedQueues

pytestmark = pytest.mark.anyio


class Unlucky:
    """A database whose repairs fail a few times, and that tells when a claim is under way."""

    def __init__(self, database: Any, failures: int) -> None:
        self._database = database
        self.failures = failures
        self.claiming = asyncio.Event()
        self.telling = asyncio.Event()

    async def write(self, work: Callable[[Any], Any], *, durable: bool = True, essential: bool = False) -> Any:
        if essential and self.failures:
            self.failures -= 1
            raise Unavailable("the file is busy")
        self.claiming.set()
        value = await self._database.write(work, durable=durable, essential=essential)
        if not essential:
            await self.telling.wait()  # the claim is committed, its caller does not know yet
        return value


async def _cancel_a_claim(queues: Queues, consumer: Any, failures: int) -> Unlucky:
    await queues.send(*(OutgoingMessage(queue="q", id=str(n), payload=b"") for n in range(3)))
    unlucky = Unlucky(consumer._inner._database, failures)
    consumer._inner._database = unlucky
    receiving = asyncio.create_task(consumer.receive(3))
    await unlucky.claiming.wait()

    async def claimed() -> bool:
        return (await queues.depth("q")).in_flight == 3

    await eventually(claimed)
    receiving.cancel()
    unlucky.telling.set()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    return unlucky


async def test_an_undo_that_fails_is_repeated_until_the_messages_are_back(tmp_path: Path) -> None:
    async with EmbeddedQueues.open(state=tmp_path) as driver:
        queues = Queues(driver)
        await queues.declare(QueueSpec(name="q"))
        async with queues.consume("q", max_in_flight=3) as consumer:
            unlucky = await _cancel_a_claim(queues, consumer, failures=2)
            got = await consumer.receive(3, 5)
            assert unlucky.failures == 0
            assert [(one.id, one.attempt) for one in got] == [("0", 1), ("1", 1), ("2", 1)]
            await consumer.settle([Ack(one) for one in got])
        assert (await queues.depth("q")).total == 0


async def test_closing_undoes_what_a_repair_could_not(tmp_path: Path) -> None:
    async with EmbeddedQueues.open(state=tmp_path) as driver:
        queues = Queues(driver)
        await queues.declare(QueueSpec(name="q", attempts_max=1))
        async with queues.consume("q", max_in_flight=3) as consumer:
            unlucky = await _cancel_a_claim(queues, consumer, failures=1_000_000)
            await asyncio.sleep(0)
            unlucky.failures = 2
        depth = await queues.depth("q")
        assert (depth.ready, depth.in_flight, depth.dead) == (3, 0, 0)


async def test_closing_ends_a_slow_redrive(tmp_path: Path) -> None:
    async with EmbeddedQueues.open(state=tmp_path) as driver:
        queues = Queues(driver)
        await queues.declare(QueueSpec(name="q"))
        await queues.send(*(OutgoingMessage(queue="q", id=str(n), payload=b"") for n in range(2)))
        async with queues.consume("q") as consumer:
            for one in await consumer.receive(2, 5):
                await consumer.reject(one, "bad")
        redriving = asyncio.create_task(queues.redrive_all("q", rate_per_s=0.001))

        async def begun() -> bool:
            return (await queues.depth("q")).dead == 1

        await eventually(begun)
        start = time.monotonic()
        await queues.aclose()
        with pytest.raises(Closed):
            await redriving
        assert time.monotonic() - start < 5
