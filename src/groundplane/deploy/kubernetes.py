"""Manifests for Kubernetes: settings, the one-shot migration, gateway, ends, services, and each actor with its
ScaledObject.
"""

from __future__ import annotations

import json

from groundplane.core.errors import InvalidArgument
from groundplane.deploy import roles
from groundplane.deploy.document import to_yaml
from groundplane.deploy.names import check_namespace, object_name
from groundplane.deploy.objects import (
    ADMIN_HOST,
    TMP,
    Object,
    Place,
    admin_probes,
    container,
    deployment,
    digest,
    disruption_budget,
    pod,
    variables,
)
from groundplane.deploy.plan import ADMIN_PORT, GATEWAY_PORT, Plan
from groundplane.mesh.spec import ActorSpec

_MEMORY_MAX = "768Mi"
"""Of those that hold payloads: some 60 MiB without any; a large payload may be held several times over."""


def place_of(
    plan: Plan,
    *,
    namespace: str | None = None,
    urls_secret: str | None = None,
    keda: bool = True,
) -> Place:
    """Where a plan goes: by default a namespace that is called like the plane, and the secret likewise."""
    own = object_name(plan.name)
    return Place(
        plan=plan,
        namespace=check_namespace(own if namespace is None else namespace),
        urls_secret=urls_secret or object_name(plan.name, "urls"),
        keda=keda,
    )


def render(place: Place) -> dict[str, str]:
    """The files by name. Applied in the order of their names the migration comes before the roles, which wait for it
    in whatever order.
    """
    files = {
        "10-settings.yaml": [settings(place)],
        "20-migration.yaml": [migration(place)],
        "30-gateway.yaml": gateway(place),
        "40-ends.yaml": ends(place),
    }
    if place.plan.serves:
        files["45-services.yaml"] = services(place)
    for spec in place.plan.actors:
        name = place.name("actor", spec.name)
        if f"50-{name}.yaml" in files:
            raise InvalidArgument(f"actor: {spec.name!r} gets the name {name!r} of another one; rename it")
        files[f"50-{name}.yaml"] = actor(place, spec)
    return {name: to_yaml(objects) for name, objects in files.items()}


def settings(place: Place) -> Object:
    """The settings that are no secrets."""
    return {
        **place.head(("v1", "ConfigMap"), place.name("settings"), "settings"),
        "data": place.plan.environment(),
    }


def migration(place: Place) -> Object:
    """The Job that runs once. Its name changes with what it does, as Jobs themselves cannot be changed."""
    plan = place.plan
    command = roles.migration(plan)
    one = container(
        "migration", plan.image, command, memory="256Mi", cpu="100m",
        workingDir=plan.folder, envFrom=place.shared(), env=place.urls(), volumeMounts=[TMP],
    )  # fmt: skip
    spec = pod([one], [], stop_s=None, restartPolicy="Never")
    name = place.name("migration", digest(json.dumps(spec, sort_keys=True), *plan.environment().values())[:8])
    template = {"metadata": {"labels": place.labels("migration")}, "spec": spec}
    body = {"backoffLimit": 6, "ttlSecondsAfterFinished": 86400, "template": template}
    return {**place.head(("batch/v1", "Job"), name, "migration"), "spec": body}


def gateway(place: Place) -> list[Object]:
    """The gateways, which know their callers by keys or tokens, and their Services."""
    plan, name = place.plan, place.name("gateway")
    volumes = [{"name": "routes", "configMap": {"name": place.name("routes")}}] if plan.routes else []
    objects: list[Object] = []
    if plan.routes:
        objects.append({**place.head(("v1", "ConfigMap"), place.name("routes"), "gateway"), "data": plan.routes})
    spec = pod([_gateway_container(place)], volumes, stop_s=plan.stop_s, initContainers=[_waiting(place)])
    changed = {"groundplane/settings": _changes(place, *plan.routes.values())}
    objects.append(deployment(place, name, "gateway", spec, replicas=plan.gateway_replicas, annotations=changed))
    if plan.gateway_replicas > 1:
        objects.append(disruption_budget(place, name, "gateway"))
    objects.append(_service(place, name, {"name": "http", "port": 80, "targetPort": "http"}))
    # depths are told as long as the gateway lives, also while it is not ready
    port = {"name": "admin", "port": ADMIN_PORT, "targetPort": "admin"}
    return [*objects, _service(place, place.name("admin"), port, publishNotReadyAddresses=True)]


def ends(place: Place) -> list[Object]:
    """Both end actors in one process."""
    plan, name = place.plan, place.name("ends")
    one = container(
        "ends", plan.image, roles.ends(plan), memory="96Mi", memory_max=_MEMORY_MAX, cpu="50m",
        envFrom=place.shared(), env=[*place.urls(), *_actor_admin()], ports=_admin_ports(), **admin_probes(ADMIN_PORT),
        volumeMounts=[TMP],
    )  # fmt: skip
    spec = pod([one], [], stop_s=plan.stop_s, initContainers=[_waiting(place)])
    changed = {"groundplane/settings": _changes(place)}
    return [deployment(place, name, "ends", spec, replicas=1, annotations=changed)]


def services(place: Place) -> list[Object]:
    """What the App declares for the bus, in processes that register themselves: no Service leads to them."""
    plan, name = place.plan, place.name("services")
    one = container(
        "services", plan.image, roles.services(plan), memory=plan.memory, cpu=plan.cpu,
        workingDir=plan.folder, envFrom=place.shared(), env=[*place.urls(), *_actor_admin()],
        ports=_admin_ports(), **admin_probes(ADMIN_PORT), volumeMounts=[TMP],
    )  # fmt: skip
    spec = pod([one], [], stop_s=plan.stop_s, initContainers=[_waiting(place)])
    changed, replicas = {"groundplane/settings": _changes(place)}, plan.services_replicas
    objects = [deployment(place, name, "services", spec, replicas=replicas, annotations=changed)]
    return [*objects, disruption_budget(place, name, "services")] if replicas > 1 else objects


def actor(place: Place, spec: ActorSpec) -> list[Object]:
    """An actor: sidecar and runtime in one pod with a socket between them, and what scales it."""
    plan, name = place.plan, place.name("actor", spec.name)
    document = roles.sidecar_document(plan, spec)
    config = {**place.head(("v1", "ConfigMap"), name, "actor", spec.name), "data": {"sidecar.json": document}}
    volumes = [
        {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
        {"name": "config", "configMap": {"name": name}},
    ]
    containers = [_sidecar_container(place), _runtime_container(plan, spec)]
    body = pod(containers, volumes, stop_s=plan.stop_s, initContainers=[_waiting(place)])
    scaled = place.keda and plan.replicas_max > max(1, plan.replicas_min)
    replicas = None if scaled else max(1, plan.replicas_min)
    changed = {"groundplane/settings": _changes(place, document)}
    objects = [
        config, deployment(place, name, "actor", body, actor=spec.name, replicas=replicas, annotations=changed),
    ]  # fmt: skip
    if scaled or (replicas or 0) > 1:
        objects.append(disruption_budget(place, name, "actor", spec.name))
    return [*objects, _scaled_object(place, name, spec)] if scaled else objects


def _scaled_object(place: Place, name: str, spec: ActorSpec) -> Object:
    """One trigger with one number: KEDA takes the largest of several, it does not add them up."""
    plan = place.plan
    url = f"http://{place.name('admin')}.{place.namespace}.svc:{ADMIN_PORT}/depth/{spec.name}"
    metadata = {
        "url": url,
        "valueLocation": "depth",
        "targetValue": str(plan.backlog * spec.concurrency),
        "activationTargetValue": "0",
    }
    body = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicaCount": plan.replicas_min,
        "maxReplicaCount": plan.replicas_max,
        "pollingInterval": 5,
        "cooldownPeriod": 300,
        "triggers": [{"type": "metrics-api", "metricType": "AverageValue", "metadata": metadata}],
    }
    return {**place.head(("keda.sh/v1alpha1", "ScaledObject"), name, "actor", spec.name), "spec": body}


def _gateway_container(place: Place) -> Object:
    """It needs no hook before it stops: told to, it serves on until its Services know."""
    plan = place.plan
    environment = roles.gateway_environment(plan, *_names(place))
    environment["GROUNDPLANE_DRAIN_DELAY"] = f"{plan.drain_delay_s:.15g}"
    own = [*variables(environment), {"name": "GROUNDPLANE_ADMIN_HOST", "valueFrom": ADMIN_HOST}]
    routes = [{"name": "routes", "mountPath": roles.ROUTES_FOLDER, "readOnly": True}] if plan.routes else []
    return container(
        "gateway", plan.image, roles.gateway(plan), memory="192Mi", memory_max=_MEMORY_MAX, cpu="100m",
        workingDir=plan.folder, envFrom=place.shared(), env=[*place.urls(), *own],
        ports=[{"name": "http", "containerPort": GATEWAY_PORT}, *_admin_ports()], **admin_probes(ADMIN_PORT),
        volumeMounts=[TMP, *routes],
    )  # fmt: skip


def _names(place: Place) -> list[str]:
    """What the Service of the gateways is called in the cluster."""
    name = place.name("gateway")
    longer = [f"{name}.{place.namespace}{end}" for end in ("", ".svc", ".svc.cluster.local")]
    return [name, *longer]


def _sidecar_container(place: Place) -> Object:
    mounts = [TMP, {"name": "run", "mountPath": roles.RUN}]
    mounts.append({"name": "config", "mountPath": roles.CONFIG_FOLDER, "readOnly": True})
    level = {"GROUNDPLANE_LOG_LEVEL": place.plan.settings.log_level.upper()}
    return container(
        "sidecar", place.plan.image, roles.sidecar(), memory="96Mi", memory_max=_MEMORY_MAX, cpu="50m",
        env=[*place.urls(), *_actor_admin(), *variables(level)],
        ports=_admin_ports(), **admin_probes(ADMIN_PORT), volumeMounts=mounts,
    )  # fmt: skip


def _runtime_container(plan: Plan, spec: ActorSpec) -> Object:
    def probe(**more: int) -> Object:
        return {"exec": {"command": roles.runtime_probe()}, "timeoutSeconds": 10, **more}

    host = {"name": "GROUNDPLANE_ACTOR_ADMIN_HOST", "valueFrom": ADMIN_HOST}
    return container(
        "runtime", plan.image, roles.runtime(plan, spec), memory=plan.memory, cpu=plan.cpu,
        workingDir=plan.folder, env=[*variables(roles.runtime_environment(plan)), host],
        startupProbe=probe(periodSeconds=5, failureThreshold=60), readinessProbe=probe(periodSeconds=15),
        livenessProbe=probe(periodSeconds=30, failureThreshold=3), lifecycle=_before_stop(roles.await_sidecar(plan)),
        volumeMounts=[TMP, {"name": "run", "mountPath": roles.RUN}],
    )  # fmt: skip


def _waiting(place: Place) -> Object:
    """Roles refuse an old schema; this container waits for the migration instead."""
    return container(
        "migrated", place.plan.image, roles.waiting(), memory="128Mi", cpu="50m",
        envFrom=place.shared(), env=place.urls(), volumeMounts=[TMP],
    )  # fmt: skip


def _service(place: Place, name: str, port: Object, **more: bool | str) -> Object:
    body = {**more, "selector": place.labels("gateway"), "ports": [port]}
    return {**place.head(("v1", "Service"), name, "gateway"), "spec": body}


def _changes(place: Place, *texts: str) -> str:
    environment = place.plan.environment()
    return digest(*(f"{name}={environment[name]}" for name in sorted(environment)), *texts)


def _actor_admin() -> list[Object]:
    own = {"name": "GROUNDPLANE_ACTOR_ADMIN_HOST", "valueFrom": ADMIN_HOST}
    return [own, *variables({"GROUNDPLANE_ACTOR_ADMIN_PORT": str(ADMIN_PORT)})]


def _admin_ports() -> list[Object]:
    return [{"name": "admin", "containerPort": ADMIN_PORT}]


def _before_stop(command: list[str]) -> Object:
    return {"preStop": {"exec": {"command": command}}}
