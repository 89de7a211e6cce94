"""Pieces of Kubernetes' objects that several of them have: metadata, pods, containers, probes, references."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from groundplane.deploy.names import object_name
from groundplane.deploy.plan import USER, Plan

Object = dict[str, Any]

TMP: Object = {"name": "tmp", "mountPath": "/tmp"}
ADMIN_HOST = {"fieldRef": {"fieldPath": "status.podIP"}}
"""The admin port is bound to the address of the pod, whatever its family is."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the objects of a plan go, and what they refer to: the secret of URLs."""

    plan: Plan
    namespace: str
    urls_secret: str
    keda: bool = True

    def name(self, *parts: str) -> str:
        """The name of an object of this plane."""
        return object_name(self.plan.name, *parts)

    def labels(self, component: str, actor: str | None = None) -> dict[str, str]:
        """What selects the pods of one component."""
        labels = {
            "app.kubernetes.io/name": "groundplane",
            "app.kubernetes.io/instance": self.name(),
            "app.kubernetes.io/component": component,
        }
        return {**labels, "groundplane/actor": self.name("actor", actor)} if actor is not None else labels

    def head(self, kind: tuple[str, str], name: str, component: str, actor: str | None = None) -> Object:
        """`apiVersion`, `kind` and `metadata`; an actor's own name is an annotation."""
        metadata: Object = {"name": name, "namespace": self.namespace, "labels": self.labels(component, actor)}
        if actor is not None:
            metadata["annotations"] = {"groundplane/plane": self.plan.name, "groundplane/actor": actor}
        return {"apiVersion": kind[0], "kind": kind[1], "metadata": metadata}

    def urls(self) -> list[Object]:
        """The URLs as variables, each by its key in the secret."""
        return [
            {"name": variable, "valueFrom": {"secretKeyRef": {"name": self.urls_secret, "key": variable}}}
            for variable in self.plan.secrets
        ] + [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": self.urls_secret, "key": name, "optional": True}}}
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
            if self.plan.settings.blobs.scheme == "s3"
        ]

    def shared(self) -> list[Object]:
        """The settings that all roles share."""
        return [{"configMapRef": {"name": self.name("settings")}}]


def container(name: str, image: str, command: Sequence[str] | None, *, memory: str, cpu: str, **more: Any) -> Object:
    """A container without privileges on a file system that is not written. It requests `memory`, and may take
    `memory_max`, else no more than it requests.
    """
    found: Object = {"name": name, "image": image}
    if command is not None:
        found["command"] = list(command)
    memory_max = more.pop("memory_max", memory)
    found |= {key: value for key, value in more.items() if value}
    found["resources"] = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory_max}}
    found["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return found


def variables(values: Mapping[str, str]) -> list[Object]:
    """Plain variables."""
    return [{"name": name, "value": value} for name, value in values.items()]


def pod(containers: Sequence[Object], volumes: Sequence[Object], *, stop_s: int | None, **more: Any) -> Object:
    """A pod that runs as a user without rights and knows no token of the cluster."""
    found: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if stop_s is not None:
        found["terminationGracePeriodSeconds"] = stop_s
    found |= {key: value for key, value in more.items() if value}
    return {**found, "containers": list(containers), "volumes": [{"name": "tmp", "emptyDir": {}}, *volumes]}


def deployment(
    place: Place, name: str, component: str, spec: Object, *, actor: str | None = None, **more: Any
) -> Object:
    """A Deployment. Without `replicas` their number is somebody else's (an autoscaler's)."""
    labels = place.labels(component, actor)
    template = {"metadata": {"labels": labels, "annotations": more.pop("annotations", {})}, "spec": spec}
    replicas = {"replicas": more["replicas"]} if more.get("replicas") is not None else {}
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    body = {**replicas, "strategy": surge, "selector": {"matchLabels": labels}, "template": template}
    return {**place.head(("apps/v1", "Deployment"), name, component, actor), "spec": body}


def disruption_budget(place: Place, name: str, component: str, actor: str | None = None) -> Object:
    """Never more than one pod is taken away at a time."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": place.labels(component, actor)}}
    return {**place.head(("policy/v1", "PodDisruptionBudget"), name, component, actor), "spec": spec}


def admin_probes(port: int) -> Object:
    """Start, life and readiness by the admin port of a container. It starts within a minute; a loop that is stuck for
    half a minute does not answer, and the container is started again. Readiness is asked often enough that it is seen
    to be red within `DRAIN_DELAY_S`.
    """

    def ask(path: str, **more: int) -> Object:
        return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": 5, **more}

    return {
        "startupProbe": ask("/startupz", periodSeconds=2, failureThreshold=30),
        "livenessProbe": ask("/livez", periodSeconds=10, failureThreshold=3),
        "readinessProbe": ask("/readyz", periodSeconds=2, failureThreshold=2),
    }


def digest(*texts: str) -> str:
    """Changes when one of the texts does: pods are replaced when their configuration changes."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
