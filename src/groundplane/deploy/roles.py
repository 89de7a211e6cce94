"""What runs in each container: command lines and documents, the same for every orchestrator."""

from __future__ import annotations

import msgspec

from groundplane.deploy.plan import ADMIN_PORT, GATEWAY_PORT, STATE, Plan
from groundplane.mesh.spec import ActorSpec

RUN = "/run/groundplane"
SOCKET = f"{RUN}/actor.sock"
CONFIG_FOLDER = "/etc/groundplane"
SIDECAR_CONFIG = f"{CONFIG_FOLDER}/sidecar.json"
ROUTES_FOLDER = f"{CONFIG_FOLDER}/routes"
MIGRATION_WAIT = "300s"


def migration(plan: Plan) -> list[str]:
    """Once, before the others: the schema of this version, and the queues of the App."""
    return ["groundplane", "db", "upgrade", "--app", plan.app, "--wait", MIGRATION_WAIT]


def waiting() -> list[str]:
    """What a role does first where the orchestrator has no order: wait until the migration is done."""
    return ["groundplane", "db", "check", "--wait", MIGRATION_WAIT]


def gateway(plan: Plan) -> list[str]:
    """The gateway, on every address of its container: it asks each caller for a key or token."""
    return ["groundplane", "run", plan.app, "--role", "gateway", "--host", "0.0.0.0", "--port", str(GATEWAY_PORT)]


def gateway_environment(plan: Plan, *names: str) -> dict[str, str]:
    """What the gateway alone is told. `names` are those that it has where it runs."""
    auth = plan.settings.auth
    found = {
        "GROUNDPLANE_ADMIN_PORT": str(ADMIN_PORT),
        "GROUNDPLANE_AUTH": "keys" if auth == "none" else auth,
    }
    if hosts := [*names, *plan.settings.allowed_hosts]:
        found["GROUNDPLANE_ALLOWED_HOSTS"] = ",".join(hosts)
    if plan.routes:
        found["GROUNDPLANE_ROUTES"] = ROUTES_FOLDER
    return found


def ends(plan: Plan) -> list[str]:
    """Both end actors; URLs come by their environment."""
    joins = [actor.name for actor in plan.actors if actor.join]
    document = {"joins": joins, "limits": msgspec.to_builtins(plan.limits)}
    return ["python", "-m", "groundplane.mesh.ends", "--config", msgspec.json.encode(document).decode()]


def services(plan: Plan) -> list[str]:
    """What the App declares for the bus, and its elections. It imports the user's code, and knows the URLs."""
    return ["groundplane", "run", plan.app, "--role", "services"]


def sidecar() -> list[str]:
    """An actor's sidecar; its settings are in `sidecar_document`."""
    return ["groundplane", "sidecar", "--config", SIDECAR_CONFIG]


def sidecar_document(plan: Plan, actor: ActorSpec) -> str:
    """The settings of an actor's sidecar. URLs come by its environment. A bus in the container's own folder would be
    nobody else's: then there is none.
    """
    document = {
        "actor": msgspec.to_builtins(actor),
        "admin_port": ADMIN_PORT,
        "limits": msgspec.to_builtins(plan.limits),
        "namespace": plan.name,
        "socket": SOCKET,
        "state": STATE,
        **({"bus": ""} if plan.settings.bus.scheme == "embedded" else {}),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def runtime(plan: Plan, actor: ActorSpec) -> list[str]:
    """An actor's runtime. It knows no URL: the user's code runs in it."""
    calls = str(actor.concurrency)
    return [
        "groundplane", "runtime", "--handler", actor.handler, "--handler-mode", actor.handler_mode,
        "--socket", SOCKET, "--workers", calls, "--concurrency", calls,
        "--grace-s", f"{plan.settings.grace_s:g}", "--ready-file", f"{RUN}/runtime.ready",
    ]  # fmt: skip


def runtime_probe() -> list[str]:
    """Whether the runtime serves: exit code 0 or 1."""
    return ["groundplane", "runtime", "--probe", "--socket", SOCKET]


def runtime_environment(plan: Plan) -> dict[str, str]:
    """What a runtime is told beside its flags."""
    level = plan.settings.log_level
    return {"GROUNDPLANE_LOG_LEVEL": level.upper(), "HOME": "/tmp", "PYTHONUNBUFFERED": "1"}


def await_sidecar(plan: Plan) -> list[str]:
    """What keeps a runtime from stopping before its sidecar has drained: waits until the sidecar's admin port is gone.

    Standard library alone, as the runtime: it works in any image with Python.
    """
    return ["python3", "-c", _AWAIT_SIDECAR.format(port=ADMIN_PORT, seconds=plan.stop_s - 5)]


_AWAIT_SIDECAR = """\
import os, socket, time
end = time.monotonic() + {seconds}
host = os.environ.get("GROUNDPLANE_ACTOR_ADMIN_HOST", "127.0.0.1")
while time.monotonic() < end:
    try:
        socket.create_connection((host, {port}), 2).close()
    except OSError:
        break
    time.sleep(0.1)
"""
