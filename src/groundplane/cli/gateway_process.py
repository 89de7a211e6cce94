"""The gateway as a process: what `dev` starts and `run --role gateway` is.

As a child of `dev` it loads its modules first and then reads its configuration from standard input, so that loading
overlaps with the rest of the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from groundplane.core.collection import ease_collection
from groundplane.core.errors import FailedPrecondition, GroundplaneError
from groundplane.core.settings import Settings, from_bytes, to_bytes
from groundplane.mesh.spec import Offer

if TYPE_CHECKING:
    from groundplane.gateway import Gateway
    from groundplane.services import Directory
    from groundplane.services.subscriptions import Subscriptions


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is told: the encoded settings, what the App offers, and where to say that it is ready."""

    settings: bytes
    offer: Offer
    name: str
    ready_file: str = ""

    @classmethod
    def of(cls, settings: Settings, offer: Offer, *, name: str, ready_file: Path) -> bytes:
        """The configuration as bytes for the child's standard input."""
        config = cls(settings=to_bytes(settings), offer=offer, name=name, ready_file=str(ready_file))
        return msgspec.json.encode(config)


async def serve(settings: Settings, offer: Offer, *, name: str, on_ready: Callable[[str, int | None], None]) -> None:
    """Open the ports and serve until SIGTERM or SIGINT; SIGHUP reads `routes.yaml` again. `on_ready` gets URL and admin
    port.
    """
    from groundplane.gateway import Catalogue, Gateway, GatewaySettings, ToolTable
    from groundplane.plane import Plane
    from groundplane.telemetry.health import backend_of
    from groundplane.telemetry.process import process_registry
    from groundplane.telemetry.traces import tracing

    table = ToolTable(offer.tools, files=[settings.routes] if settings.routes else [])
    catalogue = Catalogue(offer.prompts, offer.resources)
    async with (
        tracing("groundplane-gateway", "gateway", namespace=settings.name, queues=settings.queues.reveal()),
        Plane.open(settings, ports=("queues", "jobs", "blobs", "security"), inline=True) as plane,
        directory_of(settings) as directory,
        subscriptions_of(settings) as subscriptions,
    ):
        async with Gateway.open(
            jobs=plane.jobs,
            queues=plane.queues,
            blobs=plane.blobs,
            security=plane.security,
            directory=directory,
            subscriptions=subscriptions,
            tools=table,
            catalogue=catalogue,
            settings=GatewaySettings.of(settings),
            registry=process_registry("gateway", folder=settings.state),
            name=name,
            jobs_backend=backend_of(settings.jobs.scheme),
        ) as gateway:
            easing = asyncio.create_task(_ease_when_loaded(gateway))
            try:
                await gateway.serve(on_ready=lambda served: on_ready(served.url, served.admin_port), signals=True)
            finally:
                easing.cancel()
                await asyncio.wait([easing])


@asynccontextmanager
async def directory_of(settings: Settings) -> AsyncIterator[Directory | None]:
    """The services of the plane, also while their store is away; None where the plane's keys are not for all of its
    processes.
    """
    from groundplane.plane import has_keys
    from groundplane.services import Directory, Registry

    if not has_keys(settings):
        yield None
        return
    url, state = settings.kv.reveal(), settings.state
    opening = partial(Registry.open, url, namespace=settings.name, state=state, inline=True)
    async with Directory.open(opening) as directory:
        yield directory


@asynccontextmanager
async def subscriptions_of(settings: Settings) -> AsyncIterator[Subscriptions | None]:
    """The subscriptions of the plane's bus; None where that is not for all of its processes."""
    from groundplane.plane import has_bus, open_bus
    from groundplane.services.subscriptions import Subscriptions

    if not has_bus(settings):
        yield None
        return
    options: dict[str, Any] = {"namespace": settings.name, "state": settings.state, "inline": True}
    opening = partial(open_bus, settings.bus.reveal(), name=settings.name, **options)
    async with Subscriptions.open(opening) as subscriptions:
        yield subscriptions


async def _ease_when_loaded(gateway: Gateway) -> None:
    ease_collection()
    await gateway.loaded()
    ease_collection()


def write_ready_file(path: Path, url: str, admin_port: int | None, host: str) -> None:
    """Say where it listens, at once."""
    from groundplane.gateway.settings import local_url

    admin = local_url(host, admin_port) if admin_port else ""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode({"pid": os.getpid(), "url": url, "admin": admin}))
    fresh.replace(path)


def import_gateway() -> None:
    """Load the heavy modules. `failed_precondition` (reason `missing_extra`) where the extra is not installed."""
    from groundplane import gateway

    _ = gateway.Gateway, gateway.ToolTable


def main() -> int:
    """Run as a child: load, read the configuration, serve."""
    from groundplane.cli.output import show_error
    from groundplane.telemetry.logs import configure

    try:
        import_gateway()
        data = sys.stdin.buffer.read()
        if not data:
            raise FailedPrecondition("config: nothing came on standard input; `groundplane dev` starts this process")
        config = msgspec.json.decode(data, type=GatewayConfig)
        settings = from_bytes(config.settings)
        configure(settings.log_level, form=settings.log_format)
        ready = Path(config.ready_file)

        def on_ready(url: str, admin_port: int | None) -> None:
            write_ready_file(ready, url, admin_port, settings.admin_host or settings.host)

        try:
            with contextlib.suppress(asyncio.CancelledError):
                asyncio.run(serve(settings, config.offer, name=config.name, on_ready=on_ready))
        finally:
            ready.unlink(missing_ok=True)
    except GroundplaneError as error:
        show_error(error, json=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
