"""What comes to `/mcp`, looked at before the SDK reads it.

Of a key that is there twice in one object the SDK's parser keeps the last value and drops the others, unseen; what is
no message it refuses with the inner text of its validator. So both are refused here, in words of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope

from groundplane.core.errors import InvalidArgument
from groundplane.gateway import strict_json
from groundplane.gateway.endpoints import JSON
from groundplane.gateway.problems import HTTPProblem

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
ID_MAX = 2**63
ID_CHARS_MAX = 1000
_ID = f"text of at most {ID_CHARS_MAX} characters nor a whole number of at most 64 bits"
SHOWN_MAX = 100


def refusal(data: bytes, what: str = "the body") -> dict[str, Any] | None:
    """The JSON-RPC error for bytes (`what`) that are no message of JSON-RPC 2.0; None for one."""
    try:
        value = strict_json.parse(data)
    except InvalidArgument as error:
        return _error(PARSE_ERROR, f"Parse error: {what} {error.message.removeprefix('body: ')}")
    wrong = _wrong(value)
    if wrong is None:
        return None
    given = value.get("id") if isinstance(value, dict) else None
    return _error(INVALID_REQUEST, f"Invalid request: {wrong}", given if _is_id(given) else None)


async def take(scope: Scope, receive: Receive, look: Callable[[bytes], None]) -> tuple[Receive, ASGIApp | None]:
    """Reads the body. What hands it out again, and the refusal where it is no message. Raises `HTTPProblem` (415).
    `look` sees the body, and raises where the caller may not send it.
    """
    kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        shown = repr(kind[:SHOWN_MAX]) if kind else "missing"
        raise HTTPProblem(415, f"content-type: {shown}; send {JSON}", headers={"Accept": JSON})
    data, again = await read(receive)
    refused = refusal(data)
    if refused is not None:
        return receive, JSONResponse(refused, status_code=400)
    look(data)
    return again, None


async def read(receive: Receive) -> tuple[bytes, Receive]:
    """The body, and what hands it out again. Nothing, where the client leaves before its end."""
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"", _again([message], receive)
        data += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(data), _again([{"type": "http.request", "body": bytes(data), "more_body": False}], receive)


def _wrong(value: Any) -> str | None:
    """What keeps the value from being a request, a notification or a response; by JSON-RPC 2.0, 4 and 5, and MCP."""
    if not isinstance(value, dict):
        return "it is no object; send one message at a time"
    if value.get("jsonrpc") != "2.0":
        return 'jsonrpc: must be "2.0"'
    if "id" in value and not _is_id(value["id"]):
        return f"id: {_shown(value['id'])} is neither {_ID}"
    if "method" not in value:
        return _wrong_response(value)
    if not isinstance(value["method"], str):
        return f"method: {_shown(value['method'])} is not text"
    if not isinstance(value.get("params", {}), dict):
        return f"params: {_shown(value['params'])} is no object"
    meta = value.get("params", {}).get("_meta")
    if meta is not None and not isinstance(meta, dict):
        return f"params._meta: {_shown(meta)} is no object"
    token = (meta or {}).get("progressToken", "")
    if not _is_id(token):
        return f"params._meta.progressToken: {_shown(token)} is neither {_ID}"
    return None


def _wrong_response(value: dict[str, Any]) -> str | None:
    if ("result" in value) == ("error" in value):
        return "it has no method, nor one of result and error"
    if "id" not in value and "result" in value:
        return "id: is missing"
    if "result" in value:
        return None if isinstance(value["result"], dict) else f"result: {_shown(value['result'])} is no object"
    error = value["error"]
    if isinstance(error, dict) and type(error.get("code")) is int and isinstance(error.get("message"), str):
        return None
    return f"error: {_shown(error)} has no code and message"


def _is_id(value: Any) -> bool:
    """Whether it can be an id or a progress token: both are in the ids of the events that any replica resumes from."""
    if isinstance(value, str):
        return len(value) <= ID_CHARS_MAX
    return type(value) is int and -ID_MAX <= value < ID_MAX


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"


def _error(code: int, message: str, given: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": given, "error": {"code": code, "message": message}}


def _again(messages: list[Message], receive: Receive) -> Receive:
    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return replay
