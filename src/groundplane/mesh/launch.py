"""How the processes of the mesh are started: command lines and environments, as values.

    launch.runtime(spec, place)    the process that hosts the handler
    launch.sidecar(spec, place)    the process that carries its messages
    launch.ends(place, joins=…)    the end actors

Nothing is started here: the CLI, tests and supervisors do that. URLs may hold secrets: they go by the environment,
which others cannot read, and not by the command line.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from groundplane.core.secrets import Url
from groundplane.core.settings import Settings
from groundplane.mesh.spec import ActorSpec, Limits

SOCKET_PATH_MAX = 100
"""The kernel takes 107 bytes."""
SIDECAR_EXITS = {1: "failed", 2: "usage", 3: "runtime_not_ready", 4: "queue_not_ready", 5: "store_not_ready"}
RUNTIME_EXITS = {
    2: "usage",
    3: "handler_import_failed",
    4: "its socket cannot be bound",
    5: "its workers die while they start",
    6: "calls were killed at the end of the grace",
}
_EMBEDDED = Url("embedded://")
_PORTS = ("queues", "jobs", "blobs", "ledger")
_OF_SIDECARS = (*_PORTS, "bus")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a mesh lives: its plane, its URLs, its limits. Sockets and ready files lie under `<state>/run/`."""

    state: Path
    namespace: str = "default"
    queues: Url = _EMBEDDED
    jobs: Url = _EMBEDDED
    blobs: Url = _EMBEDDED
    ledger: Url = _EMBEDDED
    bus: Url = _EMBEDDED
    limits: Limits = Limits()
    gateway_url: str | None = None
    start_timeout_s: float = 30.0
    log_level: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """The place that the settings of a plane describe."""
        return cls(
            state=settings.state.resolve(),
            namespace=settings.name,
            queues=settings.queues,
            jobs=settings.jobs,
            blobs=settings.blobs,
            ledger=settings.ledger,
            bus=settings.bus,
            limits=Limits(
                payload_inline_bytes_max=settings.payload_inline_bytes_max,
                payload_bytes_max=settings.payload_bytes_max,
                hops_max=settings.hops_max,
                grace_s=settings.grace_s,
            ),
            log_level=settings.log_level,
        )

    @property
    def run(self) -> Path:
        """The folder of sockets and ready files."""
        return self.state / "run"

    def socket(self, actor: str) -> Path:
        """The socket of an actor's runtime. A path too long for the kernel becomes a short one, if need be in a folder
        of this user's under the temporary one."""
        plain = self.run / f"{actor}.sock"
        if len(os.fsencode(plain)) <= SOCKET_PATH_MAX:
            return plain
        short = plain.with_name(f"{_digest(actor)}.sock")
        if len(os.fsencode(short)) <= SOCKET_PATH_MAX:
            return short
        other = Path(tempfile.gettempdir(), f"groundplane-{os.getuid()}-{_digest(str(self.state))}")
        other.mkdir(mode=0o700, exist_ok=True)
        return other / short.name

    def ready_file(self, name: str) -> Path:
        """The ready file of a process, by its name."""
        return self.run / f"{name}.ready"


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A process to start: its name, arguments, what to add to the environment, the file it writes when ready, and what
    its exit codes mean."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    ready_file: Path
    exits: dict[int, str] = msgspec.field(default_factory=dict)


def runtime(spec: ActorSpec, place: Place, *, python: str = sys.executable) -> Command:
    """The runtime of an actor. Its working directory should be where the handler can be imported."""
    name = f"{spec.name}.runtime"
    ready = place.ready_file(name)
    arguments = [
        *(python, "-m", "groundplane.mesh.runtime"),  # as a module: a script is compiled at each start
        *("--handler", spec.handler, "--socket", str(place.socket(spec.name)), "--handler-mode", spec.handler_mode),
        *("--workers", str(spec.concurrency), "--concurrency", str(spec.concurrency)),
        *("--grace-s", f"{place.limits.grace_s:g}", "--ready-file", str(ready)),
    ]
    log_level = {"GROUNDPLANE_LOG_LEVEL": place.log_level.upper()} if place.log_level else {}
    return Command(name=name, arguments=arguments, environment=log_level, ready_file=ready, exits=RUNTIME_EXITS)


def sidecar(spec: ActorSpec, place: Place, *, python: str = sys.executable, replica: int = 0, **more: Any) -> Command:
    """A sidecar of an actor. `more` are further fields of `SidecarConfig`."""
    name = f"{spec.name}.sidecar" + (f".{replica}" if replica else "")
    ready = place.ready_file(name)
    config: dict[str, Any] = {
        "actor": msgspec.to_builtins(spec),
        "socket": str(place.socket(spec.name)),
        "gateway_url": place.gateway_url,
        **_shared(place, ready, _OF_SIDECARS),
        **more,
    }
    return _python(name, "groundplane.mesh.sidecar", config, _environment(place, _OF_SIDECARS), ready, python)


def ends(place: Place, *, joins: Iterable[str] = (), python: str = sys.executable, **more: Any) -> Command:
    """The end actors. `joins` names the actors that join; `more` are further fields of `EndsConfig`."""
    ready = place.ready_file("ends")
    config: dict[str, Any] = {
        "joins": sorted(joins),
        "gateway_url": place.gateway_url,
        **_shared(place, ready, _PORTS),
        **more,
    }
    return _python("ends", "groundplane.mesh.ends", config, _environment(place, _PORTS), ready, python)


def _shared(place: Place, ready: Path, ports: Sequence[str]) -> dict[str, Any]:
    return {
        "limits": msgspec.to_builtins(place.limits),
        "namespace": place.namespace,
        "state": str(place.state),
        **{port: "" for port in ports if not getattr(place, port).reveal()},
        "start_timeout_s": place.start_timeout_s,
        "ready_file": str(ready),
    }


def _python(
    name: str, module: str, config: dict[str, Any], environment: dict[str, str], ready: Path, python: str
) -> Command:
    arguments = [python, "-m", module, "--config", msgspec.json.encode(config).decode()]
    return Command(name=name, arguments=arguments, environment=environment, ready_file=ready, exits=SIDECAR_EXITS)


def _environment(place: Place, ports: Sequence[str]) -> dict[str, str]:
    urls = {f"GROUNDPLANE_{port.upper()}_URL": getattr(place, port).reveal() for port in ports}
    log_level = {"GROUNDPLANE_LOG_LEVEL": place.log_level.upper()} if place.log_level else {}
    return {"PYTHONUNBUFFERED": "1", **urls, **log_level}


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
