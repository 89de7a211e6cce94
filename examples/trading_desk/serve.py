"""One instance of one service of the desk: `python serve.py quotes|book|reports`. SIGTERM or Ctrl-C ends it.

Where it stores and talks is said by the environment alone: GROUNDPLANE_BUS_URL, GROUNDPLANE_KV_URL, GROUNDPLANE_STATE.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from app import app, desk

from groundplane.bus import Endpoints, start
from groundplane.core.fencing import Fence
from groundplane.plane import Plane
from groundplane.services import Registration, Registry
from groundplane.services.leadership import SingleActive, registered
from groundplane.services.service import Service
from groundplane.telemetry.logs import configure


async def main(service: str) -> None:
    """Register, serve until a signal comes, leave. A leader that leaves hands over at once."""
    instance = f"{service}-{os.getpid()}"
    endpoints = of_service(service)
    async with Plane.open(ports=("bus", "kv")) as plane, registry_of(plane) as registry:
        configure(plane.settings.log_level, form=plane.settings.log_format)
        desk.bus, desk.kv = plane.bus, plane.kv
        async with Service.open(registry, service, instance_id=instance, version="1.0.0") as one:
            async with AsyncExitStack() as stack:
                if service in app.elections:
                    await stack.enter_async_context(elected(app.elections[service], endpoints, one.registration))
                    endpoints = Endpoints(rpc=endpoints.rpc, commands=endpoints.commands)
                await stack.enter_async_context(start(plane.bus, endpoints, instance=instance))
                say(event="ready", service=service, pid=os.getpid())
                await told_to_end()


@asynccontextmanager
async def elected(election: SingleActive, endpoints: Endpoints, registration: Registration) -> AsyncIterator[None]:
    """Be a candidate. Events are for the leader alone: it subscribes for the time of its term."""

    @election.work
    async def handle_events(fence: Fence) -> None:
        async with start(desk.bus, Endpoints(events=endpoints.events)):
            say(event="leading", service=election.name, pid=os.getpid(), term=fence.term)
            await asyncio.Event().wait()  # until the term ends

    async with election.open(desk.kv, member=registration.instance_id) as leadership:
        async with registered(leadership, registration):
            yield


def registry_of(plane: Plane):  # type: ignore[no-untyped-def]
    """The registry of the services of a plane."""
    settings = plane.settings
    return Registry.open(settings.kv.reveal(), namespace=settings.name, state=settings.state)


def of_service(service: str) -> Endpoints:
    """What the App declares for one service; a handler of events belongs to that whose name is its group."""
    every = app.endpoints
    found = Endpoints(
        rpc=[one for one in every.rpc if one.service == service],
        events=[one for one in every.events if one.options.group == service],
        commands=[one for one in every.commands if one.service == service],
    )
    if not found:
        sys.exit(f"service: {service!r} is none of quotes, book, reports")
    return found


async def told_to_end() -> None:
    """Wait for SIGTERM or SIGINT."""
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    await end.wait()


def say(**what: object) -> None:
    """One line of JSON, for people and for `demo.py`."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) == 2 else ""))
