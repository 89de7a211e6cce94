"""Drivers of queues by URL scheme.

A third party's (entry points `groundplane.queues`) is an object whose `open(url, *, namespace, state, inline,
upgrade)` is an
asynchronous context manager of a `QueueDriver`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from groundplane.core.drivers import load_driver
from groundplane.queues.port import QueueDriver

DRIVERS: dict[str, str] = {
    "embedded": "groundplane.queues.drivers.embedded:EmbeddedQueues",
    "amqp": "groundplane.queues.drivers.rabbitmq:RabbitQueues",
    "amqps": "groundplane.queues.drivers.rabbitmq:RabbitQueues",
}
DIAGNOSES: dict[str, str] = dict.fromkeys(("amqp", "amqps"), "groundplane.queues.drivers.rabbitmq.diagnosis:diagnose")
"""Who looks at the server of a URL, by its scheme (`core.diagnosis`)."""


def open_driver(url: str, **options: Any) -> AbstractAsyncContextManager[QueueDriver]:
    """What opens the driver of the URL's scheme. `invalid_argument` for a scheme that nobody has."""
    opened: AbstractAsyncContextManager[QueueDriver] = load_driver("queues", url, DRIVERS).open(url, **options)
    return opened
