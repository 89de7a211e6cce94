"""Settling in batches: what is wrong about one of them is told to that one, and the others are settled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from groundplane.core.errors import FailedPrecondition, NotFound
from groundplane.mesh.settling import Settler
from groundplane.queues import Queues, QueueSpec
from groundplane.queues.port import Ack, OutgoingMessage

pytestmark = pytest.mark.anyio


def _message(queue: str, name: str) -> OutgoingMessage:
    return OutgoingMessage(queue=queue, id=name, payload=b"")


@pytest.mark.req("QUEUE-02", "QUEUE-04.2")
async def test_in_a_batch_each_gets_its_own_error_and_the_others_are_settled(tmp_path: Path) -> None:
    async with Queues.open(state=tmp_path) as queues:
        await queues.declare(QueueSpec(name="a"), QueueSpec(name="b"))
        await queues.send(*(_message("a", f"{number}") for number in range(5)))
        async with queues.consume("a", max_in_flight=5) as consumer:
            one, two, three, four, five = await consumer.receive(5, 5)
            await consumer.ack(three)
            settler = Settler(consumer)
            outcomes = await asyncio.gather(
                settler.settle(Ack(one), [_message("b", "from one")]),
                settler.settle(Ack(two), [_message("missing", "from two")]),
                settler.settle(Ack(three), [_message("b", "from three")]),
                settler.settle(Ack(four), [_message("b", "from four")]),
                return_exceptions=True,
            )
            await settler.settle(Ack(five))
            await settler.aclose()
            assert [type(outcome) for outcome in outcomes] == [type(None), NotFound, FailedPrecondition, type(None)]
            depth = await queues.depth("a")
            assert (depth.ready, depth.in_flight) == (0, 1)
        async with queues.consume("b", max_in_flight=5) as consumer:
            assert sorted(sent.id for sent in await consumer.receive(5, 5)) == ["from four", "from one"]
