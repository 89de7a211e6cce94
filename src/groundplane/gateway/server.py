"""The gateway as an object: opened on the ports of a plane, served by uvicorn, drained in order.

async with Gateway.open(jobs=jobs, queues=queues, blobs=blobs, tools=ToolTable(app.tools.values())) as gateway:
    await gateway.serve(on_ready=lambda served: print(served.url))
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, compile_path
from starlette.types import ASGIApp, Scope

from groundplane.blobs import Blobs
from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.core.lifecycle import Lifecycle
from groundplane.gateway import depth, openapi, problems, table
from groundplane.gateway.access import Access, caller_of, told
from groundplane.gateway.authentication import MCP_PATH, Authentication, Authenticator, token_verifier
from groundplane.gateway.callbacks import ActorApi
from groundplane.gateway.catalogue import Catalogue
from groundplane.gateway.connection import Bounds
from groundplane.gateway.dashboard.logins import Logins
from groundplane.gateway.dashboard.mount import Dashboard
from groundplane.gateway.draining import Doorkeeper, stop_in_order
from groundplane.gateway.endpoints import Endpoint
from groundplane.gateway.feed import Feed
from groundplane.gateway.guard import Guard
from groundplane.gateway.health_api import HealthApi, gateway_health
from groundplane.gateway.limits import Limited, Limiter, Limits
from groundplane.gateway.listener import Server, bind, stop_when
from groundplane.gateway.mcp.loading import LoadingLane
from groundplane.gateway.metrics import GatewayMetrics
from groundplane.gateway.observer import Observer
from groundplane.gateway.relay import Relay, declare_missing
from groundplane.gateway.rest import DeadApi, JobsApi, reply
from groundplane.gateway.security_api import SecurityApi, security_endpoints
from groundplane.gateway.services import Services, own_secrets
from groundplane.gateway.services_api import ServicesApi, services_endpoints
from groundplane.gateway.services_observer import ServicesObserver
from groundplane.gateway.settings import GatewaySettings, local_url
from groundplane.gateway.tools import Reloaded, ToolTable
from groundplane.gateway.tracing import Traced
from groundplane.jobs import Jobs
from groundplane.queues import Queues
from groundplane.security.store import Security
from groundplane.services.directory import Directory
from groundplane.services.subscriptions import Subscriptions
from groundplane.telemetry.admin import serve_admin
from groundplane.telemetry.health import Health
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.process import process_registry

SWEEP_INTERVAL_S = 1.0
_log = get_logger("gateway")


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """Where a gateway listens, once it does."""

    url: str
    port: int
    admin_port: int | None = None


class Gateway:
    """Answers clients and keeps work moving: relays first messages, ends jobs at their deadlines."""

    def __init__(
        self,
        services: Services,
        lane: LoadingLane,
        lifecycle: Lifecycle,
        health: Health,
        *,
        name: str,
        authenticator: Authenticator,
        security: Security | None,
        directory: Directory | None = None,
        subscriptions: Subscriptions | None = None,
    ) -> None:
        self._services = services
        self._lane = lane
        self._lifecycle = lifecycle
        self._health = health
        self._authenticator = authenticator
        self.endpoints: list[Endpoint] = [
            *table.endpoints(JobsApi(services), DeadApi(services), ActorApi(services), HealthApi(health)),
            *security_endpoints(SecurityApi(authenticator, security, name)),
            *services_endpoints(ServicesApi(services.access, directory, subscriptions)),
        ]
        self._logins = Logins(security if services.settings.takes_keys else None)
        self._dashboard = Dashboard(services, self.endpoints, lifecycle, name, self._logins)
        self.asgi: Starlette = self._application()

    def __repr__(self) -> str:
        state = "draining" if self._services.draining else "closed" if self._lifecycle.closed else "open"
        return f"<Gateway {state}, {len(self._services.tools)} tools>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        jobs: Jobs,
        queues: Queues,
        tools: ToolTable,
        catalogue: Catalogue | None = None,
        blobs: Blobs | None = None,
        settings: GatewaySettings | None = None,
        registry: CollectorRegistry | None = None,
        name: str = "groundplane",
        relay: bool = True,
        jobs_backend: str = "sqlite",
        security: Security | None = None,
        directory: Directory | None = None,
        subscriptions: Subscriptions | None = None,
    ) -> AsyncIterator[Gateway]:
        """A gateway over ports that stay the caller's. `relay=False` leaves outbox and deadlines to another process.
        `security` keeps keys, the audit log and what replicas share; without it nothing is told and no key is taken.
        `directory` is what `/v1/services`, its page and its metrics show, `subscriptions` what `/v1/subscriptions` and
        that page do; without them that is refused.
        `jobs_backend` says how long the store of jobs usually may take to answer (`telemetry.health.SLOW_S`).
        """
        settings = settings or GatewaySettings()
        if security is None and settings.takes_keys:
            raise InvalidArgument(f"security: is missing; auth {settings.auth!r} needs the plane's port security")
        lifecycle = Lifecycle("gateway")
        metrics = GatewayMetrics(registry if registry is not None else process_registry("gateway", folder=Path()))
        catalogue = catalogue or Catalogue()
        await declare_missing(queues, tools.actors() | catalogue.actors())
        try:
            limiter = Limiter(Limits.of(settings, authenticated=settings.auth != "none"), refused=metrics.refused)
            services = Services(
                jobs=jobs, queues=queues, blobs=blobs, tools=tools, catalogue=catalogue, feed=Feed(jobs),
                settings=settings, metrics=metrics, limiter=limiter, access=Access(security),
                secret=security.secret if security is not None else own_secrets(),
                sessions=security.sessions if security is not None else None,
            )  # fmt: skip
            tokens = token_verifier(settings)
            if tokens is not None:
                lifecycle.on_close(tokens.aclose)
            authenticator = Authenticator(settings, security, tokens)
            if security is not None:
                security.keep()
            jobs.share_transactions(queues.driver)
            lane = LoadingLane(services, lifecycle, name)
            health = gateway_health(services, lifecycle, lane, backend=jobs_backend)
            gateway = cls(
                services, lane, lifecycle, health, name=name, authenticator=authenticator, security=security,
                directory=directory, subscriptions=subscriptions,
            )  # fmt: skip
            gateway._start(relay, directory)
            try:
                yield gateway
            finally:
                gateway.drain()
                gateway.end()
        finally:
            await lifecycle.aclose()

    def _start(self, relay: bool, directory: Directory | None) -> None:
        """Begin what goes on beside answering."""
        jobs, queues, metrics = self._services.jobs, self._services.queues, self._services.metrics
        spawn = self._lifecycle.spawn
        spawn(Observer(jobs, queues, self._services.tools, metrics.registry).run(), name="observer")
        if relay:
            spawn(jobs.run_relay(Relay(queues, metrics).send), name="relay")
            spawn(jobs.run_sweeper(SWEEP_INTERVAL_S), name="sweeper")
        if directory is not None:
            spawn(ServicesObserver(directory, metrics.registry).run(), name="services_observer")

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics of this gateway."""
        return self._services.metrics.registry

    @property
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        return openapi.document(self.endpoints, self._services.settings)

    async def loaded(self) -> None:
        """Return when all that serves is loaded; the MCP side comes after the rest."""
        await self._lane.loaded()

    def drain(self) -> None:
        """Refuse new requests and end every stream with a hint; jobs go on, and so do calls that cannot be resumed.
        Idempotent.
        """
        stopping = self._services.stopping
        if not stopping.refusing:
            stopping.leaving = stopping.refusing = True
            self._services.feed.drain()
            self._lane.drain()

    def end(self) -> None:
        """Answer the calls that still wait with the id of their job, which goes on."""
        self._services.feed.end()

    def reload(self) -> Reloaded | None:
        """Read the tools again. None and a log line where the files have problems: the present tools stay."""
        try:
            outcome = self._services.tools.reload()
        except InvalidArgument as error:
            _log.error("reload_refused", problems=error.message)
            return None
        _log.info("reloaded", added=outcome.added, removed=outcome.removed, changed=outcome.changed)
        self._lifecycle.spawn(self._declare(), name="declare_queues")
        return outcome

    async def _declare(self) -> None:
        """Queues of new tools. While the broker is away the relay declares what a job needs, so nothing is lost."""
        try:
            await declare_missing(self._services.queues, self._services.tools.actors())
        except GroundplaneError as error:
            _log.warning("queues_not_declared", code=error.code, error=error.message)

    async def serve(
        self,
        *,
        on_ready: Callable[[Served], None] | None = None,
        stop: asyncio.Event | None = None,
        signals: bool = False,
    ) -> None:
        """Serve HTTP until `stop` is set or, with `signals`, SIGTERM or SIGINT comes; SIGHUP then reloads the tools.

        Then it stops in the order of `draining`, within `grace_s` seconds. Raises `failed_precondition` when the port
        is taken.
        """
        settings, stop = self._services.settings, stop or asyncio.Event()
        async with AsyncExitStack() as stack:
            listener = stack.enter_context(contextlib.closing(bind(settings.host, settings.port)))
            port = listener.getsockname()[1]
            admin_port = None
            if settings.admin_port is not None:
                admin_host = settings.admin_host or settings.host
                pages = {depth.PREFIX: depth.depth_page(self._services.queues)}
                serving = serve_admin(admin_host, settings.admin_port, self.registry, self._health, pages)
                admin_port = await stack.enter_async_context(serving)
            if signals:
                stack.enter_context(self._signals(stop))
            served = Served(url=local_url(settings.host, port), port=port, admin_port=admin_port)

            def ready() -> None:
                self._health.started()
                if on_ready is not None:
                    on_ready(served)
                self._lane.load()

            bounds = Bounds.of(settings, self._services.metrics.refused)
            server = Server(self.asgi, bounds, settings.idle_s, ready=ready, stopping=self._stop_in_order)
            stopper = asyncio.create_task(stop_when(stop, server), name="gateway:stop")
            try:
                await server.serve(sockets=[listener])
            finally:
                stopper.cancel()
                await asyncio.wait([stopper])

    async def serve_stdio(self) -> None:
        """Serve MCP on standard input and output until the client closes it."""
        from groundplane.gateway.stdio import serve_stdio

        await serve_stdio(self._lane.create())

    async def _stop_in_order(self) -> float:
        settings = self._services.settings
        return await stop_in_order(
            self._services.stopping,
            drain=self.drain,
            end=self.end,
            delay_s=settings.drain_delay_s,
            grace_s=settings.grace_s,
        )

    @contextlib.contextmanager
    def _signals(self, stop: asyncio.Event) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: stop.set, signal.SIGINT: stop.set, signal.SIGHUP: self.reload}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _application(self) -> Starlette:
        routes = [Route(MCP_PATH, self._lane)]  # first, as they are tried in turn: calls are the most frequent
        routes += [Route(one.path, one.call, methods=[one.method]) for one in self.endpoints]
        routes.append(Route("/openapi.json", self._document, methods=["GET"]))
        routes += self._dashboard.routes()
        routes = _merged(routes)
        paths: dict[Any, str] = {route.endpoint: route.path for route in routes}

        def route_of(scope: Scope) -> str:
            """The pattern that matched, for metrics; `unmatched` keeps the label bounded."""
            return paths.get(scope.get("endpoint"), "unmatched")

        services = self._services
        outermost = Middleware(Traced, route_of)
        middleware = [outermost, Middleware(Guard, services.settings, services.metrics, route_of)]
        middleware.append(Middleware(Authentication, self._authenticator, services.access, self._logins.caller))
        if services.limiter.limits.rate is not None:
            middleware.append(Middleware(Limited, services.limiter, _unlimited(self.endpoints)))
        middleware.insert(1, Middleware(Doorkeeper, services.stopping))
        app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            middleware=middleware,
            exception_handlers={
                HTTPException: problems.http_exception,
                GroundplaneError: self._groundplane_error,
                problems.HTTPProblem: problems.http_problem,
            },
        )
        app.router.redirect_slashes = False
        return app

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self._lane.running():
            yield
        _log.info("lifespan_ended")

    async def _document(self, request: Request) -> Response:
        return reply(self.openapi)

    async def _groundplane_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, GroundplaneError)
        if error.code == "internal":
            _log.error("request_failed", path=request.url.path, error=str(error))
        error = told(caller_of(request.scope), error)
        response = problems.of_error(error)
        if error.reason in ("unauthenticated", "insufficient_scope"):
            presented = "authorization" in request.headers
            challenge = self._authenticator.challenge(request.url.path, error, presented=presented)
            response.headers["WWW-Authenticate"] = challenge
        return response


def _unlimited(endpoints: Iterable[Endpoint]) -> Callable[[str], bool]:
    """Whether a path is one that no caller's rate may silence: probes, and what actors report with a job's token."""
    patterns = [compile_path(one.path)[0] for one in endpoints if one.token or one.tag == "health"]
    return lambda path: any(pattern.match(path) for pattern in patterns)


def _merged(routes: list[Route]) -> list[Route]:
    """Routes of one path become one, so that a wrong method is 405 with all methods in `Allow`."""
    by_path: dict[str, list[Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, []).append(route)
    return [found[0] if len(found) == 1 else _by_method(path, found) for path, found in by_path.items()]


def _by_method(path: str, routes: list[Route]) -> Route:
    endpoints = {method: route.endpoint for route in routes for method in route.methods or ()}

    async def endpoint(request: Request) -> ASGIApp:
        chosen: ASGIApp = await endpoints[request.method](request)
        return chosen

    return Route(path, endpoint, methods=list(endpoints))
