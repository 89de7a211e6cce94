"""Services of Kubernetes as a source of instances: a service is a Service, an instance an endpoint of its slices.

Address: `kubernetes://` (the pod's cluster, else a kubeconfig), `kubernetes:///NAMESPACE?kubeconfig=FILE&context=NAME`,
`kubernetes://USER:TOKEN@HOST:PORT/NAMESPACE?ca=FILE`.
Guarantee: a lookup is answered by the API server, never from memory. A watch goes on over lost connections, ended
watches and compacted versions; after a compaction what changed meanwhile is told once, as it is now.
Needs: the verbs list and watch on endpointslices of discovery.k8s.io in the namespace.
Limits: one namespace; names of Services; 50,000 slices.
Cannot: register (pods do that by being ready), heartbeats, STANDBY.
Escape hatch: `source.native` is the logged-in HTTP client.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from groundplane.backends.kubernetes import parse_url
from groundplane.backends.kubernetes.client import ApiServer
from groundplane.core.errors import InvalidArgument
from groundplane.services.drivers.kubernetes_instances import merged
from groundplane.services.drivers.kubernetes_watch import Watch, WatchStatistics
from groundplane.services.port import Instance, InstanceChange, InstanceSource

_SERVICE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NOBODY = "groundplane-check"


class KubernetesInstances:
    """See the module. Made by `open_source`."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._watches: set[Watch] = set()
        self._ended = WatchStatistics()

    @property
    def name(self) -> str:
        """`kubernetes`."""
        return "kubernetes"

    @property
    def native(self) -> Any:
        """The HTTP client, logged in, with the API server as its base URL."""
        return self._server.native

    @property
    def requests(self) -> int:
        """How many requests were sent to the API server."""
        return self._server.requests

    def __repr__(self) -> str:
        return f"<KubernetesInstances {self._server.address.shown}>"

    async def check(self) -> None:
        """Prove that slices may be listed and watched. Raises what keeps it from that."""
        listed = await self._server.slices(_NOBODY)
        async with self._server.watch(listed.version, _NOBODY):
            pass

    async def services(self) -> list[str]:
        """See the port."""
        return sorted({one.service_name for one in await self.instances()})

    async def instances(self, service: str | None = None) -> list[Instance]:
        """See the port. A service that does not exist has no instances."""
        listed = await self._server.slices(_checked(service))
        return sorted(merged(listed.slices).values(), key=lambda one: (one.service_name, one.instance_id))

    @asynccontextmanager
    async def watch(self, service: str | None = None) -> AsyncIterator[AsyncIterator[InstanceChange]]:
        """See the port. Lost connections are made again with jittered backoff for as long as it takes; it ends only
        where the cluster refuses it (`permission_denied`, `invalid_argument`, `failed_precondition`).
        """
        watch = Watch(self._server, _checked(service))
        self._watches.add(watch)
        try:
            await watch.begin()
            yield watch
        finally:
            await watch.aclose()
            self._watches.discard(watch)
            self._ended = self._ended.plus(watch.statistics)

    def flowing(self) -> bool:
        """Whether every open watch is connected now; also true where none is open."""
        return all(one.flowing for one in self._watches)

    def statistics(self) -> WatchStatistics:
        """What the watches of this source did since it was opened."""
        total = self._ended
        for one in self._watches:
            total = total.plus(one.statistics)
        return total


def _checked(service: str | None) -> str | None:
    if service is not None and not _SERVICE.fullmatch(service):
        raise InvalidArgument(
            f"service: {service!r} is no name of a Kubernetes Service; use 1 to 63 of a-z, 0-9 and '-'"
        )
    return service


@asynccontextmanager
async def open_source(url: str) -> AsyncIterator[KubernetesInstances]:
    """Find the cluster, log in and prove that slices may be listed and watched.

    `invalid_argument` for a bad URL, `failed_precondition` without a usable configuration, `permission_denied` for a
    login that is refused or may not do both, `unavailable` where nothing answers.
    """
    async with ApiServer.open(parse_url("services", url)) as server:
        source = KubernetesInstances(server)
        await source.check()
        yield source


_: type[InstanceSource] = KubernetesInstances
