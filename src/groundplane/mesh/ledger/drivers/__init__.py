"""Drivers of the ledger by URL scheme. Importing this registers nothing and loads none of them.

A driver of somebody else is found by an entry point of the group `groundplane.ledger` named after its scheme; both
name an asynchronous callable `(url, *, namespace, state, upgrade, inline) -> Ledger`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.core.secrets import mask_url
from groundplane.mesh.ledger.port import Ledger

DRIVERS: dict[str, str] = {"embedded": "groundplane.mesh.ledger.drivers.embedded:open_driver"}


async def open_driver(url: str, *, namespace: str, state: Path, upgrade: bool, inline: bool) -> Ledger:
    """Open the driver of the URL's scheme; `invalid_argument` for an unknown one."""
    scheme = url.partition("://")[0]
    if scheme in DRIVERS:
        module, _, name = DRIVERS[scheme].partition(":")
        opener = getattr(importlib.import_module(module), name)
    else:
        from importlib.metadata import entry_points

        found = list(entry_points(group="groundplane.ledger", name=scheme))
        if not found:
            raise InvalidArgument(
                f"ledger: {mask_url(url)!r} has no known scheme; use one of {', '.join(DRIVERS)}"
                f"{did_you_mean(scheme, DRIVERS)}"
            )
        opener = found[0].load()
    return cast(Ledger, await opener(url, namespace=namespace, state=state, upgrade=upgrade, inline=inline))
