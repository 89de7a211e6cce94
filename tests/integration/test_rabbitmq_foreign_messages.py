"""Messages in a queue of Groundplane that Groundplane did not write, or that a newer one wrote."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from groundplane.backends.amqp import Address, Channel, Connection, encode_properties
from groundplane.core.errors import FailedPrecondition
from groundplane.queues import Ack, Queues, QueueSpec

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
async def queues(rabbitmq_url: str, tmp_path: Path) -> AsyncIterator[Queues]:
    async with Queues.open(f"{rabbitmq_url}?guard=0", namespace="plane", state=tmp_path) as opened:
        await opened.declare(QueueSpec(name="work"))
        yield opened


@pytest.fixture
async def foreigner(rabbitmq_url: str) -> AsyncIterator[Channel]:
    async with await Connection.open(Address.parse(rabbitmq_url), name="foreigner") as connection:
        yield await connection.channel(confirms=True)


@pytest.mark.parametrize("note", ["text", 7, {"a": 1}, None, b"\xc1garbage", b""])
async def test_a_foreign_header_of_our_name_is_no_note_and_the_payload_is_handed_out(
    queues: Queues, foreigner: Channel, note: object
) -> None:
    await foreigner.publish("groundplane", "plane:work", b"foreign", encode_properties({"gp": note, "kind": "order"}))
    async with queues.consume("work", max_in_flight=2) as consumer:
        (delivery,) = await consumer.receive(2, 5.0)
        assert (delivery.payload, delivery.attempt, delivery.headers.get("kind")) == (b"foreign", 1, "order")
        await consumer.settle([Ack(delivery)])
    assert (await queues.depth("work")).total == 0


@pytest.mark.parametrize("note", [msgspec.msgpack.encode([99, {"unknown": "shape"}])])
@pytest.mark.parametrize("key", ["plane:work", "plane:work:delayed"])
async def test_a_newer_note_is_kept_and_counted_and_breaks_no_connection(
    queues: Queues, foreigner: Channel, key: str, note: bytes
) -> None:
    await foreigner.publish("groundplane", key, b"newer", encode_properties({"gp": note}))
    async with queues.consume("work", max_in_flight=2) as consumer:
        if key == "plane:work":
            with pytest.raises(FailedPrecondition, match="upgrade Groundplane") as caught:
                await consumer.receive(2, 5.0)
            assert caught.value.reason == "schema_newer"
        else:
            assert await consumer.receive(2, 0.3) == []
        for _ in range(3):
            assert (await queues.depth("work")).total == 1
    assert queues.driver.native.renewals == 0
    deadline = time.monotonic() + 5
    while (await queues.depth("work")).total != 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
