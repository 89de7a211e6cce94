"""Errors over HTTP: RFC 9457 problem details with our code, reason and details beside the members of the RFC."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from groundplane.core.errors import GroundplaneError
from groundplane.gateway.statuses import CODE_OF_STATUS, STATUS_OF_CODE, STATUS_OF_REASON

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
_ENCODER = msgspec.json.Encoder(enc_hook=repr)


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
    return problem(status, error.code, error.message, error.reason, error.details, _retry_after(error))


def _retry_after(error: GroundplaneError) -> dict[str, str]:
    """The whole seconds after which the request may pass, where the error knows them."""
    seconds = error.details.get("retry_after_s")
    return {"Retry-After": str(max(1, math.ceil(seconds)))} if isinstance(seconds, int | float) else {}


def unexpected() -> Response:
    """A fault of ours: nothing of the exception is told; the log has it."""
    return problem(500, "internal", "the gateway failed; its log says why", "", {})


async def http_exception(request: Request, error: Exception) -> Response:
    """The answer to what Starlette refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"path: {request.url.path[:200]!r} does not exist; see /openapi.json"
    elif error.status_code == 405:
        message = f"method: {request.method[:20]!r} is not for {request.url.path[:200]!r}; see /openapi.json"
    else:
        message = f"request: {error.detail}"
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    return HTTPProblem(error.status_code, message, headers=headers).response()


async def http_problem(request: Request, error: Exception) -> Response:
    """The answer that a problem is."""
    assert isinstance(error, HTTPProblem)
    return error.response()


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
