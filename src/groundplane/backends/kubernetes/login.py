"""Finding the cluster and logging in: an HTTP client of lightkube's making, for an address. Blocks on files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from groundplane.backends.kubernetes.address import SERVICE_ACCOUNT, KubernetesAddress
from groundplane.backends.kubernetes.errors import extra_missing
from groundplane.core.errors import FailedPrecondition, GroundplaneError

if TYPE_CHECKING:
    import httpx2
    from lightkube.config.kubeconfig import SingleConfig


def log_in(address: KubernetesAddress) -> tuple[httpx2.AsyncClient, KubernetesAddress]:
    """A client with base URL, trust and credentials, and the address with server and namespace filled in.

    `failed_precondition` (reason `cluster_config`) where there is no configuration, or one that cannot be used.
    """
    try:
        import httpx2
        from lightkube.config.client_adapter import AsyncClient, ConnectionParams
    except ImportError as error:
        raise extra_missing() from error
    config = _config(address)
    found = msgspec.structs.replace(
        address, server=config.cluster.server.rstrip("/"), namespace=address.namespace or config.namespace
    )
    timeout = httpx2.Timeout(address.timeout_s, connect=address.connect_timeout_s)
    try:
        return AsyncClient(config, ConnectionParams(timeout=timeout)), found
    except Exception as error:
        raise _unusable(address, error) from error


def _config(address: KubernetesAddress) -> SingleConfig:
    from lightkube.config.models import User

    try:
        config = _found(address)
    except GroundplaneError:
        raise
    except Exception as error:  # YAML, shapes, names of contexts: whatever the file of a user may hold
        raise _unusable(address, error) from error
    return config if config.user is not None else config._replace(user=User())


def _found(address: KubernetesAddress) -> SingleConfig:
    from lightkube.config.kubeconfig import KubeConfig
    from lightkube.config.models import Cluster, User

    if address.server is not None:
        token = address.token.reveal() if address.token is not None else None
        found = KubeConfig.from_one(
            cluster=Cluster(server=address.server, certificate_auth=_absolute(address.ca)),
            user=User(token=token, token_file=address.token_file),
            namespace=address.namespace,
        )
        return _chosen(found, None)
    account = Path(address.service_account or SERVICE_ACCOUNT)
    wants_file = address.kubeconfig is not None or address.context is not None
    if address.service_account is not None or (not wants_file and (account / "token").exists()):
        return _chosen(KubeConfig.from_service_account(account), None)
    return _chosen(KubeConfig.from_file(address.kubeconfig or _kubeconfig()), address.context)


def _chosen(found: object, context: str | None) -> SingleConfig:
    config: SingleConfig | None = found.get(context)  # type: ignore[attr-defined]
    assert config is not None  # without a default it raises instead
    return config


def _kubeconfig() -> str:
    """The first file of KUBECONFIG that is there; kubectl's own place without that variable."""
    listed = [one for one in os.environ.get("KUBECONFIG", "").split(os.pathsep) if one]
    there = [one for one in listed if Path(one).expanduser().is_file()]
    if listed and not there:
        raise FailedPrecondition(
            f"services: KUBECONFIG={os.environ['KUBECONFIG']!r} names no file that is there; mend it, or write "
            "kubernetes:///?kubeconfig=FILE",
            reason="cluster_config",
        )
    return there[0] if there else "~/.kube/config"


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _unusable(address: KubernetesAddress, error: Exception) -> FailedPrecondition:
    from lightkube.core.exceptions import ConfigError

    words = type(error).__name__
    if isinstance(error, ConfigError | OSError | KeyError | msgspec.ValidationError):
        words += f": {error}"
    elif mark := getattr(error, "problem_mark", None):  # YAML's own words quote the file, and with it a token
        words += f" in line {mark.line + 1}"
    return FailedPrecondition(
        f"services: the configuration of {address.shown} cannot be used ({words}); write "
        "kubernetes:///?kubeconfig=FILE&context=NAME, or kubernetes://USER:TOKEN@HOST:PORT/NAMESPACE?ca=FILE",
        reason="cluster_config",
    )
