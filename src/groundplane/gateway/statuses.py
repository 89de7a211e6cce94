"""Which HTTP status stands for which error, both ways. For server and client; needs no web framework."""

from __future__ import annotations

from typing import Any

from groundplane.core.errors import ErrorRecord, GroundplaneError, from_record

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
STATUS_OF_REASON: dict[str, int] = {
    "unauthenticated": 401,
    "msg_parsing_error": 400,
    "payload_too_large": 413,
    "disk_full": 503,
    "server_exhausted": 503,
}
CODE_OF_STATUS: dict[int, str] = {
    400: "invalid_argument",
    401: "permission_denied",
    403: "permission_denied",
    404: "not_found",
    405: "unsupported",
    406: "unsupported",
    408: "deadline_exceeded",
    409: "conflict",
    410: "failed_precondition",
    413: "invalid_argument",
    414: "invalid_argument",
    415: "invalid_argument",
    421: "permission_denied",
    422: "invalid_argument",
    429: "resource_exhausted",
    431: "invalid_argument",
    500: "internal",
    501: "unsupported",
    502: "unavailable",
    503: "unavailable",
    504: "unavailable",
    505: "unsupported",
}
"""502 and 504 are what a proxy says when no gateway answers it."""
PASSING = frozenset({429, 502, 503, 504})
"""Worth another try."""


def to_error(status: int, document: Any) -> GroundplaneError:
    """The error that a problem document describes, for clients; any other answer is judged by its status."""
    found = document if isinstance(document, dict) else {}
    code = found.get("code")
    record = ErrorRecord(
        code=code if isinstance(code, str) else CODE_OF_STATUS.get(status, "internal"),
        message=str(found.get("detail") or f"the gateway answered {status}"),
        reason=str(found.get("reason") or ""),
        details={**_mapping(found.get("details")), "status": status},
        retryable=status in PASSING,
    )
    return from_record(record)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
