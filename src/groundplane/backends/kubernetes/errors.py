"""What an API server answers, and what keeps it from answering, as errors of ours: by reason and HTTP status."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import msgspec

from groundplane.backends.kubernetes.address import KubernetesAddress
from groundplane.core.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    GroundplaneError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)

VERSION_EXPIRED = "version_expired"
_RBAC = (
    "give its user or service account a Role that allows verbs list and watch on endpointslices of the group "
    "discovery.k8s.io, and a RoleBinding"
)
_LOGIN = "mend the token or certificate in the URL, the kubeconfig or the pod's service account"

_Row = tuple[type[Any], str, str]
_BY_REASON: dict[str, _Row] = {
    "Unauthorized": (PermissionDenied, "cluster_login_refused", _LOGIN),
    "Forbidden": (PermissionDenied, "cluster_access_refused", _RBAC),
    "NotFound": (NotFound, "", "mend the namespace, or use Kubernetes 1.21 or newer"),
    "AlreadyExists": (AlreadyExists, "", "it is there already"),
    "Conflict": (Conflict, "", "read it again"),
    "Gone": (FailedPrecondition, VERSION_EXPIRED, "list again"),
    "Expired": (FailedPrecondition, VERSION_EXPIRED, "list again"),
    "Invalid": (InvalidArgument, "", "mend what was sent"),
    "BadRequest": (InvalidArgument, "", "mend the selector in the URL"),
    "RequestEntityTooLarge": (InvalidArgument, "payload_too_large", "send less"),
    "MethodNotAllowed": (Unsupported, "", "this server cannot do it"),
    "NotAcceptable": (Unsupported, "", "this server cannot do it"),
    "UnsupportedMediaType": (Unsupported, "", "this server cannot do it"),
    "TooManyRequests": (ResourceExhausted, "cluster_busy", "try again later"),
    "ServerTimeout": (Unavailable, "cluster_error", "try again"),
    "Timeout": (Unavailable, "cluster_error", "try again"),
    "ServiceUnavailable": (Unavailable, "cluster_error", "look at the API server and its etcd"),
    "InternalError": (Unavailable, "cluster_error", "look at the API server's log"),
}  # fmt: skip
_BY_STATUS: dict[int, str] = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
    406: "NotAcceptable", 409: "Conflict", 410: "Gone", 413: "RequestEntityTooLarge", 415: "UnsupportedMediaType",
    422: "Invalid", 429: "TooManyRequests", 503: "ServiceUnavailable", 504: "Timeout",
}  # fmt: skip


class Status(msgspec.Struct, frozen=True):
    """The part of Kubernetes' `Status` that is looked at."""

    code: int = 0
    reason: str = ""
    message: str = ""


def extra_missing() -> FailedPrecondition:
    """What to raise where lightkube cannot be imported."""
    return FailedPrecondition(
        "services: kubernetes:// needs the packages of the extra kubernetes; pip install 'groundplane[kubernetes]'",
        reason="missing_extra",
    )


def refused(http: int, body: bytes, doing: str, address: KubernetesAddress) -> GroundplaneError:
    """The error of an answer that is no success: by the reason of its `Status`, else by its HTTP status."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a proxy's page
        status = Status()
    return of_status(Status(status.code or http, status.reason, status.message), doing, address)


def of_status(status: Status, doing: str, address: KubernetesAddress) -> GroundplaneError:
    """The error of a `Status`, also of one in a watch."""
    row = _BY_REASON.get(status.reason) or _BY_REASON.get(_BY_STATUS.get(status.code, ""))
    said = f"{status.code} {status.reason}".strip() + (f": {status.message}" if status.message else "")
    details = {"status": status.code, "reason": status.reason}
    if row is None and status.code >= 500:
        row = _BY_REASON["InternalError"]
    if row is None:
        return FailedPrecondition(f"{doing} at {address.shown} was refused ({said})", details=details)
    kind, reason, remedy = row
    made: GroundplaneError = kind(
        f"{doing} at {address.shown} failed ({said}); {remedy}", reason=reason, details=details
    )
    return made


def unanswered(error: BaseException, doing: str, address: KubernetesAddress) -> GroundplaneError:
    """The error of a request that got no whole answer: no connection, no trust, silence, or no API server at all."""
    import httpx2

    untrusted = next((one for one in _chain(error) if isinstance(one, ssl.SSLError)), None)
    if isinstance(untrusted, ssl.SSLCertVerificationError):
        why = getattr(untrusted, "verify_message", "") or untrusted
        return FailedPrecondition(
            f"{doing}: the certificate of {address.shown} is not trusted: {why}; mend ca or the host",
            reason="tls_failed",
        )
    if isinstance(error, httpx2.ConnectError) and untrusted is not None:
        why = getattr(untrusted, "reason", "") or untrusted
        return FailedPrecondition(
            f"{doing}: no TLS with {address.shown}: {why}; mend the port, or the certificate of the user",
            reason="tls_failed",
        )
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return Unavailable(
            f"{doing}: {address.shown} takes no connection; start the API server, or mend host and port",
            reason="cluster_unreachable",
        )
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return Unavailable(
            f"{doing}: {address.shown} does not answer; look at its load and the network", reason="cluster_silent"
        )
    if isinstance(error, httpx2.TransportError):
        return Unavailable(
            f"{doing}: the connection to {address.shown} broke ({type(error).__name__})", reason="connection_lost"
        )
    return Unavailable(
        f"{doing}: what {address.shown} answers is not what an API server answers ({error}); mend host and port",
        reason="cluster_error",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
