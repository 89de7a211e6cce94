"""Drivers of key-value storage by URL scheme.

A third party's (entry points `groundplane.kv`) is a callable
`(url: str, options: BucketOptions) -> AbstractAsyncContextManager[KVDriver]`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import cast

from groundplane.core.drivers import load_driver
from groundplane.kv.port import BucketOptions, KVDriver

DRIVERS: dict[str, str] = {
    "embedded": "groundplane.kv.drivers.embedded:open_driver",
    "nats": "groundplane.kv.drivers.nats:open_driver",
    "tls": "groundplane.kv.drivers.nats:open_driver",
}
DIAGNOSES: dict[str, str] = dict.fromkeys(("nats", "tls"), "groundplane.kv.drivers.nats.diagnosis:diagnose")
"""Who looks at the server of a URL, by its scheme (`core.diagnosis`)."""


def open_driver(url: str, options: BucketOptions) -> AbstractAsyncContextManager[KVDriver]:
    """The driver of the URL's scheme. `invalid_argument` for a scheme that nobody has."""
    opener = load_driver("kv", url, DRIVERS)
    return cast("AbstractAsyncContextManager[KVDriver]", opener(url, options))
