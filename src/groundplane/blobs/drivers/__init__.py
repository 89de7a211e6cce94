"""Drivers of blobs by URL scheme. Importing this registers nothing and loads none of them.

A driver of somebody else is found by an entry point of the group `groundplane.blobs` named after its scheme; both
name an asynchronous callable `(url: str, state: Path) -> BlobDriver`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from groundplane.blobs.port import BlobDriver
from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.core.secrets import mask_url

DRIVERS: dict[str, str] = {"embedded": "groundplane.blobs.drivers.embedded:open_driver"}


async def open_driver(url: str, state: Path) -> BlobDriver:
    """Open the driver of the URL's scheme; `invalid_argument` for an unknown one."""
    scheme = url.partition("://")[0]
    if scheme in DRIVERS:
        module, _, name = DRIVERS[scheme].partition(":")
        opener = getattr(importlib.import_module(module), name)
    else:
        found = list(entry_points(group="groundplane.blobs", name=scheme))
        if not found:
            raise InvalidArgument(
                f"blobs: {mask_url(url)!r} has no known scheme; use one of {', '.join(DRIVERS)}"
                f"{did_you_mean(scheme, DRIVERS)}"
            )
        opener = found[0].load()
    return cast(BlobDriver, await opener(url, state))
