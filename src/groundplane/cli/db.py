"""`groundplane db`: the schema of the stored data."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from cyclopts import Parameter

from groundplane.cli import state_folder
from groundplane.cli.loading import Description, describe_apart
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_FAILURE, EXIT_OK
from groundplane.core.durations import parse_duration
from groundplane.core.errors import FailedPrecondition, GroundplaneError, Unavailable
from groundplane.core.settings import Settings
from groundplane.mesh.spec import ERROR_END, HAPPY_END
from groundplane.plane import Plane, diagnose, has_keys

_STORES = ("queues", "jobs", "ledger", "security", "kv", "bus")
_LOOK_EVERY_S = 0.5


def upgrade(
    *,
    app: Annotated[str | None, Parameter(help="Declare the queues of this app as well.")] = None,
    wait: Annotated[str | None, Parameter(help="How long to try while a server is away, as 60s.")] = None,
    common: Common = COMMON,
) -> int:
    """Bring the stored data to the schema of this version. Safe to run twice, and from several machines at once.

    Examples:

      groundplane db upgrade --state /var/lib/groundplane

      groundplane db upgrade --app app:app --wait 60s
    """
    settings = common.settings()
    wait_s = _seconds(wait)
    description = describe_apart(app) if app is not None else None
    if _is_embedded(settings):
        state_folder.make(settings.state)
    queues = asyncio.run(_upgrade(settings, description, wait_s))
    declared = f"; queues: {', '.join(queues)}" if queues else ""
    stores = _stores(settings)
    text = f"the data has the schema of this version: {', '.join(stores)}{declared}"
    common.output.result({"upgraded": list(stores), "queues": queues}, text)
    return EXIT_OK


def check(
    *,
    wait: Annotated[str | None, Parameter(help="How long to wait for an upgrade elsewhere, as 300s.")] = None,
    common: Common = COMMON,
) -> int:
    """Say whether the stored data has the schema of this version; exit code 1 when it has not.

    Examples:

      groundplane db check && groundplane run app:app --role gateway

      groundplane db check --wait 300s
    """
    settings = common.settings()
    if _is_embedded(settings):
        state_folder.existing(settings.state)
    found = asyncio.run(_checked(settings, _seconds(wait)))
    rows = [{"store": store, "ok": error is None, **_told(error)} for store, error in found.items()]
    common.output.table(rows, ("store", "ok", "reason", "message"), empty="")
    return EXIT_OK if all(row["ok"] for row in rows) else EXIT_FAILURE


async def _upgrade(settings: Settings, description: Description | None, wait_s: float) -> list[str]:
    """Upgrade, and declare; again while a server is `unavailable`, for `wait_s` seconds. The declared queues."""
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            async with Plane.open(settings, ports=_stores(settings), upgrade=True) as plane:
                if description is None:
                    return []
                await plane.declare(description.actors.values())
                return [*sorted(description.actors), HAPPY_END, ERROR_END]
        except Unavailable:
            if time.monotonic() >= give_up_at:
                raise
        await asyncio.sleep(_LOOK_EVERY_S)


async def _checked(settings: Settings, wait_s: float) -> dict[str, GroundplaneError | None]:
    """`schemas`, again while something is old or away, for `wait_s` seconds."""
    give_up_at = time.monotonic() + wait_s
    while True:
        found = await schemas(settings)
        passing = [error for error in found.values() if error is not None]
        hopeless = any(error.reason != "schema_old" and not error.retryable for error in passing)
        if not passing or hopeless or time.monotonic() >= give_up_at:
            return found
        await asyncio.sleep(_LOOK_EVERY_S)


async def schemas(settings: Settings) -> dict[str, GroundplaneError | None]:
    """Look at each store by itself: None, or why a role could not use it. Nothing is made."""
    return {store: await _schema(settings, store) for store in _stores(settings)}


async def _schema(settings: Settings, store: str) -> GroundplaneError | None:
    try:
        found = await diagnose(settings, store)
        if found is None:
            async with Plane.open(settings, ports=(store,)):
                return None
    except GroundplaneError as error:
        return error
    if found.stored or store in ("queues", "kv", "bus"):  # a broker has no schema
        return None
    url = getattr(settings, store).masked()
    return FailedPrecondition(
        f"{store}: there are no tables at {url!r}; run `groundplane db upgrade`", reason="schema_old"
    )


def _is_embedded(settings: Settings) -> bool:
    return any(getattr(settings, store).scheme == "embedded" for store in _stores(settings))


def _stores(settings: Settings) -> tuple[str, ...]:
    return tuple(store for store in _STORES if store != "kv" or has_keys(settings))


def _seconds(wait: str | None) -> float:
    return parse_duration("wait", wait) if wait is not None else 0.0


def _told(error: GroundplaneError | None) -> dict[str, Any]:
    return {"reason": error.reason, "message": error.message} if error is not None else {"reason": "", "message": ""}
