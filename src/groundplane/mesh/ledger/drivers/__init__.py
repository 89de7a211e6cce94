"""Drivers of the ledger by URL scheme.

A third party's (entry points `groundplane.ledger`) is an asynchronous callable
`(url, *, namespace, state, upgrade, inline) -> Ledger`.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from groundplane.core.drivers import load_driver
from groundplane.mesh.ledger.port import Ledger

DRIVERS: dict[str, str] = {
    "embedded": "groundplane.mesh.ledger.drivers.embedded:open_driver",
    "postgresql": "groundplane.mesh.ledger.drivers.postgres:open_driver",
    "postgres": "groundplane.mesh.ledger.drivers.postgres:open_driver",
}
DIAGNOSES: dict[str, str] = dict.fromkeys(
    ("postgresql", "postgres"), "groundplane.mesh.ledger.drivers.postgres_diagnosis:diagnose"
)
"""Who looks at the server of a URL, by its scheme (`core.diagnosis`)."""


async def open_driver(url: str, *, namespace: str, state: Path, upgrade: bool, inline: bool) -> Ledger:
    """Open the driver of the URL's scheme. `invalid_argument` for a scheme that nobody has."""
    opener = load_driver("ledger", url, DRIVERS)
    return cast(Ledger, await opener(url, namespace=namespace, state=state, upgrade=upgrade, inline=inline))
