"""RabbitMQ's protocol, AMQP 0-9-1: a small client of our own, on asyncio.

    address = Address.parse("amqp://user:password@host1,host2/vhost")
    async with await Connection.open(address, name="orders") as connection:
        channel = await connection.channel(confirms=True)
        await channel.declare_queue("orders", arguments={"x-queue-type": "quorum"})
        await channel.publish("", "orders", b"…", encode_properties({"kind": "order"}))   # returns when it is safe
        tag = await channel.consume("orders", lambda delivery: channel.ack(delivery.tag))

It tells the truth: a publish is done when the broker confirmed it, unroutable messages are errors, whatever waits is
told at once when a channel or the connection ends, and nothing is sent on what is closed. It does not reconnect, and
has no transactions, no recovery and no other login than user and password.

RabbitMQ 3.10 or newer. Everything that waits is bounded in time, everything that is held is bounded in size.
"""

from __future__ import annotations

from groundplane.backends.amqp.address import Address
from groundplane.backends.amqp.channel import Channel
from groundplane.backends.amqp.confirms import Message
from groundplane.backends.amqp.connection import Connection
from groundplane.backends.amqp.content import Delivery
from groundplane.backends.amqp.control import ServerInfo
from groundplane.backends.amqp.tables import EMPTY, Properties, encode_properties
from groundplane.backends.amqp.topology import QueueState

__all__ = [
    "Address",
    "Channel",
    "Connection",
    "Delivery",
    "EMPTY",
    "Message",
    "Properties",
    "QueueState",
    "ServerInfo",
    "encode_properties",
]
