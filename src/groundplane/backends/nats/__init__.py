"""NATS with JetStream: a client of our own, on asyncio.

    address = Address.parse("nats://user:password@host1:4222,host2:4222?reconnect_wait_max=1")
    async with await Link.open(address, name="orders") as link:
        link.subscribe("echo", lambda message: link.publish(message.reply, message.payload), queue="echoes")
        answer = await link.request("echo", b"…", timeout_s=1)

        jetstream = JetStream(link)
        await jetstream.ensure_stream(StreamConfig(name="EVENTS", subjects=("events.>",)))
        ack = await jetstream.publish("events.a", b"…", message_id="1")       # returns when it is stored
        window = PublishWindow(jetstream)                                     # 500 under way
        pull = Pull(jetstream, "EVENTS", "worker", on_delivery)               # overlapping requests
        async with Watcher(jetstream, "EVENTS", ["events.>"]) as watcher: …   # snapshot, then changes, never deaf

It reconnects by itself (`Address` has the waits and the jitter), restores subscriptions, and tells the truth: nothing
is sent later than it was asked for, what was under way on a lost connection fails with `connection_lost`, every wait
has an end, and headers count against `max_payload`. `Pool` holds several links and skips dead ones.

NATS 2.11 or newer for TTL per message, else 2.10. It has no object store, no services protocol, no websocket, and
uses the servers of its URL alone, not those that a cluster announces.
"""

from __future__ import annotations

from groundplane.backends.nats.address import PARAMETERS, Address
from groundplane.backends.nats.config import ConsumerConfig, StreamConfig
from groundplane.backends.nats.errors import sequence_met
from groundplane.backends.nats.jetstream import (
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    MARKER_REASON,
    MESSAGE_ID,
    ROLLUP,
    TTL,
    ConsumerInfo,
    JetStream,
    PubAck,
    Stored,
    StreamInfo,
    StreamState,
)
from groundplane.backends.nats.link import Link, LinkStatistics
from groundplane.backends.nats.message import Message, Place, decode_headers, encode_headers, place_of
from groundplane.backends.nats.pool import Pool
from groundplane.backends.nats.publishing import PublishWindow
from groundplane.backends.nats.pulling import Pull
from groundplane.backends.nats.session import ServerInfo
from groundplane.backends.nats.subscription import Subscription
from groundplane.backends.nats.watching import Changed, Gone, Synced, Watcher

__all__ = [
    "Address",
    "Changed",
    "ConsumerConfig",
    "ConsumerInfo",
    "EXPECTED_LAST_SUBJECT_SEQUENCE",
    "Gone",
    "JetStream",
    "Link",
    "LinkStatistics",
    "MARKER_REASON",
    "MESSAGE_ID",
    "Message",
    "PARAMETERS",
    "Place",
    "Pool",
    "PubAck",
    "PublishWindow",
    "Pull",
    "ROLLUP",
    "ServerInfo",
    "Stored",
    "StreamConfig",
    "StreamInfo",
    "StreamState",
    "Subscription",
    "Synced",
    "TTL",
    "Watcher",
    "decode_headers",
    "encode_headers",
    "place_of",
    "sequence_met",
]
