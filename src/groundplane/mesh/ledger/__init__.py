"""Durable notes of the mesh: effects that were done, children that arrived at a join.

async with open_ledger("embedded://", namespace="acme", state=folder) as ledger:
    await ledger.once_begin("charge-17")
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from groundplane.mesh.ledger.drivers import open_driver
from groundplane.mesh.ledger.measured import MeasuredLedger
from groundplane.mesh.ledger.port import JoinKey, JoinState, Ledger, Once


@asynccontextmanager
async def open_ledger(
    url: str = "embedded://",
    *,
    namespace: str = "default",
    state: Path | str = ".groundplane",
    upgrade: bool = False,
    inline: bool = False,
) -> AsyncIterator[Ledger]:
    """Open the ledger that the URL names; `embedded://` is `<state>/plane.db`. `invalid_argument` for a bad URL."""
    ledger = await open_driver(url, namespace=namespace, state=Path(state), upgrade=upgrade, inline=inline)
    try:
        yield MeasuredLedger(ledger)
    finally:
        await ledger.aclose()


__all__ = ["JoinKey", "JoinState", "Ledger", "Once", "open_ledger"]
