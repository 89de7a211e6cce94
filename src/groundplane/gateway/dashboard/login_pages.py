"""Logging in with an API key, and out."""

from __future__ import annotations

from starlette.responses import Response

from groundplane.gateway.dashboard import browser
from groundplane.gateway.dashboard.browser import local_path
from groundplane.gateway.dashboard.logins import COOKIE, TTL_S
from groundplane.gateway.dashboard.site import Visit
from groundplane.gateway.problems import HTTPProblem
from groundplane.security.access import Action


async def show(visit: Visit) -> Response:
    """The form."""
    _check_offered(visit)
    return visit.page("login.html", back=local_path(visit.query("back")), wrong="")


async def enter(visit: Visit) -> Response:
    """Exchange the key for a session. The visit begins anew, so that no token from before is good afterwards."""
    _check_offered(visit)
    back = local_path(visit.form.get("back", "/"))
    opened = await visit.site.logins.open(visit.form.get("key", "").strip()[:200])
    if opened is None:
        visit.services.access.record(None, Action.CONNECT, "refused", resource="dashboard", detail="login")
        wrong = "This key opens nothing: it is mistyped, revoked or expired."
        return visit.page("login.html", 401, back=back, wrong=wrong)
    login, caller = opened
    visit.services.access.record(caller, Action.CONNECT, "done", resource="dashboard", detail="login")
    response = visit.go(back)
    visit.keep(response, COOKIE, login, int(TTL_S))
    visit.keep(response, browser.VISIT_COOKIE, browser.new_visit())
    return response


async def leave(visit: Visit) -> Response:
    """End the session."""
    if visit.caller is not None:
        visit.services.access.record(visit.caller, Action.CONNECT, "done", resource="dashboard", detail="logout")
    await visit.site.logins.close(visit.request.scope["headers"])
    response = visit.go("/")
    visit.keep(response, COOKIE, "", 0)
    return response


def _check_offered(visit: Visit) -> None:
    if not visit.site.logins.offered:
        raise HTTPProblem(404, "login: API keys are not taken here")
