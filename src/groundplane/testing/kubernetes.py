"""A cluster's API for tests, without kubectl: definitions are installed, manifests are tried in a server-side dry run.

    cluster = Cluster(kubernetes_server.url)
    cluster.install_crds(keda_crds())
    assert cluster.dry_run(manifests) == []

Only the standard library is needed; PyYAML where manifests come as text or files. Methods block.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from groundplane.core.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from groundplane.testing.go_modules import fetched

KEDA = ("github.com/kedacore/keda/v2", "v2.21.0")
FIELD_OWNER = "groundplane-tests"
Manifest = Mapping[str, Any]


def keda_crds() -> Path:
    """The folder of KEDA's own resource definitions. Errors as `groundplane.testing.go_modules.fetched`."""
    return fetched(*KEDA, "config/crd/bases")


def load(*sources: str | Path) -> list[Manifest]:
    """Manifests out of YAML texts, files, and folders of `*.yaml`, `*.yml` and `*.json`; lists are unfolded."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # KEDA's definitions are large
    found: list[Manifest] = []
    for text in _texts(sources):
        try:
            documents = [one for one in yaml.load_all(text, loader) if one]
        except yaml.YAMLError as error:
            raise InvalidArgument(f"manifests: no YAML: {error}") from error
        for one in documents:
            found += one["items"] if isinstance(one, dict) and one.get("kind") == "List" else [one]
    return found


def _texts(sources: Iterable[str | Path]) -> Iterator[str]:
    for source in sources:
        if isinstance(source, str):
            yield source
        elif source.is_dir():
            yield from (
                p.read_text("utf-8") for p in sorted(source.iterdir()) if p.suffix in (".yaml", ".yml", ".json")
            )
        else:
            yield source.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Resource:
    """Where the API keeps one kind of object."""

    version: str
    """Group and version, as in `apiVersion`."""
    kind: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None, name: str = "") -> str:
        root = f"/apis/{self.version}" if "/" in self.version else f"/api/{self.version}"
        within = f"/namespaces/{quote(namespace)}" if self.namespaced and namespace else ""
        return f"{root}{within}/{self.plural}" + (f"/{quote(name)}" if name else "")


class Cluster:
    """One API server, by `https://USER:TOKEN@HOST:PORT/?ca=FILE`: the token is sent as a bearer token, the file holds
    the authority that its certificate is checked against (the system's where it is not given).
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise InvalidArgument(f"url: {_hidden(url)!r} is not https://USER:TOKEN@HOST:PORT/?ca=FILE")
        self._host, self._port = parts.hostname, parts.port or 443
        self._token = unquote(parts.password or "")
        self._authority = parse_qs(parts.query).get("ca", [None])[0]

    def __repr__(self) -> str:
        return f"<Cluster {self._host}:{self._port}>"

    def request(
        self, method: str, path: str, body: object = None, *, kind: str = "application/json", timeout_s: float = 30.0
    ) -> tuple[int, bytes]:
        """One request; status and body. Raises `Unavailable` where there is no answer."""
        connection = HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._trust)
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json", "Content-Type": kind}
        sent = body if isinstance(body, str | bytes | None) else json.dumps(body)
        try:
            connection.request(method, path, body=sent, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, HTTPException) as error:
            raise Unavailable(f"{method} https://{self._host}:{self._port}{path}: {error!r}") from error
        finally:
            connection.close()

    def get(self, path: str) -> dict[str, Any]:
        """What is at a path. Raises `FailedPrecondition` with the server's words where it refuses."""
        status, body = self.request("GET", path)
        if status != 200:
            raise FailedPrecondition(f"GET {path}: {status}: {_message(body)}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def apply(self, *manifests: Manifest, namespace: str = "default", dry_run: bool = False) -> list[str]:
        """Server-side apply, in order; what the server refused, one line each (`Deployment web: …`). Fields that it
        does not know are refused, not dropped. Without a namespace of its own an object goes into `namespace`.
        """
        found = [self._apply(one, namespace, dry_run) for one in manifests]
        return [error for error in found if error]

    def dry_run(self, manifests: Iterable[Manifest] | str | Path, *, namespace: str = "default") -> list[str]:
        """What the server would refuse of these; nothing is stored, but for the namespaces that they use: no server
        takes a dry run into a namespace that does not exist.

        Schemas, defaults, validation and admission are the server's own. Objects do not see each other: two of one name
        are no error here.
        """
        listed = load(manifests) if isinstance(manifests, str | Path) else list(manifests)
        refused = self.apply(*_namespaces(listed, namespace))
        return refused or self.apply(*listed, namespace=namespace, dry_run=True)

    def install_crds(self, *sources: str | Path, timeout_s: float = 30.0) -> list[str]:
        """Install resource definitions out of files or folders, whose other objects are left out; their names, once
        the server serves each of them. `FailedPrecondition` where it refuses one, `DeadlineExceeded` where it does not
        serve it in time.
        """
        found = [one for one in load(*sources) if one.get("kind") == "CustomResourceDefinition"]
        if not found:
            raise InvalidArgument(f"sources: no CustomResourceDefinition in {[str(one)[:80] for one in sources]!r}")
        refused = self.apply(*found)
        if refused:
            raise FailedPrecondition("install_crds: the server refused " + "; ".join(refused))
        deadline = time.monotonic() + timeout_s
        names = [str(one["metadata"]["name"]) for one in found]
        for one in found:
            self._wait_served(one, deadline)
        return names

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self._authority)
        except OSError as error:
            raise Unavailable(f"ca: {self._authority!r} cannot be read: {error}") from error

    def _apply(self, manifest: Manifest, namespace: str, dry_run: bool) -> str:
        label = _label(manifest)
        name = (manifest.get("metadata") or {}).get("name")
        if not name:
            return f"{label}: metadata.name is missing"
        try:
            resource = self._resource(manifest)
        except FailedPrecondition as error:
            return f"{label}: {error.message}"
        within = (manifest.get("metadata") or {}).get("namespace") or namespace
        words = {"fieldManager": FIELD_OWNER, "force": "true", "fieldValidation": "Strict"}
        query = urlencode({**words, **({"dryRun": "All"} if dry_run else {})})
        path = f"{resource.path(within, name)}?{query}"
        status, body = self.request("PATCH", path, manifest, kind="application/apply-patch+yaml")
        return "" if status in (200, 201) else f"{label}: {_message(body)}"

    def _resource(self, manifest: Manifest) -> Resource:
        version, kind = str(manifest.get("apiVersion", "")), str(manifest.get("kind", ""))
        if not version or not kind:
            raise FailedPrecondition("apiVersion and kind are needed")
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        status, body = self.request("GET", root)
        listed = json.loads(body).get("resources", []) if status == 200 else []
        for one in listed:
            if one["kind"] == kind and "/" not in one["name"]:
                return Resource(version, kind, one["name"], one["namespaced"])
        raise FailedPrecondition(f"apiVersion: {version!r} has no kind {kind!r} on this server")

    def _wait_served(self, definition: Manifest, deadline: float) -> None:
        name, spec = definition["metadata"]["name"], definition["spec"]
        served = [one["name"] for one in spec["versions"] if one.get("served")]
        while True:
            state = self.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
            conditions = {c["type"]: c["status"] for c in (state.get("status") or {}).get("conditions") or ()}
            if conditions.get("Established") == "True" and all(self._serves(spec, one) for one in served):
                return
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"install_crds: {name} is not served yet; conditions: {conditions!r}")
            time.sleep(0.02)

    def _serves(self, spec: Mapping[str, Any], version: str) -> bool:
        status, body = self.request("GET", f"/apis/{spec['group']}/{version}")
        return status == 200 and any(
            one["name"] == spec["names"]["plural"] for one in json.loads(body).get("resources", ())
        )


def _namespaces(manifests: Iterable[Manifest], default: str) -> list[Manifest]:
    used = {default, *((one.get("metadata") or {}).get("namespace") or default for one in manifests)}
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in sorted(used)]


def _label(manifest: Manifest) -> str:
    metadata = manifest.get("metadata") or {}
    within = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{manifest.get('kind', 'object')} {within}{metadata.get('name', '?')}"


def _message(body: bytes) -> str:
    """The words of a `Status`; the body itself where it is none."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:500].decode(errors="replace")


def _hidden(url: str) -> str:
    parts = urlsplit(url)
    return url.replace(parts.password, "***") if parts.password else url
