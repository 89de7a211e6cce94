"""The disk of the plane is full: sending refuses, what is in flight can still be settled, and it recovers."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundplane.core.errors import ResourceExhausted
from groundplane.core.retry import RetryPolicy
from groundplane.queues import Ack, Nack, OutgoingMessage, Queues, QueueSpec, Reject
from groundplane.queues.conformance.kit import eventually
from groundplane.queues.drivers.embedded import EmbeddedQueues
from groundplane.testing.checkers import History

pytestmark = [pytest.mark.anyio, pytest.mark.fault]


async def _send_until_refused(queues: Queues, history: History, size: int) -> int:
    for number in range(100_000):
        one = f"{size}-{number}"
        try:
            await queues.send(OutgoingMessage(queue="q", id=one, payload=b"x" * size))
        except ResourceExhausted as error:
            if error.reason != "disk_full":
                raise
            return number
        history.sent(one)
    pytest.fail("the disk never filled")


@pytest.mark.req("QUEUE-12", "QUEUE-01.1")
async def test_a_full_disk_refuses_sends_lets_settle_and_recovers(small_disk: Path) -> None:
    history = History()
    filler = small_disk / "filler"
    async with EmbeddedQueues.open(state=small_disk) as driver:
        queues = Queues(driver, retry=RetryPolicy(attempts=1))
        await queues.declare(QueueSpec(name="q"))
        first = [f"first-{n}" for n in range(30)]
        await queues.send(*(OutgoingMessage(queue="q", id=one, payload=b"x" * 1000) for one in first))
        history.sent(*first)
        async with queues.consume("q", max_in_flight=30) as consumer:
            held = await consumer.receive(30, 5)
            filler.write_bytes(b"\0" * (6 << 20))
            assert await _send_until_refused(queues, history, 50_000) > 10
            await _send_until_refused(queues, history, 10)
            with pytest.raises(ResourceExhausted):
                await consumer.settle([Ack(held[0])], [OutgoingMessage(queue="q", id="more", payload=b"y" * 500_000)])
            for one in held[:20]:
                await consumer.ack(one)
                history.done(one.id)
            await consumer.settle([Nack(held[20]), Reject(held[21], "bad")])
            history.ended(held[21].id)
            assert (await queues.depth("q")).in_flight == 8
            filler.unlink()

            async def room_again() -> bool:
                try:
                    await queues.send(OutgoingMessage(queue="q", id="after", payload=b"", dedup_key="after"))
                except ResourceExhausted:
                    return False
                return True

            await eventually(room_again)
            history.sent("after")
        async with queues.consume("q", max_in_flight=500) as consumer:
            while (batch := await consumer.receive(500, 0.2)) or (await queues.depth("q")).total:
                await consumer.settle([Ack(one) for one in batch])
                history.done(*(one.id for one in batch))
    history.check_nothing_lost()
    history.check_no_effect_twice()
    history.check_nothing_invented()
