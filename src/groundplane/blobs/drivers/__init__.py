"""Drivers of blobs by URL scheme.

A third party's (entry points `groundplane.blobs`) is an asynchronous callable
`(url: str, state: Path) -> BlobDriver`.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from groundplane.blobs.port import BlobDriver
from groundplane.core.drivers import load_driver

DRIVERS: dict[str, str] = {
    "embedded": "groundplane.blobs.drivers.embedded:open_driver",
    "s3": "groundplane.blobs.drivers.s3:open_driver",
}
DIAGNOSES: dict[str, str] = {"s3": "groundplane.blobs.drivers.s3_diagnosis:diagnose"}
"""Who looks at the server of a URL, by its scheme (`core.diagnosis`)."""


async def open_driver(url: str, state: Path) -> BlobDriver:
    """Open the driver of the URL's scheme. `invalid_argument` for a scheme that nobody has."""
    opener = load_driver("blobs", url, DRIVERS)
    return cast(BlobDriver, await opener(url, state))
