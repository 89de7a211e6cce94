"""What a tool with `content=True`, a prompt or a resource returns: MCP's content blocks, as plain data.

    from groundplane import content

    @app.actor
    def chart(city: str) -> list[dict]:
        return [content.text(f"Rain in {city}"), content.image(draw(city), "image/png")]

    app.tool("chart", route=[chart], content=True)

Each function returns a dict that JSON carries, so that a handler can as well write the dict itself, and a job's result
reads the same everywhere. The names of the fields are those of the Model Context Protocol.
"""

from __future__ import annotations

import base64
from typing import Any, Literal

Block = dict[str, Any]
Role = Literal["user", "assistant"]


def text(words: str, **fields: Any) -> Block:
    """Text."""
    return {"type": "text", "text": words, **fields}


def image(data: bytes, mime_type: str, **fields: Any) -> Block:
    """A picture, such as `image/png`."""
    return {"type": "image", "data": _base64(data), "mimeType": mime_type, **fields}


def audio(data: bytes, mime_type: str, **fields: Any) -> Block:
    """A sound, such as `audio/wav`."""
    return {"type": "audio", "data": _base64(data), "mimeType": mime_type, **fields}


def resource(uri: str, value: str | bytes, mime_type: str = "text/plain", **fields: Any) -> Block:
    """A resource with its text or bytes."""
    held = {"text": value} if isinstance(value, str) else {"blob": _base64(value)}
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, **held}, **fields}


def link(uri: str, name: str, **fields: Any) -> Block:
    """A resource that the client may read itself; `mimeType`, `title`, `description` are fields."""
    return {"type": "resource_link", "uri": uri, "name": name, **fields}


def message(block: Block | str, role: Role = "user") -> Block:
    """A message of a prompt: one block, or text."""
    return {"role": role, "content": text(block) if isinstance(block, str) else block}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


__all__ = ["Block", "Role", "audio", "image", "link", "message", "resource", "text"]
