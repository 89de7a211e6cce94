"""Drivers of the bus by URL scheme.

A third party's (entry points `groundplane.bus`) is an object whose `open(url, *, namespace, state, inline, upgrade)` is
an asynchronous context manager of a `BusDriver`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from groundplane.bus.port import BusDriver
from groundplane.core.drivers import load_driver

DRIVERS: dict[str, str] = {
    "embedded": "groundplane.bus.drivers.embedded:EmbeddedBus",
    "nats": "groundplane.bus.drivers.nats:NatsBus",
    "tls": "groundplane.bus.drivers.nats:NatsBus",
}
DIAGNOSES: dict[str, str] = dict.fromkeys(("nats", "tls"), "groundplane.bus.drivers.nats.diagnosis:diagnose")
"""Who looks at the server of a URL, by its scheme (`core.diagnosis`)."""


def open_driver(url: str, **options: Any) -> AbstractAsyncContextManager[BusDriver]:
    """What opens the driver of the URL's scheme. `invalid_argument` for a scheme that nobody has."""
    opened: AbstractAsyncContextManager[BusDriver] = load_driver("bus", url, DRIVERS).open(url, **options)
    return opened
