"""A namespace of its own in a cluster of the tests, in which the test plays the part of the controllers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from groundplane.services.port import Instance, InstanceChange, InstanceSource
from groundplane.testing import eventually
from groundplane.testing.kubernetes import Cluster
from groundplane.testing.servers.contract import Running

_SLICES = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"


def pod(name: str, address: str, **conditions: bool) -> dict[str, Any]:
    """An endpoint with a pod behind it, ready unless `conditions` say otherwise."""
    target = {"kind": "Pod", "name": name, "uid": f"uid-{name}"}
    return {"addresses": [address], "targetRef": target, "conditions": {"ready": True, **conditions}}


def pods(count: int, *, of: str = "pod", first: int = 1) -> list[dict[str, Any]]:
    """Ready endpoints `pod-1`, `pod-2`, …"""
    return [pod(f"{of}-{n}", f"10.1.{n // 250}.{n % 250 + 1}") for n in range(first, first + count)]


class Lab:
    """The namespace, and who writes to it. Made by `lab_in`."""

    def __init__(self, server: Running, namespace: str) -> None:
        self.server = server
        self.namespace = namespace
        self.cluster = Cluster(server.url)

    def url(self, through: str | None = None, **options: object) -> str:
        """The URL of a source in this namespace, with the user that may do everything."""
        parts = urlsplit(through or self.server.url)
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"kubernetes://{parts.netloc}/{self.namespace}?{parts.query}{more}"

    def url_as(self, token: str) -> str:
        """The same for whoever has the token."""
        parts = urlsplit(self.server.url)
        return f"kubernetes://somebody:{token}@127.0.0.1:{parts.port}/{self.namespace}?{parts.query}"

    def kubeconfig(self, *, context: str) -> str:
        """The server's own file with one context more, that of this namespace."""
        known = json.loads(Path(self.server.urls["KUBECONFIG"]).read_text())
        first = known["contexts"][0]["context"]
        known["contexts"].append({"name": context, "context": {**first, "namespace": self.namespace}})
        return json.dumps(known)

    async def put(
        self,
        service: str,
        endpoints: Sequence[dict[str, Any]],
        *,
        name: str | None = None,
        family: str = "IPv4",
        ports: dict[str, int] | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        """Write a slice of the service, named like it where nothing else is said, as the server keeps it."""
        labels = {"kubernetes.io/service-name": service, **(labels or {})}
        listed = [{"name": key, "port": port, "protocol": "TCP"} for key, port in (ports or {"http": 8080}).items()]
        await self.apply({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": name or service, "labels": labels}, "endpoints": list(endpoints), "ports": listed,
        })  # fmt: skip

    async def remove(self, name: str) -> None:
        """Delete a slice."""
        await self._ask("DELETE", f"{_SLICES.format(self.namespace)}/{name}")

    async def apply(self, *manifests: dict[str, Any]) -> None:
        """Write objects."""
        refused = await asyncio.to_thread(self.cluster.apply, *manifests, namespace=self.namespace)
        assert refused == []

    async def token(self, account: str) -> str:
        """A token of a service account, which is made where it is not there. It may do nothing yet."""
        await self.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}})
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        answer = json.loads(await self._ask("POST", path, request))
        return str(answer["status"]["token"])

    async def allow(self, account: str, *verbs: str) -> None:
        """Let the account do this with slices of the namespace, and nothing else."""
        rbac = "rbac.authorization.k8s.io"
        rule = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": list(verbs)}
        subject = {"kind": "ServiceAccount", "name": account, "namespace": self.namespace}
        role = {"apiGroup": rbac, "kind": "Role", "name": account}
        await self.apply(
            {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": account}, "rules": [rule]},
            {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": {"name": account}, "roleRef": role,
             "subjects": [subject]},
        )  # fmt: skip

    async def compact(self) -> int:
        """Throw the history of the cluster's state away, in etcd: all revisions before the one that is returned."""

        def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
            url = f"http://127.0.0.1:{self.server.ports['etcd']}{path}"
            with urlopen(Request(url, json.dumps(body).encode(), method="POST"), timeout=10) as answer:
                found: dict[str, Any] = json.load(answer)
                return found

        found = await asyncio.to_thread(ask, "/v3/kv/range", {"key": "AA==", "limit": 1})
        revision = int(found["header"]["revision"])
        await asyncio.to_thread(ask, "/v3/kv/compaction", {"revision": revision, "physical": True})
        return revision

    async def _ask(self, method: str, path: str, body: object = None) -> bytes:
        status, answer = await asyncio.to_thread(self.cluster.request, method, path, body)
        assert status in (200, 201), answer
        return answer


@asynccontextmanager
async def lab_in(server: Running, namespace: str) -> AsyncIterator[Lab]:
    """A namespace of the test's own. It stays: nobody but a controller could remove it."""
    lab = Lab(server, namespace)
    await lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    yield lab


class Seen:
    """What a watch has told so far."""

    def __init__(self) -> None:
        self.changes: list[InstanceChange] = []
        self.instances: dict[tuple[str, str], Instance] = {}
        self.synced = False
        self.error: BaseException | None = None

    def names(self, service: str) -> list[str]:
        """The ids of the instances of a service that are there now."""
        return sorted(instance for of, instance in self.instances if of == service)

    def take(self, change: InstanceChange) -> None:
        self.changes.append(change)
        if change.kind == "synced":
            self.synced = True
        elif change.instance is not None:
            self.instances[change.service_name, change.instance_id] = change.instance
        else:
            del self.instances[change.service_name, change.instance_id]  # what never was there is never gone


@asynccontextmanager
async def watched(source: InstanceSource, service: str | None = None) -> AsyncIterator[Seen]:
    """Follow a source beside the block, which is entered when everything that is there was told."""
    seen = Seen()

    async def follow() -> None:
        try:
            async with source.watch(service) as changes:
                async for change in changes:
                    seen.take(change)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            seen.error = error

    task = asyncio.create_task(follow())
    try:
        await eventually(lambda: seen.synced or task.done(), "the watch is synced")
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
