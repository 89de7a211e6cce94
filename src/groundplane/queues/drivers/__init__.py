"""Drivers of queues by URL scheme.

A third party's (entry points `groundplane.queues`) is an object whose `open(url, *, namespace, state, inline,
upgrade)` is an
asynchronous context manager of a `QueueDriver`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from groundplane.core.drivers import load_driver
from groundplane.core.errors import Unsupported
from groundplane.core.secrets import mask_url
from groundplane.queues.port import QueueDriver

DRIVERS: dict[str, str] = {
    "embedded": "groundplane.queues.drivers.embedded:EmbeddedQueues",
    "amqp": "groundplane.queues.drivers.rabbitmq:RabbitQueues",
    "amqps": "groundplane.queues.drivers.rabbitmq:RabbitQueues",
}
DIAGNOSES: dict[str, str] = dict.fromkeys(("amqp", "amqps"), "groundplane.queues.drivers.rabbitmq.diagnosis:diagnose")
"""Who looks at the server of a URL, by its scheme (`core.diagnosis`)."""


def definitions_of(url: str, *, namespace: str, queues: Iterable[str], with_user: bool) -> dict[str, Any]:
    """What a broker is to load at its start so that these queues are there. `unsupported` where there is no broker."""
    driver = load_driver("queues", url, DRIVERS)
    if not hasattr(driver, "definitions"):
        raise Unsupported(
            f"queues: {mask_url(url)!r} has no broker that loads definitions; set queues to amqp://…",
            details={"capability": "definitions"},
        )
    found: dict[str, Any] = driver.definitions(url, namespace=namespace, queues=queues, with_user=with_user)
    return found


def open_driver(url: str, **options: Any) -> AbstractAsyncContextManager[QueueDriver]:
    """What opens the driver of the URL's scheme. `invalid_argument` for a scheme that nobody has."""
    opened: AbstractAsyncContextManager[QueueDriver] = load_driver("queues", url, DRIVERS).open(url, **options)
    return opened
