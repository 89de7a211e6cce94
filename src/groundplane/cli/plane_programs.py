"""Which processes a plane has on one machine: the gateway, the ends, and for each actor a sidecar and a runtime."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from groundplane.cli.loading import Description
from groundplane.cli.processes import Program
from groundplane.core.settings import Settings
from groundplane.mesh import launch
from groundplane.mesh.spec import ActorSpec

GATEWAY, ENDS = "gateway", "ends"
_FIRST, _SECOND, _THIRD = 0, 1, 2


class PlanePrograms:
    """The programs of one plane. `gateway_config` makes what the gateway reads when it has loaded its modules."""

    def __init__(self, settings: Settings, gateway_config: Callable[[], Awaitable[bytes]]) -> None:
        self._settings = settings
        self._gateway_config = gateway_config
        self._port = settings.port

    def gateway(self) -> Program:
        """The gateway, which stops first: no new work while the rest drains."""
        return Program(
            name=GATEWAY,
            argv=[sys.executable, "-m", "groundplane.cli.gateway_process"],
            environment=self._environment(),
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

    def ends(self) -> list[Program]:
        """The process of both end actors."""
        return [
            Program(
                name=ENDS,
                argv=launch.ends_argv(self._settings, ready_file=self.ready_file(ENDS)),
                environment=self._environment(),
                ready_file=self.ready_file(ENDS),
                stage=_SECOND,
            )
        ]

    def sidecars(self, description: Description, only: Iterable[str] | None = None) -> list[Program]:
        """The sidecars, which drain before their runtimes stop."""
        return [self._sidecar(spec) for spec in _chosen(description, only)]

    def runtimes(self, description: Description, only: Iterable[str] | None = None) -> list[Program]:
        """The runtimes."""
        return [self._runtime(spec, description.folder) for spec in _chosen(description, only)]

    def names_of(self, actors: Iterable[str]) -> list[str]:
        """The names of both programs of each actor."""
        return [name for actor in actors for name in (f"sidecar {actor}", f"runtime {actor}")]

    def ready_file(self, name: str) -> Path:
        """Where a process says that it is ready."""
        return self._settings.state / "run" / f"{name.replace(' ', '-')}.ready"

    def _sidecar(self, spec: ActorSpec) -> Program:
        name = f"sidecar {spec.name}"
        argv = launch.sidecar_argv(
            self._settings, spec, socket=launch.socket_path(self._settings.state, spec.name),
            ready_file=self.ready_file(name),
        )  # fmt: skip
        return Program(
            name=name, argv=argv, environment=self._environment(), ready_file=self.ready_file(name), stage=_FIRST
        )

    def _runtime(self, spec: ActorSpec, folder: Path) -> Program:
        name = f"runtime {spec.name}"
        argv = launch.runtime_argv(
            self._settings, spec, socket=launch.socket_path(self._settings.state, spec.name),
            ready_file=self.ready_file(name),
        )  # fmt: skip
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
        return Program(
            name=name,
            argv=argv,
            environment={**self._environment(), "PYTHONPATH": path},
            ready_file=self.ready_file(name),
            stage=_THIRD,
            exits={3: "handler_import_failed", 4: "the socket cannot be bound", 5: "its workers die while they start"},
        )

    def _environment(self) -> dict[str, str]:
        return {"GROUNDPLANE_LOG_LEVEL": self._settings.log_level.upper(), "PYTHONUNBUFFERED": "1"}


def _chosen(description: Description, only: Iterable[str] | None) -> list[ActorSpec]:
    wanted = None if only is None else set(only)
    return [spec for name, spec in description.actors.items() if wanted is None or name in wanted]
