"""The last way to a shared server: a container, where testcontainers is installed and a Docker daemon answers.

Written from testcontainers' documentation; it has not been run against a real daemon. A container is shared by one
process of a run and refuses faults: its published ports change when it is started again.
"""

from __future__ import annotations

import importlib
import importlib.util
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundplane.testing.servers.catalog import server
from groundplane.testing.servers.contract import Installation, NotReady, Place, Running, StartFailed
from groundplane.testing.servers.given import Given
from groundplane.testing.servers.processes import tail
from groundplane.testing.servers.settings import KitSettings

_PING_TIMEOUT_S = 3
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Image:
    """What to run, and which port inside has which of the server's names."""

    name: str
    ports: Mapping[str, int]
    env: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    @property
    def version(self) -> str:
        return self.name.rpartition(":")[2]


IMAGES: Mapping[str, Image] = {
    "postgres": Image("pgvector/pgvector:0.8.1-pg18", {"client": 5432}, {"POSTGRES_HOST_AUTH_METHOD": "trust"}),
    "redis": Image("redis:7.2", {"client": 6379}, command="redis-server --databases 4096 --save ''"),
    "rabbitmq": Image("rabbitmq:3.13-management", {"amqp": 5672, "management": 15672}),
    "nats": Image("nats:2.12", {"client": 4222, "monitor": 8222}, command="-js -m 8222"),
    "s3": Image(
        "minio/minio:RELEASE.2025-09-07T16-13-09Z", {"api": 9000},
        {"MINIO_ROOT_USER": "groundplane", "MINIO_ROOT_PASSWORD": "SECRET"}, "server /data",
    ),
    "etcd": Image(
        "quay.io/coreos/etcd:v3.5.21", {"client": 2379},
        command="etcd --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://127.0.0.1:2379",
    ),
}  # fmt: skip


class Contained(Given):
    """A `Running` in a container."""

    origin = "container"

    def __init__(self, place: Place, container: Any, ready_s: float) -> None:
        one = server(place.name)
        super().__init__(place.name, "a container", one.url(place))
        self.version = place.installation.version
        self.ready_s = ready_s
        self._ports, self._urls, self._container = place.ports, one.urls(place), container

    @property
    def ports(self) -> Mapping[str, int]:
        return self._ports

    @property
    def urls(self) -> Mapping[str, str]:
        return self._urls

    def logs(self, lines: int = 50) -> str:
        return _logs(self._container, lines)

    def end(self) -> None:
        """Stop and remove the container."""
        self._container.stop()


def possible(name: str) -> bool:
    """Whether there is an image, testcontainers is installed, and a daemon answers within a few seconds."""
    if name not in IMAGES or importlib.util.find_spec("testcontainers") is None:
        return False
    docker = importlib.import_module("docker")
    try:
        client = docker.from_env(timeout=_PING_TIMEOUT_S)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except (docker.errors.DockerException, OSError):
        return False


def contained(name: str, settings: KitSettings) -> Contained:
    """A started container that answers as a native server of this name would. Raises `StartFailed`."""
    image = IMAGES[name]
    secret = secrets.token_hex(12)
    container = importlib.import_module("testcontainers.core.container").DockerContainer(image.name)
    container.with_exposed_ports(*image.ports.values())
    for variable, value in image.env.items():
        container.with_env(variable, secret if value == "SECRET" else value)
    if image.command:
        container.with_command(image.command)
    started = time.monotonic()
    container.start()
    try:
        ports = {word: int(container.get_exposed_port(number)) for word, number in image.ports.items()}
        program = image.name.partition("/")[0]
        image_of = Installation(origin="container", version=image.version, programs={program: Path(program)})
        place = Place(
            name=name, installation=image_of, others={}, folder=Path("/"), data=Path("/"), ports=ports, account=None,
            options={}, secret=secret,
        )  # fmt: skip
        _wait(place, container, started + settings.startup_timeout_s)
    except BaseException:
        container.stop()
        raise
    return Contained(place, container, time.monotonic() - started)


def _wait(place: Place, container: Any, deadline: float) -> None:
    while True:
        try:
            server(place.name).check(place)
            return
        except (NotReady, OSError) as error:
            if time.monotonic() > deadline:
                raise StartFailed(f"{place.name}: container: not ready ({error}):\n{_logs(container, 20)}") from error
        time.sleep(_PAUSE_S)


def _logs(container: Any, lines: int) -> str:
    output, errors = container.get_logs()
    return tail((output + errors).decode(errors="replace"), lines)


_: Callable[..., Running] = Contained
