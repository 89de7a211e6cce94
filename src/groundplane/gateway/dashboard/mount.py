"""Where the dashboard hangs in the gateway: its pages, each with the function that answers it.

What the pages need (Jinja2, forms, diagrams) is loaded at the first request of one of them: a gateway whose dashboard
nobody opens neither starts later nor weighs more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from groundplane.core.lifecycle import Lifecycle
from groundplane.gateway.endpoints import Endpoint
from groundplane.gateway.services import Services
from groundplane.security.access import Action

if TYPE_CHECKING:
    from groundplane.gateway.dashboard.logins import Logins
    from groundplane.gateway.dashboard.site import Site

ROOT = "/dashboard"


@dataclass(frozen=True)
class Page:
    """One page or change. `handler` is `module.function` of this package; `live` ends in a stream of fragments.
    `action` is decided about before the page is made; what it shows is asked for by operations, which decide again.
    """

    method: str
    path: str
    handler: str
    action: Action


PAGES = (
    Page("GET", "/", "jobs_pages.listing", Action.LIST_JOBS),
    Page("GET", f"{ROOT}/jobs/live", "jobs_pages.listing_live", Action.LIST_JOBS),
    Page("GET", f"{ROOT}/jobs/{{job_id}}", "job_page.show", Action.READ_JOB),
    Page("GET", f"{ROOT}/jobs/{{job_id}}/live", "job_page.live", Action.READ_JOB),
    Page("POST", f"{ROOT}/jobs/{{job_id}}/retry", "job_page.retry", Action.CALL_TOOL),
    Page(
        "POST",
        f"{ROOT}/jobs/{{job_id}}/questions/{{question_id}}",
        "job_page.answer",
        Action.ANSWER_QUESTION,
    ),
    Page("POST", f"{ROOT}/jobs/{{job_id}}/{{action}}", "job_page.control", Action.CONTROL_JOB),
    Page("GET", f"{ROOT}/actors", "actors_pages.listing", Action.READ_ACTORS),
    Page("GET", f"{ROOT}/actors/live", "actors_pages.listing_live", Action.READ_ACTORS),
    Page("GET", f"{ROOT}/actors/{{actor}}", "actors_pages.show", Action.READ_ACTORS),
    Page("GET", f"{ROOT}/actors/{{actor}}/live", "actors_pages.live", Action.READ_ACTORS),
    Page("GET", f"{ROOT}/dead", "dead_pages.listing", Action.READ_DEAD),
    Page("GET", f"{ROOT}/dead/live", "dead_pages.listing_live", Action.READ_DEAD),
    Page("GET", f"{ROOT}/dead/purge", "purge_pages.show_all", Action.PURGE_DEAD),
    Page("POST", f"{ROOT}/dead/purge", "purge_pages.purge_all", Action.PURGE_DEAD),
    Page("GET", f"{ROOT}/dead/{{dead_id}}", "dead_pages.show", Action.READ_DEAD),
    Page("GET", f"{ROOT}/dead/{{dead_id}}/purge", "purge_pages.show", Action.PURGE_DEAD),
    Page("POST", f"{ROOT}/dead/{{dead_id}}/purge", "purge_pages.purge", Action.PURGE_DEAD),
    Page("POST", f"{ROOT}/dead/{{dead_id}}/redrive", "dead_pages.redrive", Action.REDRIVE_DEAD),
    Page("GET", f"{ROOT}/services", "services_pages.listing", Action.READ_SERVICES),
    Page("GET", f"{ROOT}/services/live", "services_pages.listing_live", Action.READ_SERVICES),
    Page("GET", f"{ROOT}/health", "health_page.show", Action.PROBE_DETAILS),
    Page("GET", f"{ROOT}/health/live", "health_page.live", Action.PROBE_DETAILS),
    Page("GET", f"{ROOT}/tools", "tools_pages.listing", Action.LIST_TOOLS),
    Page("GET", f"{ROOT}/tools/{{tool}}", "tools_pages.show", Action.LIST_TOOLS),
    Page("POST", f"{ROOT}/tools/{{tool}}", "tools_pages.start", Action.CALL_TOOL),
    Page("GET", f"{ROOT}/login", "login_pages.show", Action.DESCRIBE),
    Page("POST", f"{ROOT}/login", "login_pages.enter", Action.DESCRIBE),
    Page("POST", f"{ROOT}/logout", "login_pages.leave", Action.DESCRIBE),
    Page("POST", f"{ROOT}/theme", "preferences.theme", Action.DESCRIBE),
    Page("GET", f"{ROOT}/static/{{digest}}/{{name}}", "assets.serve", Action.DESCRIBE),
)


class Dashboard:
    """Answers the pages over what the gateway has; opened and closed with it."""

    def __init__(
        self, services: Services, endpoints: list[Endpoint], lifecycle: Lifecycle, name: str, logins: Logins
    ) -> None:
        self._parts: Mapping[str, Any] = {
            "services": services,
            "endpoints": endpoints,
            "lifecycle": lifecycle,
            "name": name,
            "logins": logins,
        }
        self._site: Site | None = None

    def routes(self) -> list[Route]:
        """A route for each page."""
        return [Route(page.path, self._answering(page), methods=[page.method]) for page in PAGES]

    def _answering(self, page: Page) -> Callable[[Request], Any]:
        async def answer(request: Request) -> ASGIApp:
            if self._site is None:
                from groundplane.gateway.dashboard.site import Site

                self._site = Site(**self._parts)
            return await self._site.answer(page, request)

        return answer
