"""The bus: requests and answers, durable events, commands; embedded in one state folder, or on NATS."""

from __future__ import annotations

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

__all__ = [
    "Ack",
    "BusConsumer",
    "BusDriver",
    "BusSubscription",
    "Capability",
    "ConsumerSpec",
    "Delivery",
    "Lag",
    "Limits",
    "Message",
    "Nack",
    "Priority",
    "Reject",
    "Settlement",
    "Status",
]
