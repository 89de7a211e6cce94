"""What a browser keeps of its visitor's taste."""

from __future__ import annotations

from starlette.responses import Response

from groundplane.gateway.dashboard import browser
from groundplane.gateway.dashboard.browser import local_path
from groundplane.gateway.dashboard.site import THEMES, Visit
from groundplane.gateway.problems import HTTPProblem

YEAR_S = 365 * 86400


async def theme(visit: Visit) -> Response:
    """Light, dark, or as the system says."""
    chosen = visit.form.get("theme", "")
    if chosen not in THEMES:
        raise HTTPProblem(422, f"theme: {chosen[:50]!r} is not one of {', '.join(THEMES)}")
    response = visit.go(local_path(visit.form.get("back", "/")))
    visit.keep(response, browser.THEME_COOKIE, chosen, YEAR_S)
    return response
