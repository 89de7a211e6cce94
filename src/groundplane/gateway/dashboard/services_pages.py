"""Services: which there are, their instances, and who leads; live."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp

from groundplane.core.errors import DeadlineExceeded, GroundplaneError
from groundplane.gateway.dashboard.live import stream
from groundplane.gateway.dashboard.site import Visit

EVERY_S = 3.0
ANSWER_S = 3.0
"""So long the page waits for the registry; then it says that it is unavailable."""
INSTANCES_MAX = 500


async def listing(visit: Visit) -> ASGIApp:
    """The page."""
    context, _ = await _context(visit)
    return visit.page("services.html", **context)


async def listing_live(visit: Visit) -> ASGIApp:
    """The tables as they change."""
    return stream(visit, "services.html", lambda: _context(visit), every_s=EVERY_S)


async def _context(visit: Visit) -> tuple[dict[str, Any], bool]:
    """A registry that is away is said on this page alone; nothing else waits for it."""
    context: dict[str, Any] = {"trouble": "", "code": "", "services": [], "instances": [], "leaders": [], "more": 0}
    try:
        async with asyncio.timeout(ANSWER_S):
            found = await visit.ask("summarizeServices")
            instances = (await visit.ask("listAllInstances"))["instances"]
            leaders = (await visit.ask("listLeaders"))["leaders"]
    except TimeoutError:
        late = DeadlineExceeded(f"services: the registry did not answer within {ANSWER_S:g} s")
        return {**context, "trouble": late.message, "code": "unavailable"}, False
    except GroundplaneError as error:
        if error.code not in ("unavailable", "deadline_exceeded", "failed_precondition"):
            raise
        unset = error.code == "failed_precondition"
        return {**context, "trouble": error.message, "code": "unset" if unset else "unavailable"}, unset
    shown = instances[:INSTANCES_MAX]
    return {
        **context,
        "services": found["details"],
        "instances": shown,
        "more": len(instances) - len(shown),
        "leaders": leaders,
    }, False
