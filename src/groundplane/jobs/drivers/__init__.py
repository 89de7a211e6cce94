"""Drivers of jobs by URL scheme.

A third party's (entry points `groundplane.jobs`) is an asynchronous callable
`(url, *, namespace, state, upgrade, inline) -> JobStore`.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from groundplane.core.drivers import load_driver
from groundplane.jobs.port import JobStore

DRIVERS: dict[str, str] = {
    "embedded": "groundplane.jobs.drivers.embedded:open_driver",
    "postgresql": "groundplane.jobs.drivers.postgres:open_driver",
    "postgres": "groundplane.jobs.drivers.postgres:open_driver",
}
DIAGNOSES: dict[str, str] = dict.fromkeys(
    ("postgresql", "postgres"), "groundplane.jobs.drivers.postgres.diagnosis:diagnose"
)
"""Who looks at the server of a URL, by its scheme (`core.diagnosis`)."""


async def open_driver(url: str, *, namespace: str, state: Path, upgrade: bool, inline: bool) -> JobStore:
    """Open the driver of the URL's scheme. `invalid_argument` for a scheme that nobody has."""
    opener = load_driver("jobs", url, DRIVERS)
    return cast(JobStore, await opener(url, namespace=namespace, state=state, upgrade=upgrade, inline=inline))
