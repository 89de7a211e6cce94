"""What a URL says about a cluster: where its API server is, who asks, which namespace, how long to wait.

kubernetes://                                         the pod's own service account, else KUBECONFIG, ~/.kube/config
kubernetes:///NAMESPACE?kubeconfig=FILE&context=NAME
kubernetes://USER:TOKEN@HOST:PORT/NAMESPACE?ca=FILE   an API server and a bearer token; the user's name is not sent
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from groundplane.core.durations import parse_duration
from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.core.secrets import Secret, mask_url

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DURATIONS = {"timeout": 300.0, "connect_timeout": 60.0, "watch_timeout": 3600.0, "backoff": 60.0, "backoff_max": 600.0}
_TEXTS = ("kubeconfig", "context", "ca", "token_file", "service_account", "selector")
_OPTIONS = (*_TEXTS, *_DURATIONS)


class KubernetesAddress(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster and a namespace in it. Without `server` it is the pod's own cluster, or that of a kubeconfig; without
    `namespace` the one that these name. Times in seconds.

    `timeout_s`: for one request. `watch_timeout_s`: how long the server holds one watch before it ends it, so a
    connection that went dead unseen is found within `watch_timeout_s + timeout_s`. `backoff_s`, `backoff_max_s`: the
    waits of a watch that cannot reconnect. `selector`: a label selector; only what it chooses is seen. `token_file` is
    read again when the server refuses the token.
    """

    server: str | None = None
    namespace: str | None = None
    token: Secret | None = None
    token_file: str | None = None
    ca: str | None = None
    kubeconfig: str | None = None
    context: str | None = None
    service_account: str | None = None
    selector: str = ""
    timeout_s: float = 10.0
    connect_timeout_s: float = 3.0
    watch_timeout_s: float = 30.0
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0

    @property
    def shown(self) -> str:
        """For people: where it is, without secrets."""
        where = self.server or self.kubeconfig or ("the pod's cluster" if self.service_account else "the cluster")
        return f"{where} (namespace {self.namespace})" if self.namespace else where

    def __repr__(self) -> str:
        return f"<KubernetesAddress {self.shown}>"


def parse_url(field: str, url: str) -> KubernetesAddress:
    """The cluster that a URL names; `invalid_argument` that begins with `field` for another URL."""
    shown = mask_url(url)
    try:
        parts = urlsplit(url)
        if parts.scheme != "kubernetes":
            raise ValueError("it does not begin with kubernetes://")
        if parts.fragment:
            raise ValueError("it has a '#'; write '%23' in a token")
        given = _query(field, shown, parts.query)
        address = KubernetesAddress(
            server=_server(parts), namespace=_namespace(unquote(parts.path)), token=_token(parts), **_options(given)
        )
        _check(address)
        return address
    except ValueError as error:
        raise InvalidArgument(f"{field}: {shown!r} cannot be used: {error}") from error


def _query(field: str, shown: str, query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise InvalidArgument(
                f"{field}: {shown!r} has the unknown option {name!r}; use {', '.join(_OPTIONS)}"
                f"{did_you_mean(name, _OPTIONS)}"
            )
        if name in given:
            raise ValueError(f"{name} is given twice")
        if not value:
            raise ValueError(f"{name} is empty; leave it out")
        given[name] = value
    return given


def _server(parts: SplitResult) -> str | None:
    if not parts.hostname:
        if parts.netloc:
            raise ValueError("it has a user or a port, and no host")
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"https://{host}:{parts.port or 443}"


def _token(parts: SplitResult) -> Secret | None:
    if parts.username is None:
        return None
    if not parts.password:
        raise ValueError("it has a user without a token; write USER:TOKEN@HOST, or token_file=FILE")
    return Secret(unquote(parts.password))


def _namespace(path: str) -> str | None:
    name = path.strip("/")
    if name and not _LABEL.fullmatch(name):
        raise ValueError(f"{name!r} is not a namespace: 1 to 63 of a-z, 0-9 and '-'; a file is kubeconfig=FILE")
    return name or None


def _options(given: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {name: given[name] for name in _TEXTS if name in given}
    for name, most in _DURATIONS.items():
        if name in given:
            found[f"{name}_s"] = _seconds(name, given[name], most)
    return found


def _seconds(name: str, text: str, most: float) -> float:
    try:
        value = parse_duration(name, text)
    except InvalidArgument as error:
        raise ValueError(error.message) from error
    if value > most:
        raise ValueError(f"{name} is {text!r}, which is more than {most:g} s")
    return value


def _check(address: KubernetesAddress) -> None:
    if address.server is None:
        lone = [name for name in ("token", "token_file", "ca") if getattr(address, name) is not None]
        if lone:
            raise ValueError(f"{lone[0]} needs the host of an API server; a kubeconfig has its own")
    else:
        doubled = [n for n in ("kubeconfig", "context", "service_account") if getattr(address, n) is not None]
        if doubled:
            raise ValueError(f"{doubled[0]} and a host exclude each other; leave out one of them")
        if address.token is not None and address.token_file is not None:
            raise ValueError("token_file is given beside a token; leave out one of them")
    if address.service_account is not None and (address.kubeconfig or address.context):
        raise ValueError("service_account and a kubeconfig exclude each other; leave out one of them")
    if address.watch_timeout_s < 1 or address.watch_timeout_s != int(address.watch_timeout_s):
        raise ValueError(f"watch_timeout is {address.watch_timeout_s:g} s; it must be whole seconds, at least 1")
    if address.backoff_s > address.backoff_max_s:
        raise ValueError("backoff is more than backoff_max")
