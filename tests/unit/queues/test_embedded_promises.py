"""What the embedded driver asks of the engine: syncs before promises, bells after changes, batches in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from groundplane.backends.sqlite.wake import WakeHub
from groundplane.queues.drivers.embedded import EmbeddedQueues
from groundplane.queues.drivers.embedded.rows import topic
from groundplane.queues.port import Ack, Nack, OutgoingMessage, QueueSpec

pytestmark = pytest.mark.anyio


@pytest.fixture
async def queues(tmp_path: Path) -> AsyncIterator[EmbeddedQueues]:
    async with EmbeddedQueues.open(state=tmp_path, upgrade=True) as opened:
        await opened.declare([QueueSpec(name="work")])
        yield opened


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every topic that is rung, in order."""
    topics: list[str] = []
    original = WakeHub.ring

    def ring(hub: WakeHub, members: Iterable[str]) -> None:
        members = list(members)
        topics.extend(members)
        original(hub, members)

    monkeypatch.setattr(WakeHub, "ring", ring)
    return topics


def _message(number: int) -> OutgoingMessage:
    return OutgoingMessage(queue="work", id=f"m{number}", payload=b"%d" % number)


async def _number(queues: EmbeddedQueues) -> int:
    found = await queues.native.read(lambda tx: tx.execute("SELECT id FROM queues WHERE name = 'work'"))
    return int(found[0][0])


async def _until_rung(rung: list[str], expected: str) -> None:
    """The bell follows the answer, so it may come a moment after it."""
    async with asyncio.timeout(5):
        while not rung:
            await asyncio.sleep(0.001)
    assert rung == [expected]


@pytest.mark.req("QUEUE-01.1", "QUEUE-01.2")
async def test_a_batch_is_one_commit_and_synced_when_send_returns(queues: EmbeddedQueues) -> None:
    before = queues.native.statistics()
    await queues.send([_message(n) for n in range(50)])
    after = queues.native.statistics()
    assert (after.commits - before.commits, after.syncs - before.syncs) == (1, 1)


@pytest.mark.req("QUEUE-01.1")
async def test_a_settlement_is_synced_when_it_returns(queues: EmbeddedQueues) -> None:
    await queues.send([_message(1)])
    async with queues.consume("work", max_in_flight=1) as consumer:
        (delivery,) = await consumer.receive(1)
        before = queues.native.statistics().syncs
        await consumer.settle([Ack(delivery=delivery)])
        assert queues.native.statistics().syncs > before


@pytest.mark.req("QUEUE-10.1")
async def test_the_deliveries_of_one_receive_are_in_the_order_of_sending(queues: EmbeddedQueues) -> None:
    await queues.send([_message(n) for n in range(20)])
    async with queues.consume("work", max_in_flight=20) as consumer:
        assert [one.id for one in await consumer.receive(20)] == [f"m{n}" for n in range(20)]


async def test_consumers_are_rung_when_a_message_is_sent_and_when_one_returns(
    queues: EmbeddedQueues, rung: list[str]
) -> None:
    expected = topic(await _number(queues))
    await queues.send([_message(1)])
    await _until_rung(rung, expected)
    async with queues.consume("work", max_in_flight=1) as consumer:
        (delivery,) = await consumer.receive(1)
        rung.clear()
        await consumer.settle([Nack(delivery=delivery)])
        await _until_rung(rung, expected)


async def test_declaring_again_takes_each_new_limit(queues: EmbeddedQueues) -> None:
    for spec in (
        QueueSpec(name="work", attempts_max=7),
        QueueSpec(name="work", attempts_max=7, depth_max=70),
        QueueSpec(name="work", attempts_max=8, depth_max=70),
    ):
        await queues.declare([spec])
        assert await queues.queues() == [spec]
