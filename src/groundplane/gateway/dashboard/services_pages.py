"""Services: which there are, their instances, who leads, and how far subscriptions are behind; live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from starlette.types import ASGIApp

from groundplane.core.errors import DeadlineExceeded, GroundplaneError
from groundplane.gateway.dashboard.live import stream
from groundplane.gateway.dashboard.site import Visit

EVERY_S = 3.0
ANSWER_S = 3.0
"""So long the page waits for the registry; then it says that it is unavailable."""
INSTANCES_MAX = 500
SUBSCRIPTIONS_MAX = 500


async def listing(visit: Visit) -> ASGIApp:
    """The page."""
    context, _ = await _context(visit)
    return visit.page("services.html", **context)


async def listing_live(visit: Visit) -> ASGIApp:
    """The tables as they change."""
    return stream(visit, "services.html", lambda: _context(visit), every_s=EVERY_S)


async def _context(visit: Visit) -> tuple[dict[str, Any], bool]:
    """A registry or a bus that is away is said on this page alone; nothing else waits for it, nor one for the other."""
    (registry, code), (bus, bus_code) = await asyncio.gather(
        _asked("the registry", _registry(visit)), _asked("the bus", _subscriptions(visit))
    )
    empty = {"services": [], "instances": [], "leaders": [], "more": 0, "subscriptions": [], "more_subscriptions": 0}
    troubles = {"trouble": registry.get("error", ""), "bus_trouble": bus.get("error", "")}
    context: dict[str, Any] = {**empty, **registry, **bus, **troubles, "code": code, "bus_code": bus_code}
    return context, code == bus_code == "unset"


async def _asked(whom: str, asking: Awaitable[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """What it answers; or the error, and whether it is `unavailable` or was never set up (`unset`)."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return await asking, ""
    except TimeoutError:
        late = DeadlineExceeded(f"services: {whom} did not answer within {ANSWER_S:g} s")
        return {"error": late.message}, "unavailable"
    except GroundplaneError as error:
        if error.code not in ("unavailable", "deadline_exceeded", "failed_precondition"):
            raise
        return {"error": error.message}, "unset" if error.code == "failed_precondition" else "unavailable"


async def _registry(visit: Visit) -> dict[str, Any]:
    found = await visit.ask("summarizeServices")
    instances = (await visit.ask("listAllInstances"))["instances"]
    leaders = (await visit.ask("listLeaders"))["leaders"]
    shown = instances[:INSTANCES_MAX]
    more = len(instances) - len(shown)
    return {"services": found["details"], "instances": shown, "more": more, "leaders": leaders}


async def _subscriptions(visit: Visit) -> dict[str, Any]:
    found = (await visit.ask("listSubscriptions"))["subscriptions"]
    shown = found[:SUBSCRIPTIONS_MAX]
    return {"subscriptions": shown, "more_subscriptions": len(found) - len(shown)}
