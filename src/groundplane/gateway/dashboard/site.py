"""The dashboard once somebody looks: templates, the visit of one request, and how every answer leaves."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from importlib import import_module
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp

from groundplane.core.errors import GroundplaneError
from groundplane.core.lifecycle import Lifecycle
from groundplane.gateway import problems
from groundplane.gateway.access import admitted, caller_of, told
from groundplane.gateway.dashboard import assets, browser, shown
from groundplane.gateway.dashboard.desk import Desk
from groundplane.gateway.dashboard.flow import Flow
from groundplane.gateway.dashboard.logins import Logins, login_of
from groundplane.gateway.dashboard.mount import ROOT, Page
from groundplane.gateway.endpoints import Endpoint
from groundplane.gateway.problems import HTTPProblem
from groundplane.gateway.services import Services
from groundplane.security.access import Action, Caller, decide
from groundplane.telemetry.logs import get_logger

THEMES = ("auto", "light", "dark")
KEY = "dashboard"
"""The name of the secret that tokens of forms are made with; replicas share it."""
SECTIONS = (
    ("jobs", "/", "Jobs", Action.LIST_JOBS),
    ("tools", f"{ROOT}/tools", "Tools", Action.LIST_TOOLS),
    ("actors", f"{ROOT}/actors", "Actors", Action.READ_ACTORS),
    ("dead", f"{ROOT}/dead", "Dead letters", Action.READ_DEAD),
    ("services", f"{ROOT}/services", "Services", Action.READ_SERVICES),
    ("health", f"{ROOT}/health", "Health", Action.PROBE_DETAILS),
)
_log = get_logger("dashboard")


class Site:
    """Made at the first request, kept until the gateway closes."""

    def __init__(
        self, *, services: Services, endpoints: list[Endpoint], lifecycle: Lifecycle, name: str, logins: Logins
    ) -> None:
        self.services = services
        self.name = name
        self.desk = Desk(endpoints)
        self.flow = Flow(services.jobs, services.queues, lifecycle)
        self.logins = logins
        self.key = b""
        self._templates = _environment()

    async def answer(self, page: Page, request: Request) -> ASGIApp:
        """The page's answer, or a page that says what went wrong; with the headers of every answer."""
        self.key = self.key or await self.services.secret(KEY)
        visit = Visit(self, request)
        try:
            admitted(request.scope, page.action, page.path)
            if page.method == "POST":
                browser.check_origin(request)
                visit.fields = await browser.read_form(request)
                browser.check_token(self.key, visit.bound, visit.form)
            module, _, name = page.handler.partition(".")
            response: ASGIApp = await getattr(import_module(f"{__package__}.{module}"), name)(visit)
        except HTTPProblem as problem:
            response = visit.problem(problem.status, problem.message, problem.headers)
        except GroundplaneError as error:
            if error.code == "internal":
                _log.error("page_failed", path=request.url.path, error=str(error))
            if error.reason == "unauthenticated" and self.logins.offered and not page.path.endswith("/live"):
                return visit.finish(visit.go(f"{ROOT}/login?{urlencode({'back': visit.here})}"))
            error = told(caller_of(request.scope), error)
            response = visit.problem(problems.of_error(error).status_code, error.message)
        return visit.finish(response)

    def render(self, template: str, context: Mapping[str, Any]) -> str:
        """A whole page."""
        return self._templates.get_template(template).render(context)

    def fragment(self, template: str, context: Mapping[str, Any]) -> str:
        """The part of a page that changes while it is looked at: its block `live`."""
        found = self._templates.get_template(template)
        return "".join(found.blocks["live"](found.new_context(dict(context))))


class Visit:
    """One request of one browser, and how to answer it."""

    def __init__(self, site: Site, request: Request) -> None:
        self.site = site
        self.request = request
        self.fields: dict[str, list[str]] = {}
        self.id = browser.visit_of(request)
        self._fresh = "" if self.id else browser.new_visit()

    @property
    def bound(self) -> str:
        """What tokens of forms belong to: the visit, which may begin with this answer, and the login if any."""
        login = login_of(self.request.scope["headers"])
        visit = self.id or self._fresh
        return f"{visit} {login}" if login else visit

    @property
    def services(self) -> Services:
        """The gateway's parts."""
        return self.site.services

    @property
    def caller(self) -> Caller | None:
        """Who looks; None for a stranger."""
        return caller_of(self.request.scope)

    def may(self, action: Action, **about: str) -> bool:
        """Whether that is for this caller, so that nothing else is offered."""
        return decide(self.caller, action, **about).allowed

    @property
    def here(self) -> str:
        """Path and query of this page; after a change of the page that it came from; of a stream the first page's."""
        url = self.request.url
        if self.request.method != "GET":
            url = URL(self.request.headers.get("referer", ""))
            own = url.netloc.lower() == self.request.headers.get("host", "").lower()
            return browser.local_path(f"{url.path}{'?' * bool(url.query)}{url.query}") if own else "/"
        return "/" if url.path.endswith("/live") else f"{url.path}{'?' * bool(url.query)}{url.query}"

    @property
    def theme(self) -> str:
        """What this browser chose."""
        chosen = self.request.cookies.get(browser.THEME_COOKIE, "")
        return chosen if chosen in THEMES else "auto"

    @property
    def form(self) -> dict[str, str]:
        """The fields that were sent; of a repeated one the last value."""
        return {name: values[-1] for name, values in self.fields.items()}

    async def lasts(self) -> bool:
        """Whether the login that this request came with still holds; True where it came with something else."""
        request, caller = self.request, self.caller
        if caller is None or caller.kind != "key" or not login_of(request.scope["headers"]):
            return True
        return await self.site.logins.caller(request.url.path, request.scope["headers"]) is not None

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    def query(self, name: str) -> str:
        """A parameter of the query, trimmed; empty without it."""
        return str(self.request.query_params.get(name, "")).strip()

    async def ask(self, operation: str, **given: Any) -> dict[str, Any]:
        """See `Desk.ask`, for this visit's caller, who is told errors as he may know them."""
        try:
            return await self.site.desk.ask(self.request, operation, **given)
        except GroundplaneError as error:
            raise told(self.caller, error) from error

    def page(self, template: str, status: int = 200, **context: Any) -> Response:
        """A page. Surrogates that no UTF-8 carries were written out before; what slipped through becomes `?`."""
        html = self.site.render(template, {**self.context(), **context})
        return Response(html.encode("utf-8", "replace"), status, media_type="text/html; charset=utf-8")

    def context(self) -> dict[str, Any]:
        """What every template has."""
        return {
            "plane": self.site.name,
            "root": ROOT,
            "theme": self.theme,
            "token": browser.token_of(self.site.key, self.bound),
            "here": self.here,
            "sections": [one[:3] for one in SECTIONS if self.may(one[3])],
            "caller": self.caller,
            "draining": self.services.draining,
        }

    def go(self, path: str) -> Response:
        """After a change: look at this, by GET."""
        return RedirectResponse(path, 303)

    def problem(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
        """A page that says what went wrong."""
        phrase = HTTPStatus(status).phrase
        shown_message = message if status != 500 else "The gateway failed; its log says why."
        response = self.page("problem.html", status, code=status, phrase=phrase, message=shown_message)
        response.headers.update(headers or {})
        if status in (429, 503):
            response.headers["Retry-After"] = str(problems.RETRY_AFTER_S)
        return response

    def finish(self, response: ASGIApp) -> ASGIApp:
        """The headers of every answer, and the cookie of a visit that begins. Streams have their own."""
        if not isinstance(response, Response):
            return response
        for name, value in browser.HEADERS.items():
            response.headers.setdefault(name, value)
        if self._fresh and not response.headers["Cache-Control"].startswith("public"):
            self.keep(response, browser.VISIT_COOKIE, self._fresh)
        return response

    def keep(self, response: Response, name: str, value: str, max_age: int | None = None) -> None:
        """A cookie that no script reads and no other site's request carries."""
        response.set_cookie(
            name, value, max_age=max_age, httponly=True, samesite="strict", secure=browser.is_secure(self.request)
        )


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        text=shown.text, pretty=shown.pretty, brief=shown.brief, moment=shown.moment, lasting=shown.length,
        as_json=shown.as_json,
    )  # fmt: skip
    made.globals["asset"] = assets.address
    made.globals["parts"] = made.get_template("_parts.html").module
    made.globals["fieldset"] = made.get_template("_fields.html").module
    return made
