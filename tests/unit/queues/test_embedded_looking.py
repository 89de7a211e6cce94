"""When a consumer looks for messages: after it emptied its queue it waits for the bell, or for what is due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.backends.sqlite import Database, Options
from groundplane.queues.drivers.embedded import EmbeddedQueues
from groundplane.queues.drivers.embedded.driver import MIGRATIONS
from groundplane.queues.port import Ack, Nack, OutgoingMessage, QueueConsumer, QueueSpec
from pace import at_most

pytestmark = pytest.mark.anyio


@pytest.fixture
async def queues(tmp_path: Path) -> AsyncIterator[EmbeddedQueues]:
    """Over a file whose safety poll, which would cover up for a consumer that sleeps too long, does not run."""
    async with Database.open(tmp_path / "plane.db", [MIGRATIONS], options=Options(poll_s=3600.0)):
        async with EmbeddedQueues.open(state=tmp_path) as opened:
            await opened.declare([QueueSpec(name="work")])
            yield opened


def _message(name: str, delay_s: float = 0.0, *, urgent: bool = True) -> OutgoingMessage:
    return OutgoingMessage(queue="work", id=name, payload=b"", delay_s=delay_s, urgent=urgent)


async def _take(consumer: QueueConsumer, timeout_s: float, limit: int = 8) -> list[str]:
    got = await consumer.receive(limit, timeout_s)
    await consumer.settle([Ack(one) for one in got])
    return [one.id for one in got]


async def _waiting(consumer: Any, timeout_s: float) -> asyncio.Task[list[str]]:
    """A receive that has looked, found nothing, and waits for the bell."""
    receiving = asyncio.create_task(_take(consumer, timeout_s))
    async with asyncio.timeout(5):
        while consumer._listener._waiter is None:
            await asyncio.sleep(0.001)
    return receiving


@pytest.mark.req("QUEUE-01.1")
async def test_what_is_sent_after_the_queue_was_emptied_comes_at_its_bell(queues: EmbeddedQueues) -> None:
    async with queues.consume("work", max_in_flight=8) as consumer:
        for number in range(5):
            await queues.send([_message(f"{number}")])
            assert await _take(consumer, 10.0) == [f"{number}"]
        waiting = await _waiting(consumer, 10.0)
        await queues.send([_message("late")])
        assert await waiting == ["late"]


@pytest.mark.req("QUEUE-01.1")
async def test_for_what_is_not_urgent_nobody_is_woken_and_it_comes_with_what_is(queues: EmbeddedQueues) -> None:
    async with queues.consume("work", max_in_flight=8) as consumer:
        waiting = await _waiting(consumer, 60.0)
        await queues.send([_message("a", urgent=False), _message("b", urgent=False)])
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await queues.send([_message("c", urgent=False), _message("d")])
        async with asyncio.timeout(5):
            assert await waiting == ["a", "b", "c", "d"]


@pytest.mark.req("QUEUE-01.1")
async def test_what_is_not_urgent_is_found_by_the_safety_poll(tmp_path: Path) -> None:
    async with EmbeddedQueues.open(state=tmp_path) as queues:
        await queues.declare([QueueSpec(name="work")])
        async with queues.consume("work", max_in_flight=8) as consumer:
            waiting = await _waiting(consumer, 60.0)
            await queues.send([_message("a", urgent=False)])
            async with asyncio.timeout(5):
                assert await waiting == ["a"]


@pytest.mark.req("QUEUE-05")
async def test_what_was_delayed_when_the_queue_was_emptied_comes_when_it_is_due(queues: EmbeddedQueues) -> None:
    async with queues.consume("work", max_in_flight=8) as consumer:
        while True:
            waiting = await _waiting(consumer, 60.0)
            start = time.monotonic()
            await queues.send([_message("now"), _message("soon", 0.4)])
            if (got := await waiting) == ["now"]:
                break
            assert got == ["now", "soon"]
            assert time.monotonic() - start > 0.39, "the machine stood still until both were due"
        assert await _take(consumer, 10.0) == ["soon"]
        assert 0.39 < time.monotonic() - start < at_most(2.0)


async def test_a_look_that_must_not_wait_looks(queues: EmbeddedQueues) -> None:
    async with queues.consume("work", max_in_flight=8) as consumer:
        await queues.send([_message("first")])
        assert await _take(consumer, 2.0) == ["first"]
        await queues.send([_message("second")])
        assert await _take(consumer, 0) == ["second"]


async def test_what_was_left_in_the_queue_is_taken_without_a_bell(queues: EmbeddedQueues) -> None:
    async with queues.consume("work", max_in_flight=8) as consumer:
        await queues.send([_message(f"{number}") for number in range(8)])
        start = time.monotonic()
        for first in range(0, 8, 2):
            assert await _take(consumer, 2.0, limit=2) == [f"{first}", f"{first + 1}"]
        assert time.monotonic() - start < at_most(1.5)


async def test_what_was_left_of_the_messages_that_came_back_is_taken_without_a_bell(queues: EmbeddedQueues) -> None:
    async with queues.consume("work", max_in_flight=8) as consumer:
        await queues.send([_message(f"{number}") for number in range(6)])
        await consumer.settle([Nack(one, counts=False) for one in await consumer.receive(6, 2.0)])
        start = time.monotonic()
        for first in range(0, 6, 2):
            assert await _take(consumer, 2.0, limit=2) == [f"{first}", f"{first + 1}"]
        assert time.monotonic() - start < at_most(1.5)
