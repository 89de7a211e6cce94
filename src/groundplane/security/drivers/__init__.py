"""Drivers of security by URL scheme.

A third party's (entry points `groundplane.security`) is an asynchronous callable
`(url, *, namespace, state, upgrade, inline) -> SecurityStore`.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from groundplane.core.drivers import load_driver
from groundplane.security.port import SecurityStore

DRIVERS: dict[str, str] = {
    "embedded": "groundplane.security.drivers.embedded:open_driver",
    "postgresql": "groundplane.security.drivers.postgres:open_driver",
    "postgres": "groundplane.security.drivers.postgres:open_driver",
}
DIAGNOSES: dict[str, str] = dict.fromkeys(
    ("postgresql", "postgres"), "groundplane.security.drivers.postgres_diagnosis:diagnose"
)
"""Who looks at the server of a URL, by its scheme (`core.diagnosis`)."""


async def open_driver(url: str, *, namespace: str, state: Path, upgrade: bool, inline: bool) -> SecurityStore:
    """Open the driver of the URL's scheme. `invalid_argument` for a scheme that nobody has."""
    opener = load_driver("security", url, DRIVERS)
    return cast(SecurityStore, await opener(url, namespace=namespace, state=state, upgrade=upgrade, inline=inline))
