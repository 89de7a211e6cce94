"""A Compose file: the one-shot migration, then gateways behind a proxy, ends, services, and two for each actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groundplane.deploy import roles
from groundplane.deploy.dockerfile import dockerfile, dockerignore
from groundplane.deploy.document import to_yaml
from groundplane.deploy.names import object_name
from groundplane.deploy.objects import digest
from groundplane.deploy.plan import ADMIN_PORT, GATEWAY_PORT, PROXY_PORT, USER, Plan
from groundplane.deploy.proxy import CONFIG as PROXY_CONFIG
from groundplane.deploy.proxy import nginx_conf
from groundplane.mesh.spec import ActorSpec

Service = dict[str, Any]

SECRETS_FOLDER = "secrets"
_MIGRATED = {"migration": {"condition": "service_completed_successfully"}}
_READY = "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}/readyz', timeout=4)"


def render(plan: Plan, *, publish: str = "127.0.0.1:8080") -> dict[str, str]:
    """The files by name. `publish` is the address of the host that the proxy gets."""
    return {
        "compose.yaml": to_yaml([document(plan, publish=publish)]),
        "Dockerfile": dockerfile(plan),
        "Dockerfile.dockerignore": dockerignore(),
    }


def document(plan: Plan, *, publish: str) -> dict[str, Any]:
    """The Compose file as a value. Secrets are files in the folder `secrets` beside it."""
    services: dict[str, Service] = {
        "migration": {**_role(plan, roles.migration(plan)), "restart": "no"},
        **{name: _gateway(plan) for name in gateways(plan)},
        "proxy": _proxy(plan, publish),
        "ends": _ends(plan),
        **({"services": _services(plan)} if plan.serves else {}),
    }
    for actor in plan.actors:
        services[f"{actor.name}-runtime"] = _runtime(plan, actor)
        services[f"{actor.name}-sidecar"] = _sidecar(plan, actor)
    secrets = {name: {"file": f"./{SECRETS_FOLDER}/{name}"} for name in _url_secrets(plan).values()}
    return {
        "name": object_name(plan.name),
        "services": services,
        "volumes": {f"{actor.name}-run": {} for actor in plan.actors},
        "configs": {name: {"content": text.replace("$", "$$")} for name, text in _configs(plan).items()},
        "secrets": secrets,
    }


def _configs(plan: Plan) -> dict[str, str]:
    found = {"nginx": _nginx(plan), **{f"routes-{name}": text for name, text in plan.routes.items()}}
    return found | {f"{actor.name}-sidecar": roles.sidecar_document(plan, actor) for actor in plan.actors}


def _url_secrets(plan: Plan) -> dict[str, str]:
    """The name of the secret of each variable."""
    return {variable: f"{port}_url" for variable, port in plan.secrets.items()}


def _service(plan: Plan, command: Sequence[str], **more: Any) -> Service:
    """A container without privileges on a file system that is not written, started again when it ends."""
    return {
        "image": plan.image,
        "command": _plain(command),
        "entrypoint": [],
        "user": f"{USER}:{USER}",
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "stop_grace_period": f"{plan.stop_s}s",
        **more,
    }


def _role(plan: Plan, command: Sequence[str], environment: dict[str, str] | None = None, **more: Any) -> Service:
    """A service that knows the URLs, each as the file of a secret."""
    files = {f"{variable}_FILE": f"/run/secrets/{name}" for variable, name in _url_secrets(plan).items()}
    values = {**plan.environment(), **files, **(environment or {})}
    secrets = list(_url_secrets(plan).values())
    return _service(plan, command, working_dir=plan.folder, environment=_dollars(values), secrets=secrets, **more)


def gateways(plan: Plan) -> list[str]:
    """The services that are gateways. Each has a name of its own, so that one after the other can be made anew."""
    return [f"gateway-{number}" for number in range(1, plan.gateway_replicas + 1)]


def _gateway(plan: Plan) -> Service:
    environment = {**roles.gateway_environment(plan), "GROUNDPLANE_ADMIN_HOST": "0.0.0.0"}
    more: Service = {"depends_on": _MIGRATED, "healthcheck": _healthy(_ready_test())}
    if plan.routes:
        more["configs"] = [{"source": f"routes-{n}", "target": f"{roles.ROUTES_FOLDER}/{n}"} for n in plan.routes]
    return _role(plan, roles.gateway(plan), environment, **more)


def _nginx(plan: Plan) -> str:
    return nginx_conf([f"{name}:{GATEWAY_PORT}" for name in gateways(plan)])


def _proxy(plan: Plan, publish: str) -> Service:
    """It asks the gateways in turn, and is what is published."""
    return {
        "image": plan.proxy_image,
        "depends_on": {name: {"condition": "service_healthy", "restart": False} for name in gateways(plan)},
        "ports": [f"{publish}:{PROXY_PORT}"],
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "configs": [{"source": "nginx", "target": PROXY_CONFIG}],
        "labels": {"groundplane.config": digest(_nginx(plan))},
    }


def _ends(plan: Plan) -> Service:
    environment = {"GROUNDPLANE_ACTOR_ADMIN_HOST": "0.0.0.0", "GROUNDPLANE_ACTOR_ADMIN_PORT": str(ADMIN_PORT)}
    more = {"depends_on": _MIGRATED, "healthcheck": _healthy(_ready_test())}
    return _role(plan, roles.ends(plan), environment, **more)


def _services(plan: Plan) -> Service:
    """What the App declares for the bus; its processes register themselves, so nothing leads to them."""
    environment = {"GROUNDPLANE_ACTOR_ADMIN_HOST": "0.0.0.0", "GROUNDPLANE_ACTOR_ADMIN_PORT": str(ADMIN_PORT)}
    return _role(
        plan,
        roles.services(plan),
        environment,
        depends_on=_MIGRATED,
        healthcheck=_healthy(_ready_test()),
        mem_limit=_bytes(plan.memory),
        deploy={"replicas": plan.services_replicas},
    )


def _runtime(plan: Plan, actor: ActorSpec) -> Service:
    """Without URLs: the user's code runs in it."""
    return _service(
        plan,
        roles.runtime(plan, actor),
        working_dir=plan.folder,
        environment=roles.runtime_environment(plan),
        mem_limit=_bytes(plan.memory),
        healthcheck=_healthy(roles.runtime_probe()),
        volumes=[f"{actor.name}-run:{roles.RUN}"],
    )


def _sidecar(plan: Plan, actor: ActorSpec) -> Service:
    """It depends on its runtime, so it is stopped first, and drains while the runtime still runs."""
    runtime = {f"{actor.name}-runtime": {"condition": "service_healthy", "restart": False}}
    return _role(
        plan,
        roles.sidecar(),
        {"GROUNDPLANE_ACTOR_ADMIN_HOST": "0.0.0.0"},
        depends_on={**_MIGRATED, **runtime},
        healthcheck=_healthy(_ready_test()),
        configs=[{"source": f"{actor.name}-sidecar", "target": roles.SIDECAR_CONFIG}],
        volumes=[f"{actor.name}-run:{roles.RUN}"],
        labels={"groundplane.config": digest(roles.sidecar_document(plan, actor))},
    )


def _ready_test() -> list[str]:
    return ["python", "-c", _READY.format(port=ADMIN_PORT)]


def _healthy(command: Sequence[str]) -> Service:
    return {
        "test": ["CMD", *command],
        "interval": "10s",
        "timeout": "10s",
        "retries": 3,
        "start_period": "60s",
        "start_interval": "1s",
    }


def _plain(command: Sequence[str]) -> list[str]:
    return [part.replace("$", "$$") for part in command]


def _dollars(values: dict[str, str]) -> dict[str, str]:
    return {name: value.replace("$", "$$") for name, value in values.items()}


def _bytes(quantity: str) -> str:
    """`512Mi` as Compose writes it."""
    return quantity.removesuffix("i").lower()
