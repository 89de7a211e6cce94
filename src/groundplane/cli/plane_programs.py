"""Which processes a plane has on one machine: the gateway, the ends, and for each actor a sidecar and a runtime."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from groundplane.cli.loading import Description
from groundplane.cli.processes import Program
from groundplane.core.settings import Settings
from groundplane.mesh.spec import ActorSpec, Limits
from groundplane.plane import PORTS

GATEWAY, ENDS = "gateway", "ends"
_FIRST, _SECOND, _THIRD = 0, 1, 2
_RUNTIME = str(Path(__file__).parents[1] / "mesh" / "runtime.py")
_SOCKET_BYTES_MAX = 100
_EXITS = {1: "failed", 2: "usage", 3: "runtime_not_ready", 4: "queue_not_ready"}
_RUNTIME_EXITS = {
    2: "usage",
    3: "handler_import_failed",
    4: "its socket cannot be bound",
    5: "its workers die while they start",
    6: "calls were killed at the end of the grace",
}


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

    def ends(self, description: Description) -> list[Program]:
        """The process of both end actors."""
        ready = self.ready_file(ENDS)
        joins = [name for name, spec in description.actors.items() if spec.join]
        config = {**self._shared(), "joins": joins, "ready_file": str(ready)}
        return [self._program(ENDS, ["-m", "groundplane.mesh.ends", "--config", _json(config)], ready, _SECOND)]

    def sidecars(self, description: Description, only: Iterable[str] | None = None) -> list[Program]:
        """The sidecars, which drain before their runtimes stop."""
        return [self._sidecar(spec) for spec in _chosen(description, only)]

    def runtimes(self, description: Description, only: Iterable[str] | None = None) -> list[Program]:
        """The runtimes."""
        return [self._runtime(spec, description.folder) for spec in _chosen(description, only)]

    def socket(self, actor: str) -> Path:
        """The socket of an actor's runtime. The kernel takes 107 bytes: a longer path becomes a short one."""
        plain = self._settings.state / "run" / f"{actor}.sock"
        if len(os.fsencode(plain)) <= _SOCKET_BYTES_MAX:
            return plain
        short = plain.with_name(f"{hashlib.sha256(actor.encode()).hexdigest()[:12]}.sock")
        if len(os.fsencode(short)) <= _SOCKET_BYTES_MAX:
            return short
        folder = f"groundplane-{os.getuid()}-{hashlib.sha256(os.fsencode(self._settings.state)).hexdigest()[:12]}"
        other = Path(tempfile.gettempdir(), folder)
        other.mkdir(mode=0o700, exist_ok=True)
        return other / short.name

    def names_of(self, actors: Iterable[str]) -> list[str]:
        """The names of both programs of each actor."""
        return [name for actor in actors for name in (f"sidecar {actor}", f"runtime {actor}")]

    def ready_file(self, name: str) -> Path:
        """Where a process says that it is ready."""
        return self._settings.state / "run" / f"{name.replace(' ', '-')}.ready"

    def _sidecar(self, spec: ActorSpec) -> Program:
        name = f"sidecar {spec.name}"
        ready = self.ready_file(name)
        config = {**self._shared(), "actor": spec, "socket": str(self.socket(spec.name)), "ready_file": str(ready)}
        return self._program(name, ["-m", "groundplane.mesh.sidecar", "--config", _json(config)], ready, _FIRST)

    def _runtime(self, spec: ActorSpec, folder: Path) -> Program:
        name = f"runtime {spec.name}"
        ready = self.ready_file(name)
        flags = {
            "handler": spec.handler, "handler-mode": spec.handler_mode, "socket": self.socket(spec.name),
            "workers": spec.concurrency, "concurrency": spec.concurrency, "grace-s": self._settings.grace_s,
            "ready-file": ready,
        }  # fmt: skip
        argv = [_RUNTIME, *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))]
        program = self._program(name, argv, ready, _THIRD)
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
        return msgspec.structs.replace(
            program, environment={**program.environment, "PYTHONPATH": path}, folder=folder, exits=_RUNTIME_EXITS
        )

    def _program(self, name: str, argv: list[str], ready: Path, stage: int) -> Program:
        return Program(
            name=name,
            argv=[sys.executable, *argv],
            environment=self._environment(),
            ready_file=ready,
            stage=stage,
            exits=_EXITS,
        )

    def _shared(self) -> dict[str, Any]:
        settings = self._settings
        limits = Limits(
            payload_inline_bytes_max=settings.payload_inline_bytes_max,
            payload_bytes_max=settings.payload_bytes_max,
            hops_max=settings.hops_max,
            grace_s=settings.grace_s,
        )
        return {"limits": limits, "namespace": settings.name, "state": str(settings.state)}

    def _environment(self) -> dict[str, str]:
        """URLs may hold secrets: they go by the environment, which others cannot read, and not by the command line."""
        urls = {f"GROUNDPLANE_{port.upper()}_URL": getattr(self._settings, port).reveal() for port in PORTS}
        return {"GROUNDPLANE_LOG_LEVEL": self._settings.log_level.upper(), "PYTHONUNBUFFERED": "1", **urls}


def _json(config: dict[str, Any]) -> str:
    return msgspec.json.encode(config).decode()


def _chosen(description: Description, only: Iterable[str] | None) -> list[ActorSpec]:
    wanted = None if only is None else set(only)
    return [spec for name, spec in description.actors.items() if wanted is None or name in wanted]
