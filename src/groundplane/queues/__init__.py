"""Durable work queues: at least once, dead letters, delays; embedded in one SQLite file, or on a broker.

async with Queues.open("embedded://", state=Path(".groundplane")) as queues:
    await queues.declare(QueueSpec(name="orders"))
    await queues.send(OutgoingMessage(queue="orders", id="1", payload=b"…"))
    async with queues.consume("orders", max_in_flight=64) as consumer:
        for delivery in await consumer.receive(64):
            await consumer.ack(delivery)
"""

from __future__ import annotations

from groundplane.queues.client import Consumer, Queues, Statistics
from groundplane.queues.port import (
    Ack,
    Capability,
    Delivery,
    Depth,
    Nack,
    OutgoingMessage,
    QueueConsumer,
    QueueDriver,
    QueueSpec,
    Reject,
    Settlement,
)

__all__ = [
    "Ack",
    "Capability",
    "Consumer",
    "Delivery",
    "Depth",
    "Nack",
    "OutgoingMessage",
    "QueueConsumer",
    "QueueDriver",
    "QueueSpec",
    "Queues",
    "Reject",
    "Settlement",
    "Statistics",
]
