"""The bus: requests and answers, durable events, commands; embedded in one state folder, or on NATS.

async with Bus.open("embedded://", state=".groundplane", name="shop") as bus:
    async with bus.serve("quotes", {"get": quote}), bus.subscribe("orders.*", seen):
        await bus.request("quotes", "get", {"symbol": "ACME"})
        await bus.publish("orders", "created", {"id": 7})
    async with bus.track("reports", "render", {"month": 1}) as tracked:
        await tracked.result()
"""

from __future__ import annotations

from groundplane.bus.calling import Calls, JobStarter
from groundplane.bus.client import Bus
from groundplane.bus.commands import CommandWorker, Progress, Sent, Tracked
from groundplane.bus.endpoints import Endpoints, start
from groundplane.bus.events import OutgoingEvent, ReceivedEvent, Subscription
from groundplane.bus.handlers import CallContext, CommandContext, EventContext
from groundplane.bus.port import (
    Ack,
    BusConsumer,
    BusDriver,
    BusSubscription,
    Capability,
    ConsumerSpec,
    Delivery,
    Lag,
    Limits,
    Message,
    Nack,
    Priority,
    Reject,
    Settlement,
    Status,
)
from groundplane.bus.serving import Server
from groundplane.bus.statistics import Latency, Statistics
from groundplane.bus.wire import CommandCallback

__all__ = [
    "Ack",
    "Bus",
    "BusConsumer",
    "BusDriver",
    "BusSubscription",
    "CallContext",
    "Calls",
    "Capability",
    "CommandCallback",
    "CommandContext",
    "CommandWorker",
    "ConsumerSpec",
    "Delivery",
    "Endpoints",
    "EventContext",
    "JobStarter",
    "Lag",
    "Latency",
    "Limits",
    "Message",
    "Nack",
    "OutgoingEvent",
    "Priority",
    "Progress",
    "ReceivedEvent",
    "Reject",
    "Sent",
    "Server",
    "Settlement",
    "Statistics",
    "Status",
    "Subscription",
    "Tracked",
    "start",
]
