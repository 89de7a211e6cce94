"""From EndpointSlices to instances: pure functions, so that what a slice means is decided in one place.

After https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/: slices of one service must be merged, an
endpoint may be in two of them for a moment, an absent `ready` or `serving` means yes, an absent `terminating` no.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from groundplane.backends.kubernetes.slices import Conditions, Endpoint, Slice
from groundplane.services.port import Instance, Status

VERSION_LABEL = "app.kubernetes.io/version"
_ORDER = (Status.ACTIVE, Status.UNHEALTHY, Status.SHUTDOWN)


class Key(NamedTuple):
    """Which instance: a service's name and the instance's."""

    service: str
    instance: str


class _Seen(NamedTuple):
    """An endpoint in one slice."""

    slice: Slice
    endpoint: Endpoint
    status: Status

    @property
    def uid(self) -> str:
        target = self.endpoint.target_ref
        return target.uid if target is not None else ""


def merged(slices: Iterable[Slice]) -> dict[Key, Instance]:
    """The instances of all services in the slices. One pod is one instance, however many slices name it: for IPv4 and
    for IPv6, or while it moves from one to another.
    """
    seen: dict[Key, list[_Seen]] = {}
    for one in sorted(slices, key=lambda one: one.metadata.name):
        for endpoint in one.endpoints or ():
            if one.service and endpoint.addresses:
                found = _Seen(one, endpoint, _status(endpoint.conditions or Conditions()))
                seen.setdefault(Key(one.service, _instance_id(endpoint)), []).append(found)
    return {key: _instance(key, found) for key, found in seen.items()}


def _instance_id(endpoint: Endpoint) -> str:
    """The pod's name; the address where no object stands behind the endpoint."""
    target = endpoint.target_ref
    return target.name if target is not None and target.name else endpoint.addresses[0]


def _status(conditions: Conditions) -> Status:
    if conditions.terminating:
        return Status.SHUTDOWN
    return Status.UNHEALTHY if conditions.ready is False else Status.ACTIVE


def _instance(key: Key, found: list[_Seen]) -> Instance:
    """The best status that a slice tells; addresses and ports of all slices that mean the same pod."""
    best = min(found, key=lambda one: _ORDER.index(one.status))
    same = [one for one in found if one.uid == best.uid]
    addresses = list(dict.fromkeys(one.endpoint.addresses[0] for one in same))
    ports: dict[str, int] = {}
    for one in reversed([best, *same]):
        ports |= {port.name or "": port.port for port in one.slice.ports or () if port.port is not None}
    conditions = best.endpoint.conditions or Conditions()
    metadata: dict[str, Any] = {
        "address": best.endpoint.addresses[0],
        "addresses": addresses,
        "ports": dict(sorted(ports.items())),
        "ready": conditions.ready is not False,
        "serving": conditions.serving is not False,
        "terminating": bool(conditions.terminating),
    }
    target = best.endpoint.target_ref
    more = {
        "zone": best.endpoint.zone,
        "node": best.endpoint.node_name,
        "hostname": best.endpoint.hostname,
        "kind": target.kind if target is not None else None,
        "uid": best.uid,
    }
    return Instance(
        service_name=key.service,
        instance_id=key.instance,
        version=(best.slice.metadata.labels or {}).get(VERSION_LABEL, ""),
        status=best.status,
        metadata=metadata | {name: value for name, value in more.items() if value},
    )


class View:
    """The slices that a watch knows, and what follows from them. Changes give the services that they touch."""

    def __init__(self) -> None:
        self._slices: dict[str, Slice] = {}
        self._by_service: dict[str, set[str]] = {}
        self._known: dict[str, dict[Key, Instance]] = {}

    def replace(self, slices: Iterable[Slice]) -> list[tuple[Key, Instance | None]]:
        """All of them anew, after a list: what is different now, None where an instance is gone."""
        before = set(self._by_service)
        self._slices = {one.metadata.name: one for one in slices}
        self._by_service = {}
        for name, one in self._slices.items():
            self._by_service.setdefault(one.service, set()).add(name)
        return self._different(sorted(before | set(self._by_service)))

    def put(self, one: Slice) -> list[tuple[Key, Instance | None]]:
        """A slice that is new or changed, perhaps given to another service."""
        touched = self._forget(one.metadata.name) | {one.service}
        self._slices[one.metadata.name] = one
        self._by_service.setdefault(one.service, set()).add(one.metadata.name)
        return self._different(sorted(touched))

    def drop(self, name: str) -> list[tuple[Key, Instance | None]]:
        """A slice that is gone."""
        return self._different(sorted(self._forget(name)))

    def _forget(self, name: str) -> set[str]:
        gone = self._slices.pop(name, None)
        if gone is None:
            return set()
        names = self._by_service[gone.service]
        names.discard(name)
        if not names:
            del self._by_service[gone.service]
        return {gone.service}

    def _different(self, services: Iterable[str]) -> list[tuple[Key, Instance | None]]:
        found: list[tuple[Key, Instance | None]] = []
        for service in services:
            before = self._known.pop(service, {})
            now = merged(self._slices[name] for name in self._by_service.get(service, ()))
            if now:
                self._known[service] = now
            found += [(key, one) for key, one in sorted(now.items()) if before.get(key) != one]
            found += [(key, None) for key in sorted(before.keys() - now.keys())]
        return found


__all__ = ["Key", "View", "merged"]
