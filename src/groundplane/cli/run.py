"""`groundplane run`: one role of a plane, for many machines."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Literal

from cyclopts import Parameter

from groundplane.cli import gateway_process, state_folder
from groundplane.cli.dev import signals, use_pidfd
from groundplane.cli.loading import Description, describe_apart
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_FAILURE, EXIT_OK, Output
from groundplane.cli.plane_programs import PlanePrograms
from groundplane.cli.processes import Child, Supervisor
from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.core.names import did_you_mean
from groundplane.core.settings import Settings
from groundplane.plane import Plane

Role = Literal["gateway", "actors", "ends", "services"]


def run(
    app: str,
    /,
    *,
    role: Annotated[
        list[Role],
        Parameter(
            negative="",
            help="What to run here; may be repeated. actors brings the ends along; services "
            "is what @app.rpc, @app.on, @app.command and app.single_active declare.",
        ),
    ],
    actor: Annotated[
        list[str] | None, Parameter(negative="", help="With --role actors: only this actor, without the ends.")
    ] = None,
    host: Annotated[str | None, Parameter(help="Address of the gateway; beyond the loopback it needs `auth`.")] = None,
    port: Annotated[int | None, Parameter(help="Port of the gateway; 0 takes a free one.")] = None,
    common: Common = COMMON,
) -> int:
    """Run one role of an app. Data of an older schema is refused: run `groundplane db upgrade` once before.

    Examples:

      groundplane run app:app --role gateway --port 8080

      groundplane run app:app --role actors --actor double

      groundplane run app:app --role services
    """
    if actor and "actors" not in role:
        raise InvalidArgument(f"actor: {actor!r} needs --role actors")
    settings = common.settings(host=host, port=port)
    state_folder.make(settings.state)  # sockets and ready files lie there, whatever stores the rest
    description = describe_apart(app)
    for name in actor or []:
        if name not in description.actors:
            raise NotFound(f"actor: {name!r} is not in {app!r}{did_you_mean(name, description.actors)}")
    if "services" in role and not description.serves:
        raise InvalidArgument(f"role: {app!r} declares nothing for services; use @app.rpc, @app.on or @app.command")
    if role == ["gateway"]:
        return _gateway(settings, description, common.output)
    return asyncio.run(_Role(settings, description, common.output, set(role), actor).run())


def _gateway(settings: Settings, description: Description, output: Output) -> int:
    from groundplane.gateway.settings import local_url
    from groundplane.telemetry.logs import configure

    configure(settings.log_level, form=settings.log_format)

    def on_ready(url: str, admin_port: int | None) -> None:
        admin = local_url(settings.admin_host or settings.host, admin_port) if admin_port else ""
        state_folder.write_running(settings.state, state_folder.Running(pid=os.getpid(), url=url, admin=admin))
        output.result(
            {"event": "ready", "role": "gateway", "url": url, "pid": os.getpid()},
            f"gateway of {description.name} on {url}  (MCP: {url}/mcp); Ctrl-C stops",
        )

    try:
        asyncio.run(gateway_process.serve(settings, description.offer, name=description.name, on_ready=on_ready))
    finally:
        state_folder.forget_running(settings.state, os.getpid())
    return EXIT_OK


class _Role:
    """Several processes of one machine, supervised."""

    def __init__(
        self, settings: Settings, description: Description, output: Output, roles: set[str], only: list[str] | None
    ) -> None:
        self._settings = settings
        self._description = description
        self._output = output
        self._roles = roles
        self._only = only
        self._stop = asyncio.Event()
        self._supervisor = Supervisor(self._heard, grace_s=settings.grace_s)
        self._programs = PlanePrograms(settings, self._gateway_config)

    async def run(self) -> int:
        """Start the role's processes, wait for a signal, stop them in stages."""
        use_pidfd()
        with signals(self._signalled):
            try:
                return await self._serve()
            finally:
                await self._supervisor.stop()
                state_folder.forget_running(self._settings.state, os.getpid())

    async def _serve(self) -> int:
        if self._roles != {"services"}:  # whoever only serves needs no queues, and whoever only works no keys
            async with Plane.open(self._settings, ports=("queues", "jobs", "ledger", "blobs", "security")) as plane:
                await plane.declare(self._description.actors.values())
        if "gateway" in self._roles:
            self._supervisor.start([self._programs.gateway()])
        if "actors" in self._roles:
            self._supervisor.start(self._programs.runtimes(self._description, self._only))
            self._supervisor.start(self._programs.sidecars(self._description, self._only))
        if "services" in self._roles:
            self._supervisor.start(self._programs.services(self._description))
        if "ends" in self._roles or ("actors" in self._roles and self._only is None):
            self._supervisor.start(self._programs.ends(self._description))
        ready = asyncio.create_task(self._supervisor.all_ready())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set():
                self._announce()
                await stopped
        finally:
            ready.cancel()
            stopped.cancel()
        return EXIT_OK if await self._supervisor.stop() else EXIT_FAILURE

    async def _gateway_config(self) -> bytes:
        return gateway_process.GatewayConfig.of(
            self._programs.gateway_settings(),
            self._description.offer,
            name=self._description.name,
            ready_file=self._programs.ready_file("gateway"),
        )

    def _announce(self) -> None:
        names = list(self._supervisor.children)
        urls = [str(one.details["url"]) for one in self._supervisor.children.values() if "url" in one.details]
        ready = {"event": "ready", "role": ",".join(sorted(self._roles)), "processes": names, "pid": os.getpid()}
        self._output.result({**ready, "url": urls[0]} if urls else ready, f"ready: {', '.join(names)}; Ctrl-C stops")

    def _heard(self, what: str, child: Child) -> None:
        name = child.program.name
        if what == "ready" and "url" in child.details:
            self._programs.keep_port(str(child.details["url"]))
            running = state_folder.Running(pid=os.getpid(), url=str(child.details["url"]))
            state_folder.write_running(self._settings.state, running)
        if what == "exited":
            Output().note(f"{name} ended ({child.exit_meaning}); starting it again")

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._supervisor.kill()
        self._stop.set()
