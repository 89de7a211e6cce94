"""`groundplane dev`: everything on this machine, supervised, reloaded when the source changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from groundplane.cli import state_folder
from groundplane.cli.address import check_address
from groundplane.cli.describe import describe_afresh
from groundplane.cli.loading import Description, describe_apart
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_FAILURE, EXIT_OK, Output
from groundplane.cli.plane_programs import GATEWAY, SERVICES, PlanePrograms
from groundplane.cli.processes import Child, Program, Supervisor
from groundplane.cli.watch import Watch
from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.core.settings import Settings
from groundplane.plane import PORTS, Plane

RELOAD_GRACE_S = 5.0


def dev(
    app: str,
    /,
    *,
    host: Annotated[str | None, Parameter(help="Address of the gateway; beyond the loopback it needs `auth`.")] = None,
    port: Annotated[int | None, Parameter(help="Port of the gateway; 0 takes a free one.")] = None,
    admin_port: Annotated[int, Parameter(help="Port of the plane's metrics and health; 0 takes a free one.")] = 0,
    reload: Annotated[bool, Parameter(help="Restart what changed when the source changes.")] = True,
    common: Common = COMMON,
) -> int:
    """Run an app on this machine: gateway, for each actor a sidecar and a runtime, and what it declares for the bus.
    No server is needed.

    Examples:

      groundplane dev app:app

      groundplane dev path/to/app.py --port 0 --state /tmp/plane --json

    Parameters
    ----------
    app
        module:attribute, module, or a path to a file.
    """
    settings = common.settings(host=host, port=port)
    with state_folder.held(settings.state):
        check_address(settings)
        return asyncio.run(_run(app, settings, common.output, reload=reload, admin_port=admin_port))


async def _run(target: str, settings: Settings, output: Output, *, reload: bool, admin_port: int) -> int:
    use_pidfd()
    return await _Dev(target, settings, output, reload=reload, admin_port=admin_port).run()


class _Dev:
    """One run of `dev`."""

    def __init__(self, target: str, settings: Settings, output: Output, *, reload: bool, admin_port: int) -> None:
        self._target = target
        self._settings = settings
        self._output = output
        self._reload = reload
        self._admin_port = admin_port
        self._admin = ""
        self._began = time.monotonic()
        self._description: asyncio.Future[Description] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._announced = False
        self._refused = False
        self._watch = Watch([])
        self._supervisor = Supervisor(self._heard, grace_s=settings.grace_s)
        self._programs = PlanePrograms(settings, self._gateway_config)

    async def run(self) -> int:
        """Start, serve until a signal, stop."""
        with signals(self._signalled):
            try:
                return await self._serve()
            except GroundplaneError:
                self._supervisor.kill()
                raise
            finally:
                await self._supervisor.stop()
                state_folder.forget_running(self._settings.state, os.getpid())

    async def _serve(self) -> int:
        self._supervisor.start([self._programs.gateway()])  # its imports take longest
        description = describe_apart(self._target)
        self._supervisor.start(self._programs.runtimes(description))
        await self._prepare(description, upgrade=True)
        self._description.set_result(description)
        self._watch.set(self._watched())  # before the ready line: what is changed after it is seen
        programs = [*self._programs.ends(description), *self._programs.services(description)]
        self._supervisor.start([*programs, *self._programs.sidecars(description)])
        from groundplane.cli.monitor import monitored  # here, while the children load theirs

        ready = asyncio.create_task(self._supervisor.all_ready())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            async with monitored(self._settings, self._supervisor.children, port=self._admin_port) as self._admin:
                await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not self._stop.is_set():
                    self._announce(description)
                    await self._until_stopped()
        finally:
            ready.cancel()
            stopped.cancel()
        if self._refused:
            return EXIT_FAILURE
        self._output.note("stopping: running work gets " + f"{self._settings.grace_s:g} s; again to stop at once")
        clean = await self._supervisor.stop()
        return EXIT_OK if clean else EXIT_FAILURE

    async def _prepare(self, description: Description, *, upgrade: bool) -> None:
        ports = [one for one in PORTS if one not in ("kv", "bus") or getattr(self._settings, one).scheme == "embedded"]
        async with Plane.open(self._settings, ports=ports, upgrade=upgrade) as plane:
            await plane.declare(description.actors.values())

    async def _gateway_config(self) -> bytes:
        from groundplane.cli.gateway_process import GatewayConfig

        description = await asyncio.shield(self._description)
        return GatewayConfig.of(
            self._programs.gateway_settings(),
            description.offer,
            name=description.name,
            ready_file=self._programs.ready_file(GATEWAY),
        )

    async def _until_stopped(self) -> None:
        stopped = asyncio.create_task(self._stop.wait())
        try:
            if not self._reload:
                await stopped
                return
            while not self._stop.is_set():
                change = asyncio.create_task(self._watch.wait())
                await asyncio.wait({change, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not change.done():
                    change.cancel()
                    return
                await self._changed(change.result())
                self._watch.set(self._watched())
        finally:
            stopped.cancel()

    def _watched(self) -> list[Path]:
        files = list(self._description.result().files)
        routes = self._settings.routes
        if routes is not None:
            files += [routes, *(sorted(routes.glob("*.y*ml")) if routes.is_dir() else [])]
        return files

    async def _changed(self, files: list[Path]) -> None:
        sources = set(self._description.result().files)
        names = ", ".join(file.name for file in files)
        if not sources.intersection(files):
            self._supervisor.children[GATEWAY].signal(signal.SIGHUP)
            self._tell("reloaded", f"changed: {names}; the gateway reads its routes again", files=names)
            return
        before = self._description.result()
        try:
            after = await describe_afresh(self._target)
            await self._prepare(after, upgrade=False)
        except GroundplaneError as error:
            self._output.error(error)
            self._tell("reload_failed", "the version from before goes on; mend the file", files=names)
            return
        await self._apply(before, after)
        self._tell("reloaded", f"changed: {names}; reloaded {', '.join(after.actors) or 'nothing'}", files=names)

    async def _apply(self, before: Description, after: Description) -> None:
        """All runtimes take the new code; sidecars and gateway only where what they were told has changed."""
        self._description = asyncio.get_running_loop().create_future()
        self._description.set_result(after)
        gone = [name for name in before.actors if name not in after.actors]
        changed = [name for name, spec in after.actors.items() if before.actors.get(name) != spec]
        unserved = [SERVICES] if before.serves and not after.serves else []
        await self._supervisor.remove([*self._programs.names_of([*gone, *changed]), *unserved])
        await self._supervisor.replace([*self._programs.runtimes(after), *self._programs.services(after)])
        self._supervisor.start([one for one in self._programs.sidecars(after) if one.name not in self._running()])
        if before.offer != after.offer:
            await self._supervisor.replace([self._programs.gateway()])
        await self._supervisor.all_ready()

    def _running(self) -> set[str]:
        return set(self._supervisor.children)

    def _announce(self, description: Description) -> None:
        gateway = self._supervisor.children[GATEWAY]
        url = str(gateway.details["url"])
        seconds = time.monotonic() - self._began
        self._announced = True
        self._note_running(gateway)
        if self._output.json:
            place = {"url": url, "admin": self._admin, "pid": os.getpid()}
            self._output.result({"event": "ready", **place, "seconds": round(seconds, 3)})
            return
        lines = [f"groundplane dev: {description.name} on {url}  (MCP: {url}/mcp)", ""]
        for name, child in self._supervisor.children.items():
            lines.append(f"  {name:<32} pid {child.pid:<8} {_place(child)}")
        lines += [
            "",
            f"  state     {self._settings.state}",
            f"  health    {self._admin}/healthz, and /metrics of the whole plane",
            f"  tools     {', '.join(description.tools) or 'none'}",
            "",
        ]
        lines.append(f"ready in {seconds:.1f} s; Ctrl-C stops. {_suggestion(description)}")
        self._output.result(None, "\n".join(lines))

    def _note_running(self, gateway: Child) -> None:
        """Write down where everything listens, for the commands that look for it."""
        url, admin = str(gateway.details["url"]), str(gateway.details.get("admin", ""))
        running = state_folder.Running(pid=os.getpid(), url=url, admin=admin, plane=self._admin)
        state_folder.write_running(self._settings.state, running)

    def _heard(self, what: str, child: Child) -> None:
        name = child.program.name
        if name == GATEWAY and what == "ready":
            self._programs.keep_port(str(child.details["url"]))
            self._note_running(child)
        if what == "exited" and name == GATEWAY and child.status == EXIT_FAILURE and not self._announced:
            self._refused = True  # it said why, and would say it again
            self._stop.set()
        elif what == "exited":
            self._tell("exited", f"{name} ended ({child.exit_meaning}); starting it again", process=name)
        elif what == "ready" and child.starts > 1:
            self._tell("restarted", f"{name} serves again, pid {child.pid}", process=name, pid=child.pid)

    def _tell(self, event: str, text: str, **fields: Any) -> None:
        """An event after the ready line; before it only people are told."""
        if self._announced and self._output.json:
            self._output.result({"event": event, **fields, "message": text})
        else:
            Output().note(text)

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._supervisor.kill()
        self._stop.set()


@contextlib.contextmanager
def signals(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` in the loop for SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()
    chosen = (signal.SIGINT, signal.SIGTERM)
    for number in chosen:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in chosen:
            loop.remove_signal_handler(number)


def use_pidfd() -> None:
    """Wait for children by descriptors instead of a thread for each, as Python 3.12 does by itself. Call it in the
    loop.
    """
    if sys.version_info < (3, 12):
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)


def _place(child: Child) -> str:
    return str(child.details.get("url") or child.details.get("socket") or "")


def _suggestion(description: Description) -> str:
    for tool in description.tools.values():
        wanted = [f"{name}=…" for name in tool.input_schema.get("required", [])]
        return f"Try: groundplane call {tool.name} {' '.join(wanted)}".rstrip()
    return "Declare a tool with app.tool(…) to call it."


__all__ = ["InvalidArgument", "Program", "dev", "signals", "use_pidfd"]
