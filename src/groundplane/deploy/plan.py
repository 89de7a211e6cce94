"""What is to be deployed, checked: the value that every renderer starts from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import msgspec

from groundplane.core.errors import InvalidArgument
from groundplane.core.options import OPTIONS
from groundplane.core.settings import Settings
from groundplane.deploy.names import check_image
from groundplane.mesh.spec import ActorSpec, Limits

PROXY_IMAGE = "nginxinc/nginx-unprivileged:1.29-alpine"
USER = 10001
ADMIN_PORT, GATEWAY_PORT, PROXY_PORT = 9090, 8080, 8081
STATE = "/tmp/groundplane"
DRAIN_DELAY_S = 5.0
"""How long a gateway that is told to stop still serves where a cluster has to hear of it: its Services are told by and
by."""
STOP_MARGIN_S = 15
"""What a stop takes beside the grace: handing back, closing (10 s at most)."""
_PORTS = ("queues", "jobs", "ledger", "blobs")
_SERVING = ("kv", "bus")
"""What the role `services` needs beside them."""
_EXAMPLES = {
    "queues": "amqp://user:password@broker/",
    "jobs": "postgresql://user:password@database/acme",
    "ledger": "postgresql://user:password@database/acme",
    "blobs": "s3://bucket/prefix?endpoint=https://s3.example.com",
    "kv": "nats://user:password@nats:4222",
    "bus": "nats://user:password@nats:4222",
}
_MEMORY, _CPU = re.compile(r"[0-9]+(Ki|Mi|Gi|k|M|G)?"), re.compile(r"[0-9]+(m|\.[0-9]{1,3})?")
_NOT_SHARED = frozenset(
    {"name", "state", "host", "port", "allowed_hosts", "admin_host", "admin_port", "auth", "routes", "log_format"}
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """An App on images. Made by `plan_of`, which checks it.

    `app` is the App's address in the image, and `folder` the folder of the image that it is imported from. An actor
    has `replicas_min` to `replicas_max` pods, one for each `backlog` messages per call at once. `memory` and `cpu` are
    those of what runs the App's code. `routes` are the texts of files with tools. `serves`: the App declares something
    for the bus, or an election, which `services_replicas` processes run.
    """

    name: str
    app: str
    image: str
    folder: str = "/app"
    actors: tuple[ActorSpec, ...]
    settings: Settings = Settings()
    proxy_image: str = PROXY_IMAGE
    gateway_replicas: int = 2
    replicas_min: int = 1
    replicas_max: int = 10
    backlog: int = 10
    memory: str = "512Mi"
    cpu: str = "100m"
    routes: dict[str, str] = {}
    serves: bool = False
    services_replicas: int = 2

    @property
    def stop_s(self) -> int:
        """How long a stop may take before the container is killed: more than the grace."""
        return math.ceil(self.settings.grace_s) + STOP_MARGIN_S

    @property
    def drain_delay_s(self) -> float:
        """How long a gateway of a cluster serves on after it was told to stop; a part of the grace."""
        chosen = self.settings
        return chosen.drain_delay_s or min(DRAIN_DELAY_S, chosen.grace_s / 2)

    @property
    def limits(self) -> Limits:
        """The mesh's limits, as the settings have them."""
        chosen = self.settings
        return Limits(
            payload_inline_bytes_max=chosen.payload_inline_bytes_max,
            payload_bytes_max=chosen.payload_bytes_max,
            hops_max=chosen.hops_max,
            grace_s=chosen.grace_s,
        )

    @property
    def secrets(self) -> dict[str, str]:
        """The variables that hold URLs, each with the port that it is for."""
        security = ("security",) if self.settings.security != self.settings.jobs else ()
        serving = tuple(port for port in _SERVING if getattr(self.settings, port).scheme != "embedded")
        return {option.variable: option.field for option in OPTIONS if option.field in (*_PORTS, *security, *serving)}

    def environment(self) -> dict[str, str]:
        """The settings that are no secrets, where they differ from the defaults; the same for every role."""
        plain = Settings()
        found = {"GROUNDPLANE_NAME": self.name, "GROUNDPLANE_STATE": STATE, "GROUNDPLANE_LOG_FORMAT": "json"}
        for option in OPTIONS:
            value = getattr(self.settings, option.field)
            if not option.secret and option.field not in _NOT_SHARED and value != getattr(plain, option.field):
                found[option.variable] = _as_text(value)
        return found


def _as_text(value: object) -> str:
    """As the variable of a setting takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def plan_of(
    *,
    app: str,
    image: str,
    actors: Iterable[ActorSpec],
    settings: Settings,
    routes: Mapping[str, str],
    serves: bool = False,
    **more: object,
) -> Plan:
    """The plan, checked. `invalid_argument` for an App without actors that serves nothing either, storage that
    containers cannot share, and numbers out of range.
    """
    chosen = tuple(sorted(actors, key=lambda actor: actor.name))
    if not chosen and not serves:
        raise InvalidArgument(
            f"app: {app!r} declares no actors and nothing for the bus, so there is nothing to deploy; add @app.actor"
        )
    _refuse_embedded(settings, (*_PORTS, *_SERVING) if serves else _PORTS)
    plan = msgspec.convert(
        {"name": settings.name, "app": app, "image": check_image("image", image), **more,
         "actors": chosen, "settings": settings, "serves": serves, "routes": dict(sorted(routes.items()))},
        Plan, dec_hook=lambda kind, value: value,
    )  # fmt: skip
    check_image("proxy_image", plan.proxy_image)
    for field, least, most in (
        ("gateway_replicas", 1, 100), ("services_replicas", 1, 100),
        ("replicas_min", 0, 1000), ("replicas_max", max(1, plan.replicas_min), 1000),
        ("backlog", 1, 1_000_000),
    ):  # fmt: skip
        value = getattr(plan, field)
        if not least <= value <= most:
            raise InvalidArgument(f"{field}: {value!r} is not from {least} to {most}")
    for field, known, example in (("memory", _MEMORY, "512Mi"), ("cpu", _CPU, "100m")):
        value = getattr(plan, field)
        if not known.fullmatch(value) or not value.strip("0.mKMGTi"):
            raise InvalidArgument(f"{field}: {value!r} is no quantity; write {example}")
    return plan


def _refuse_embedded(settings: Settings, ports: Iterable[str]) -> None:
    wrong = [port for port in ports if getattr(settings, port).scheme == "embedded"]
    if wrong:
        variables = {option.field: option.variable for option in OPTIONS}
        wanted = ", ".join(f"{variables[port]}={_EXAMPLES[port]}" for port in wrong)
        raise InvalidArgument(
            f"{wrong[0]}: {getattr(settings, wrong[0]).masked()!r} is a folder of one machine, which containers do not "
            f"share; set {wanted} (also in groundplane.toml; only what kind it is, is used here)"
        )
