"""The gateway as an object: opened on the ports of a plane, served by uvicorn, drained in order.

async with Gateway.open(jobs=jobs, queues=queues, blobs=blobs, tools=ToolTable(app.tools.values())) as gateway:
    await gateway.serve(on_ready=lambda served: print(served.url))
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from groundplane.blobs import Blobs
from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument
from groundplane.core.lifecycle import Lifecycle
from groundplane.gateway import depth, openapi, problems, table
from groundplane.gateway.callbacks import ActorApi
from groundplane.gateway.endpoints import Endpoint
from groundplane.gateway.feed import Feed
from groundplane.gateway.guard import Guard
from groundplane.gateway.mcp_loading import LoadingLane
from groundplane.gateway.metrics import GatewayMetrics
from groundplane.gateway.relay import Relay, declare_missing
from groundplane.gateway.rest import DeadApi, Health, JobsApi, reply
from groundplane.gateway.services import Services
from groundplane.gateway.settings import GatewaySettings
from groundplane.gateway.tools import Reloaded, ToolTable
from groundplane.jobs import Jobs
from groundplane.jobs.port import JobQuery
from groundplane.queues import Queues
from groundplane.telemetry.admin import serve_admin
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.metrics import new_registry

SWEEP_INTERVAL_S = 1.0
MCP_PATH = "/mcp"
_HEADER_BUFFER_BYTES = 256 * 1024
_CHECK_TIMEOUT_S = 5.0
_log = get_logger("gateway")


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """Where a gateway listens, once it does."""

    url: str
    port: int
    admin_port: int | None = None


class Gateway:
    """Answers clients and keeps work moving: relays first messages, ends jobs at their deadlines."""

    def __init__(
        self, services: Services, lane: LoadingLane, lifecycle: Lifecycle, checks: dict[str, Any], relay: bool
    ) -> None:
        self._services = services
        self._lane = lane
        self._lifecycle = lifecycle
        self._checks = checks
        self._relays = relay
        health = Health(services, checks)
        self.endpoints: list[Endpoint] = table.endpoints(
            JobsApi(services), DeadApi(services), ActorApi(services), health
        )
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
        blobs: Blobs | None = None,
        settings: GatewaySettings | None = None,
        registry: CollectorRegistry | None = None,
        name: str = "groundplane",
        relay: bool = True,
    ) -> AsyncIterator[Gateway]:
        """A gateway over ports that stay the caller's. `relay=False` leaves outbox and deadlines to another process."""
        settings = settings or GatewaySettings()
        lifecycle = Lifecycle("gateway")
        metrics = GatewayMetrics(registry if registry is not None else new_registry())
        await declare_missing(queues, tools.actors())
        try:
            feed = Feed(jobs)
            services = Services(
                jobs=jobs, queues=queues, blobs=blobs, tools=tools, feed=feed, settings=settings, metrics=metrics
            )
            jobs.share_transactions(queues.driver)
            if relay:
                lifecycle.spawn(jobs.run_relay(Relay(queues, metrics).send), name="relay")
                lifecycle.spawn(jobs.run_sweeper(SWEEP_INTERVAL_S), name="sweeper")
            lane = LoadingLane(services, lifecycle, name)
            checks = {"jobs": _store_check(jobs), "tasks": _tasks_check(lifecycle, lane)}
            gateway = cls(services, lane, lifecycle, checks, relay)
            try:
                yield gateway
            finally:
                gateway.drain()
        finally:
            await lifecycle.aclose()

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics of this gateway."""
        return self._services.metrics.registry

    @property
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        return openapi.document(self.endpoints)

    async def loaded(self) -> None:
        """Return when all that serves is loaded; the MCP side comes after the rest."""
        await self._lane.loaded()

    def drain(self) -> None:
        """Refuse new jobs and end every stream and waiting call, each with a hint; jobs go on. Idempotent."""
        if not self._services.draining:
            self._services.draining = True
            self._services.feed.drain()
            self._lane.drain()

    def reload(self) -> Reloaded | None:
        """Read the tools again. None and a log line where the files have problems: the present tools stay."""
        try:
            outcome = self._services.tools.reload()
        except InvalidArgument as error:
            _log.error("reload_refused", problems=error.message)
            return None
        _log.info("reloaded", added=outcome.added, removed=outcome.removed, changed=outcome.changed)
        self._lifecycle.spawn(
            declare_missing(self._services.queues, self._services.tools.actors()), name="declare_queues"
        )
        return outcome

    async def serve(
        self,
        *,
        on_ready: Callable[[Served], None] | None = None,
        stop: asyncio.Event | None = None,
        signals: bool = False,
    ) -> None:
        """Serve HTTP until `stop` is set or, with `signals`, SIGTERM or SIGINT comes; SIGHUP then reloads the tools.

        Draining takes at most `grace_s` seconds. Raises `failed_precondition` when the port is taken.
        """
        settings, stop = self._services.settings, stop or asyncio.Event()
        async with AsyncExitStack() as stack:
            listener = stack.enter_context(contextlib.closing(_bind(settings.host, settings.port)))
            port = listener.getsockname()[1]
            admin_port = None
            if settings.admin_port is not None:
                admin_host = settings.admin_host or settings.host
                pages = {depth.PREFIX: depth.depth_page(self._services.queues)}
                serving = serve_admin(admin_host, settings.admin_port, self.registry, self._checks, pages)
                admin_port = await stack.enter_async_context(serving)
            if signals:
                stack.enter_context(self._signals(stop))
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            served = Served(url=f"http://{host}:{port}", port=port, admin_port=admin_port)

            def ready() -> None:
                if on_ready is not None:
                    on_ready(served)
                self._lane.load()

            server = _Server(self._uvicorn_config(), self.drain, ready)
            stopper = asyncio.create_task(_stop_when(stop, server), name="gateway:stop")
            try:
                await server.serve(sockets=[listener])
            finally:
                stopper.cancel()
                await asyncio.wait([stopper])

    async def serve_stdio(self) -> None:
        """Serve MCP on standard input and output until the client closes it."""
        from groundplane.gateway.stdio import serve_stdio

        await serve_stdio(self._lane.create())

    def _uvicorn_config(self) -> uvicorn.Config:
        settings = self._services.settings
        return uvicorn.Config(
            self.asgi,
            lifespan="on",
            ws="none",
            http="h11",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, int(settings.grace_s)),
            h11_max_incomplete_event_size=_HEADER_BUFFER_BYTES,
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
        routes = _merged(routes)
        paths: dict[Any, str] = {route.endpoint: route.path for route in routes}

        def route_of(scope: Scope) -> str:
            """The pattern that matched, for metrics; `unmatched` keeps the label bounded."""
            return paths.get(scope.get("endpoint"), "unmatched")

        services = self._services
        app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            middleware=[Middleware(Guard, services.settings, services.metrics, route_of)],
            exception_handlers={
                HTTPException: _http_exception,
                GroundplaneError: _groundplane_error,
                problems.HTTPProblem: _http_problem,
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


class _Server(uvicorn.Server):
    """uvicorn, told by us when to stop, and telling us when it starts and before it waits for connections to end."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to whoever owns the process."""
        yield


async def _stop_when(stop: asyncio.Event, server: uvicorn.Server) -> None:
    await stop.wait()
    server.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # the protocol is named, else asyncio leaves Nagle's algorithm on: 40 ms for each answer in two writes
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise FailedPrecondition(
            f"port: {port!r} on {host} cannot be bound: {error.strerror}; stop what listens there, or use another port",
            details={"host": host, "port": port},
        ) from error
    return listener


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


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"path: {request.url.path[:200]!r} does not exist; see /openapi.json"
    elif error.status_code == 405:
        message = f"method: {request.method[:20]!r} is not for {request.url.path[:200]!r}; see /openapi.json"
    else:
        message = f"request: {error.detail}"
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    return problems.HTTPProblem(error.status_code, message, headers=headers).response()


async def _groundplane_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GroundplaneError)
    if error.code == "internal":
        _log.error("request_failed", path=request.url.path, error=str(error))
    return problems.of_error(error)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, problems.HTTPProblem)
    return error.response()


def _store_check(jobs: Jobs) -> Callable[[], Any]:
    async def check() -> str | None:
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                await jobs.list_jobs(JobQuery(limit=1))
        except TimeoutError:
            return f"the job store does not answer within {_CHECK_TIMEOUT_S:g} s"
        except GroundplaneError as error:
            return f"the job store: {error.message}"
        return None

    return check


def _tasks_check(lifecycle: Lifecycle, lane: LoadingLane) -> Callable[[], Any]:
    async def check() -> str | None:
        if lifecycle.closed:
            return "the gateway is closed"
        failure = lifecycle.failure or lane.failure
        return f"a task failed: {type(failure).__name__}" if failure is not None else None

    return check
