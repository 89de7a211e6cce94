"""EndpointSlices as they are read from the API: the fields that matter, and nothing that a later version may add.

After https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/ (discovery.k8s.io/v1).
"""

from __future__ import annotations

from typing import Literal

import msgspec

SERVICE_LABEL = "kubernetes.io/service-name"


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    """Who an object is. `resource_version` is opaque: it is given back, never compared."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None


class Conditions(msgspec.Struct, frozen=True):
    """None means what the API says it means: ready and serving unless said otherwise, terminating only if said."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Target(msgspec.Struct, frozen=True):
    """What stands behind an endpoint: mostly a pod."""

    kind: str = ""
    name: str = ""
    uid: str = ""


class Endpoint(msgspec.Struct, frozen=True, rename="camel"):
    """One backend. Of several addresses only the first has a meaning."""

    addresses: list[str]
    conditions: Conditions | None = None
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    target_ref: Target | None = None


class Port(msgspec.Struct, frozen=True):
    """A port of all endpoints of a slice; its name is empty where the service has only one."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class Slice(msgspec.Struct, frozen=True, rename="camel"):
    """Some of the endpoints of one service. A service has one or more slices, and each family of addresses its own."""

    metadata: Meta
    address_type: str = ""
    endpoints: list[Endpoint] | None = None
    ports: list[Port] | None = None

    @property
    def service(self) -> str:
        """The service that it belongs to; empty where it has none."""
        return (self.metadata.labels or {}).get(SERVICE_LABEL, "")


class Listed(msgspec.Struct, frozen=True):
    """All slices at one version of the cluster's state, from which a watch goes on."""

    slices: list[Slice]
    version: str


class Event(msgspec.Struct, frozen=True):
    """One change. A `BOOKMARK` carries a version alone: all changes up to it were sent."""

    kind: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    slice: Slice

    @property
    def version(self) -> str:
        """The version of the cluster's state after it."""
        return self.slice.metadata.resource_version
