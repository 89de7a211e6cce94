"""Which processes a plane has on one machine: the gateway, the ends, and for each actor a sidecar and a runtime.

`mesh.launch` says how those of the mesh are started; here they get their names and their turn at the stop.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from groundplane.cli.loading import Description
from groundplane.cli.processes import Program
from groundplane.cli.services_process import EndpointsConfig
from groundplane.core.settings import Settings
from groundplane.mesh import launch
from groundplane.mesh.spec import ActorSpec

GATEWAY, ENDS, SERVICES = "gateway", "ends", "services"
_FIRST, _SECOND, _THIRD = 0, 1, 2
_BEHIND_THE_GATEWAY = 5
"""Who waits for an answer comes before a backlog."""


class PlanePrograms:
    """The programs of one plane. `gateway_config` makes what the gateway reads when it has loaded its modules."""

    def __init__(self, settings: Settings, gateway_config: Callable[[], Awaitable[bytes]]) -> None:
        self._settings = settings
        self._gateway_config = gateway_config
        self._port = settings.port
        self._place = launch.Place.of(settings)

    def gateway(self) -> Program:
        """The gateway, which stops first: no new work while the rest drains."""
        return Program(
            name=GATEWAY,
            argv=[sys.executable, "-m", "groundplane.cli.gateway_process"],
            environment={"PYTHONUNBUFFERED": "1", "GROUNDPLANE_LOG_LEVEL": self._settings.log_level.upper()},
            ready_file=self.ready_file(GATEWAY),
            stage=_FIRST,
            feed=self._gateway_config,
        )

    def gateway_settings(self) -> Settings:
        """The settings of the next gateway: one that is started again keeps the port it had."""
        return msgspec.structs.replace(self._settings, port=self._port)

    def keep_port(self, url: str) -> None:
        """The gateway got this URL: its successors take the same port."""
        self._port = urlsplit(url).port or self._port

    def ends(self, description: Description) -> list[Program]:
        """The process of both end actors."""
        joins = [name for name, spec in description.actors.items() if spec.join]
        return [_program(ENDS, launch.ends(self._place, joins=joins), _SECOND)]

    def services(self, description: Description) -> list[Program]:
        """The process of what the App declares for the bus, where it declares anything. It imports the user's code."""
        if not description.serves:
            return []
        ready = self.ready_file(SERVICES)

        async def feed() -> bytes:
            return EndpointsConfig.of(self._settings, description.target, ready)

        return [
            Program(
                name=SERVICES,
                argv=[sys.executable, "-m", "groundplane.cli.services_process"],
                environment={"PYTHONUNBUFFERED": "1", "GROUNDPLANE_LOG_LEVEL": self._settings.log_level.upper()},
                ready_file=ready,
                stage=_FIRST,
                feed=feed,
            )
        ]

    def sidecars(self, description: Description, only: Iterable[str] | None = None) -> list[Program]:
        """The sidecars, which drain before their runtimes stop."""
        chosen = _chosen(description, only)
        return [_program(f"sidecar {one.name}", launch.sidecar(one, self._place), _FIRST) for one in chosen]

    def runtimes(self, description: Description, only: Iterable[str] | None = None) -> list[Program]:
        """The runtimes. They alone import the user's code."""
        return [self._runtime(one, description.folder) for one in _chosen(description, only)]

    def names_of(self, actors: Iterable[str]) -> list[str]:
        """The names of both programs of each actor."""
        return [name for actor in actors for name in (f"sidecar {actor}", f"runtime {actor}")]

    def ready_file(self, name: str) -> Path:
        """Where a process says that it is ready."""
        return self._place.ready_file(name)

    def _runtime(self, spec: ActorSpec, folder: Path) -> Program:
        program = _program(f"runtime {spec.name}", launch.runtime(spec, self._place), _THIRD)
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
        environment = {**program.environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
        return msgspec.structs.replace(program, environment=environment, folder=folder)


def _program(name: str, command: launch.Command, stage: int) -> Program:
    return Program(
        name=name,
        argv=command.arguments,
        environment=command.environment,
        ready_file=command.ready_file,
        stage=stage,
        exits=command.exits,
        nice=_BEHIND_THE_GATEWAY,
    )


def _chosen(description: Description, only: Iterable[str] | None) -> list[ActorSpec]:
    wanted = None if only is None else set(only)
    return [spec for name, spec in description.actors.items() if wanted is None or name in wanted]
