"""How the pages ask and change things: by the operations of the REST API, in this process.

A page has no way of its own to a job or a dead letter. It asks for the operation by its name, and everything that a
request over HTTP passes (the check of its arguments, the decision whether this caller may, the audit log) is passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from groundplane.gateway.endpoints import JSON, Endpoint

_ENCODER = msgspec.json.Encoder(enc_hook=str)


class Desk:
    """The operations by their names."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = {one.operation: one for one in endpoints}

    async def ask(
        self,
        request: Request,
        operation: str,
        *,
        path: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What the operation answers to whoever sent `request`. Raises what it raises."""
        endpoint = self._endpoints[operation]
        data = b"" if body is None else _ENCODER.encode(body)
        asked = Request(_scope(request, endpoint, path or {}, query or {}), _once(data))
        answer = await endpoint.call(asked)
        assert isinstance(answer, Response), f"{operation} streams; a page asks what answers at once"
        found: dict[str, Any] = msgspec.json.decode(answer.body)
        return found


def _scope(request: Request, endpoint: Endpoint, path: Mapping[str, str], query: Mapping[str, Any]) -> dict[str, Any]:
    """The request's own, so that its caller stays who it is, for another operation."""
    given = [(name, value) for name, value in query.items() if value not in (None, "", [])]
    return {
        **request.scope,
        "method": endpoint.method,
        "path": endpoint.path.format(**path),
        "path_params": dict(path),
        "query_string": urlencode(given, doseq=True).encode(),
        "headers": [*(one for one in request.scope["headers"] if one[0] not in _OWN), (b"content-type", JSON.encode())],
    }


_OWN = frozenset({b"content-type", b"content-length", b"last-event-id", b"accept"})
"""Headers that say something of the page's own request."""


def _once(data: bytes) -> Any:
    async def receive() -> Message:
        return {"type": "http.request", "body": data, "more_body": False}

    return receive
