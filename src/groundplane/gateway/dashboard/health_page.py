"""Health: every check of this gateway, with its reason and what it took."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp

from groundplane.core.errors import GroundplaneError
from groundplane.gateway.dashboard.live import stream
from groundplane.gateway.dashboard.site import Visit
from groundplane.gateway.problems import HTTPProblem

EVERY_S = 3.0


async def show(visit: Visit) -> ASGIApp:
    """The page."""
    context, _ = await _context(visit)
    return visit.page("health.html", **context)


async def live(visit: Visit) -> ASGIApp:
    """The checks as they change."""
    return stream(visit, "health.html", lambda: _context(visit), every_s=EVERY_S)


async def _context(visit: Visit) -> tuple[dict[str, Any], bool]:
    try:
        document = await visit.ask("isHealthy")
    except HTTPProblem as problem:
        if problem.status != 503:
            raise
        document = problem.details
    except GroundplaneError as error:
        document = error.details
    checks = [_check(name, found) for name, found in document.get("checks", {}).items()]
    return {"checks": sorted(checks, key=lambda one: (one["ok"], one["name"]))}, False


def _check(name: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        found = {"status": "ok" if found == "ok" else "failed", "reason": "" if found == "ok" else str(found)}
    return {"name": name, "ok": found.get("status") != "failed", "backend": "", "latency_ms": None, **found}
