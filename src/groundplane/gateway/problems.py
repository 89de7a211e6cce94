"""Errors over HTTP: RFC 9457 problem details with our code, reason and details beside the members of the RFC."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from groundplane.core.errors import ErrorRecord, GroundplaneError, from_record

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
_ENCODER = msgspec.json.Encoder(enc_hook=repr)

STATUS_OF_CODE: dict[str, int] = {
    "invalid_argument": 422,
    "not_found": 404,
    "already_exists": 409,
    "conflict": 409,
    "failed_precondition": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "deadline_exceeded": 503,
    "unavailable": 503,
    "unsupported": 501,
    "closed": 503,
    "internal": 500,
}
STATUS_OF_REASON: dict[str, int] = {"msg_parsing_error": 400, "payload_too_large": 413, "disk_full": 503}
CODE_OF_STATUS: dict[int, str] = {
    400: "invalid_argument",
    401: "permission_denied",
    403: "permission_denied",
    404: "not_found",
    405: "unsupported",
    406: "unsupported",
    409: "conflict",
    410: "failed_precondition",
    413: "invalid_argument",
    415: "invalid_argument",
    421: "permission_denied",
    422: "invalid_argument",
    429: "resource_exhausted",
    431: "invalid_argument",
    500: "internal",
    501: "unsupported",
    503: "unavailable",
}


class HTTPProblem(Exception):
    """Answer with this status. What `GroundplaneError` cannot say: 401, 405, 410, 415, 431 and their headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.details = dict(details or {})
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The problem as a response."""
        code = CODE_OF_STATUS.get(self.status, "internal")
        return problem(self.status, code, self.message, self.reason, self.details, self.headers)


def of_error(error: GroundplaneError) -> Response:
    """The response for an error of ours. What is internal is not told: its text may hold what is not the caller's."""
    status = STATUS_OF_REASON.get(error.reason) or STATUS_OF_CODE[error.code]
    if error.code == "internal":
        return unexpected()
    return problem(status, error.code, error.message, error.reason, error.details)


def unexpected() -> Response:
    """A fault of ours: nothing of the exception is told; the log has it."""
    return problem(500, "internal", "the gateway failed; its log says why", "", {})


def problem(
    status: int,
    code: str,
    message: str,
    reason: str,
    details: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document. `type` is an id of the reason or code; 429 and 503 tell when to come back."""
    body = {
        "type": f"urn:groundplane:error:{reason or code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "code": code,
        "reason": reason,
        "details": dict(details),
    }
    extra = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else {}
    return Response(
        _ENCODER.encode(body), status, {**extra, **(headers or {}), "Cache-Control": "no-store"}, MEDIA_TYPE
    )


def to_error(status: int, document: Any) -> GroundplaneError:
    """The error that a problem document describes; the reverse of the above, for clients."""
    found = document if isinstance(document, dict) else {}
    code = found.get("code")
    record = ErrorRecord(
        code=code if isinstance(code, str) else CODE_OF_STATUS.get(status, "internal"),
        message=str(found.get("detail") or f"the gateway answered {status}"),
        reason=str(found.get("reason") or ""),
        details={**_mapping(found.get("details")), "status": status},
        retryable=status in (429, 503),
    )
    return from_record(record)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
