"""The body of a request to `/mcp`, looked at before the SDK reads it.

Of a key that is there twice in one object the SDK's parser keeps the last value and drops the others, unseen.
"""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive

from groundplane.core.errors import InvalidArgument
from groundplane.gateway import strict_json

_PARSE_ERROR = -32700


async def take(receive: Receive) -> tuple[Receive, ASGIApp | None]:
    """Reads the body. What hands it out again, and the refusal where a key is there twice. What else is wrong with it
    the SDK says.
    """
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return _again([message], receive), None
        data += message.get("body", b"")
        if not message.get("more_body", False):
            break
    try:
        strict_json.refuse_duplicates(bytes(data))
    except InvalidArgument as error:
        said = {"code": _PARSE_ERROR, "message": f"Parse error: {error.message}"}
        return receive, JSONResponse({"jsonrpc": "2.0", "id": None, "error": said}, status_code=400)
    return _again([{"type": "http.request", "body": bytes(data), "more_body": False}], receive), None


def _again(messages: list[Message], receive: Receive) -> Receive:
    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return replay
