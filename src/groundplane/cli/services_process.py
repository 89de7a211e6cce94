"""The endpoints of an App as a process: what `dev` starts and `run --role services` is.

It imports the user's code, serves it on the plane's bus, and registers its services for as long as it serves. A stop
has an order: the registry says SHUTDOWN, so that nobody chooses this instance any more; what runs ends within its
grace; the entries go, leaders hand over; the bus is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from groundplane.core.environment import EnvironmentView
from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument, Unavailable
from groundplane.core.settings import Settings, from_bytes, to_bytes
from groundplane.telemetry.logs import get_logger

if TYPE_CHECKING:
    from groundplane.app import App
    from groundplane.bus import Bus
    from groundplane.kv import KV
    from groundplane.mesh.sidecar.process import Opener
    from groundplane.services import Registration, Registry
    from groundplane.services.leadership import Leadership
    from groundplane.telemetry.health import Health

_log = get_logger("endpoints")


class EndpointsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is told: the encoded settings, which App, and where to say that it is ready."""

    settings: bytes
    target: str
    ready_file: str

    @classmethod
    def of(cls, settings: Settings, target: str, ready_file: Path) -> bytes:
        """The configuration as bytes for the child's standard input."""
        return msgspec.json.encode(cls(settings=to_bytes(settings), target=target, ready_file=str(ready_file)))


async def serve(app: App, settings: Settings, *, on_ready: Callable[[int], None], stop: asyncio.Event) -> None:
    """Serve the endpoints until `stop` is set. `on_ready` gets the port of metrics and health, once calls are taken and
    the services are registered. Where the plane's bus or keys are away at the start they are waited for; readiness says
    so.
    """
    from groundplane.mesh.sidecar.process import ToldToStop

    async with AsyncExitStack() as stack:
        try:
            await _serve(stack, app, settings, on_ready, stop)
        except ToldToStop:
            _log.info("stopped_while_it_waited")


async def _serve(
    stack: AsyncExitStack, app: App, settings: Settings, on_ready: Callable[[int], None], stop: asyncio.Event
) -> None:
    from groundplane.bus.endpoints import start
    from groundplane.bus.observing import BusObserver
    from groundplane.plane import Plane
    from groundplane.services.leadership import registered
    from groundplane.services.registration import made_instance_id
    from groundplane.starting import ToolJobs
    from groundplane.telemetry.admin import serve_admin
    from groundplane.telemetry.health import Health, backend_of
    from groundplane.telemetry.process import process_registry
    from groundplane.telemetry.traces import tracing

    instance = made_instance_id()
    health = Health("services")
    metrics = process_registry("services", folder=settings.state)
    await stack.enter_async_context(tracing(f"groundplane-services-{app.name}", "services", namespace=settings.name))
    admin_port = await stack.enter_async_context(serve_admin(*_admin(), metrics, health))
    patiently = partial(_patiently, stack, health, stop, admin_port)
    plane = await patiently("the bus", lambda: Plane.open(settings, ports=("bus",)))
    plane.bus.job_starter = await stack.enter_async_context(ToolJobs.open(settings, app.tools))
    registry = await patiently("the keys", lambda: _registry_of(settings))
    observer = BusObserver(plane.bus, metrics)
    watching = asyncio.create_task(observer.run(), name="bus_observer")
    try:
        async with AsyncExitStack() as entries:
            leaderships = [
                await entries.enter_async_context(one.open(_keys(registry), member=instance))
                for one in app.elections.values()
            ]
            async with start(plane.bus, app.endpoints, instance=instance):
                health.add("bus", partial(_bus_check, plane.bus), backend=backend_of(settings.bus.scheme))
                for one in leaderships:
                    health.add(f"election {one.name}", partial(_complaint, one))
                health.started()
                known = await _register(entries, registry, app, settings, instance, health)
                for leadership, registration in _pairs(app, leaderships, known):
                    await entries.enter_async_context(registered(leadership, registration))
                on_ready(admin_port)
                await stop.wait()
                health.add("drain", _draining)
                await asyncio.gather(*(_tell(one) for one in known))
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def served_by(app: App, settings: Settings) -> list[str]:
    """Under which names an instance of the App is registered: its services, or for one that only hears its own."""
    from groundplane.plane import bus_name

    known = [*(one.service for one in app.endpoints.rpc), *(one.service for one in app.endpoints.commands)]
    return list(dict.fromkeys(known)) or [bus_name(app.name or settings.name)]


def _admin() -> tuple[str, int]:
    """Where metrics and health are: as processes of actors are told it, else on a free port of the loopback."""
    environment = EnvironmentView(os.environ)
    host, port = (environment.get(f"GROUNDPLANE_ACTOR_ADMIN_{name}") for name in ("HOST", "PORT"))
    number = port.value if port is not None else "0"
    if not (number.isascii() and number.isdigit() and int(number) < 65536):
        raise InvalidArgument(f"GROUNDPLANE_ACTOR_ADMIN_PORT: {number!r} is no port; use 0 to 65535")
    return host.value if host is not None else "127.0.0.1", int(number)


async def _patiently(
    stack: AsyncExitStack, health: Health, stop: asyncio.Event, admin_port: int, what: str, opener: Opener
) -> Any:
    """Open it as soon as its server is there; until then readiness says what is waited for, and why."""
    from groundplane.mesh.sidecar.process import open_patiently

    told = ""

    def away(error: Unavailable) -> None:
        nonlocal told
        if error.message != told:
            told = error.message
            health.starting(f"{what}: {told}")
            _log.warning("waits_for_a_server", what=what, error=told, admin_port=admin_port)

    health.starting(what)
    return await open_patiently(stack, what, opener, stop, math.inf, away=away)


async def _register(
    entries: AsyncExitStack,
    registry: Registry | None,
    app: App,
    settings: Settings,
    instance: str,
    health: Health,
) -> list[Registration]:
    if registry is None:
        _log.warning("not_registered", why="kv is embedded and the jobs are on a server: nobody else would see it")
        return []
    readiness = partial(_readiness, health)
    found = []
    for service in served_by(app, settings):
        opening = registry.register(service, instance_id=instance, metadata={"app": app.name}, readiness=readiness)
        found.append(await entries.enter_async_context(opening))
        health.add(f"registry {service}", found[-1].check)
    return found


def _pairs(app: App, leaderships: list[Leadership], known: list[Registration]) -> list[tuple[Leadership, Registration]]:
    """Whose record tells of which election; it has room for one. That of the service's name, else the first that guards
    a handler of the service; the only one of an App is told by all of its services.
    """
    from groundplane.services.leadership.declared import election_of

    if len(leaderships) == 1:
        return [(leaderships[0], one) for one in known]
    by_name = {one.name: one for one in leaderships}
    found = []
    served = [(one.service, election_of(one.handler)) for one in app.endpoints.rpc]
    served += [(one.service, election_of(one.handler)) for one in app.endpoints.commands]
    for each in known:
        names = [each.service_name, *(name for service, name in served if service == each.service_name)]
        found += [(by_name[name], each) for name in names if name in by_name][:1]
    return found


def _keys(registry: Registry | None) -> KV:
    if registry is None:
        raise FailedPrecondition(
            "kv: the app elects a leader, and the plane's keys are in a folder of this machine; set kv to a server"
        )
    return registry.kv


async def _complaint(leadership: Leadership) -> str | None:
    return leadership.complaint()


async def _readiness(health: Health) -> str | None:
    """What the registry tells of this instance: red checks but those of the registry itself."""
    failures = (await health.ready()).failures
    red = [f"{name}: {reason}" for name, reason in failures.items() if not name.startswith("registry ")]
    return "; ".join(red) or None


async def _bus_check(bus: Bus) -> str | None:
    status, _ = await bus.status()
    return None if status.ready else status.problem or "the bus is not ready"


async def _draining() -> str | None:
    return "draining"


async def _tell(registration: Registration) -> None:
    try:
        await registration.drain()
    except GroundplaneError as error:  # the store is away: the instance stops all the same
        _log.warning("drain_not_told", service=registration.service_name, error=error.message)


@asynccontextmanager
async def _registry_of(settings: Settings) -> AsyncIterator[Registry | None]:
    from groundplane.plane import has_keys
    from groundplane.services import Registry

    if not has_keys(settings):
        yield None
        return
    async with Registry.open(settings.kv.reveal(), namespace=settings.name, state=settings.state) as registry:
        yield registry


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _run(app: App, settings: Settings, on_ready: Callable[[int], None]) -> None:
    stop = asyncio.Event()
    with _signals(stop):
        await serve(app, settings, on_ready=on_ready, stop=stop)


def main() -> int:
    """Run as a child: read the configuration, load the App, serve."""
    from groundplane.cli.loading import load_app
    from groundplane.cli.output import show_error
    from groundplane.mesh.ready import write_ready
    from groundplane.telemetry.logs import configure

    try:
        data = sys.stdin.buffer.read()
        if not data:
            raise FailedPrecondition("config: nothing came on standard input; `groundplane dev` starts this process")
        config = msgspec.json.decode(data, type=EndpointsConfig)
        settings = from_bytes(config.settings)
        configure(settings.log_level, form=settings.log_format)
        app, _ = load_app(config.target)
        with contextlib.ExitStack() as stack:

            def on_ready(admin_port: int) -> None:
                stack.enter_context(write_ready(config.ready_file, {"admin_port": admin_port}))

            asyncio.run(_run(app, settings, on_ready))
    except GroundplaneError as error:
        show_error(error, json=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
