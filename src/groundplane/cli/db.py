"""`groundplane db`: the schema of the stored data."""

from __future__ import annotations

import asyncio
from typing import Any

from groundplane.cli import state_folder
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_FAILURE, EXIT_OK
from groundplane.core.errors import GroundplaneError
from groundplane.core.settings import Settings
from groundplane.plane import Plane

_STORES = ("queues", "jobs", "ledger")


def upgrade(*, common: Common = COMMON) -> int:
    """Bring the stored data to the schema of this version. Safe to run twice, and from several machines at once.

    Examples:

      groundplane db upgrade --state /var/lib/groundplane
    """
    settings = common.settings()

    async def work() -> None:
        if settings.queues.scheme == "embedded":
            state_folder.make(settings.state)
        async with Plane.open(settings, ports=_STORES, upgrade=True):
            pass

    asyncio.run(work())
    common.output.result({"upgraded": list(_STORES)}, f"the data has the schema of this version: {', '.join(_STORES)}")
    return EXIT_OK


def check(*, common: Common = COMMON) -> int:
    """Say whether the stored data has the schema of this version; exit code 1 when it has not.

    Examples:

      groundplane db check && groundplane run app:app --role gateway
    """
    settings = common.settings()
    if settings.queues.scheme == "embedded":
        state_folder.existing(settings.state)
    found = asyncio.run(schemas(settings))
    rows = [{"store": store, "ok": error is None, **_told(error)} for store, error in found.items()]
    common.output.table(rows, ("store", "ok", "reason", "message"), empty="")
    return EXIT_OK if all(row["ok"] for row in rows) else EXIT_FAILURE


async def schemas(settings: Settings) -> dict[str, GroundplaneError | None]:
    """Open each store by itself: None, or why it cannot be opened."""
    found: dict[str, GroundplaneError | None] = {}
    for store in _STORES:
        try:
            async with Plane.open(settings, ports=(store,)):
                found[store] = None
        except GroundplaneError as error:
            found[store] = error
    return found


def _told(error: GroundplaneError | None) -> dict[str, Any]:
    return {"reason": error.reason, "message": error.message} if error is not None else {"reason": "", "message": ""}
