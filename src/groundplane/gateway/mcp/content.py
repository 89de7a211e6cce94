"""Content blocks, prompt messages and resource contents as a handler returned them, checked before a client gets them.

Every mistake is an `InvalidArgument` that names the field. Unknown fields are passed on: revisions add some.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from groundplane.core.errors import InvalidArgument

Block = dict[str, Any]
Check = Callable[[Any, str], None]
ROLES = ("user", "assistant")
_SHOWN_MAX = 100


def content_blocks(value: Any, field: str = "content") -> list[Block]:
    """The blocks of a tool's result: a list of them, one, or text."""
    listed = value if isinstance(value, list) else [value]
    return [content_block(one, f"{field}[{n}]") for n, one in enumerate(listed)]


def content_block(value: Any, field: str) -> Block:
    """One block; text becomes one."""
    if isinstance(value, str):
        return {"type": "text", "text": value}
    _object(value, field)
    kind = value.get("type")
    if kind not in _BLOCKS:
        raise _bad(f"{field}.type", kind, f"one of {', '.join(_BLOCKS)}")
    for name, check in _BLOCKS[kind].items():
        check(value.get(name), f"{field}.{name}")
    return dict(value)


def prompt_messages(value: Any) -> list[dict[str, Any]]:
    """The messages of a prompt: a list of messages, of blocks or of texts, or one of these; who says it is the user
    where nothing else is said.
    """
    listed = value if isinstance(value, list) else [value]
    messages = []
    for n, one in enumerate(listed):
        field = f"messages[{n}]"
        if isinstance(one, dict) and "role" in one:
            if one["role"] not in ROLES:
                raise _bad(f"{field}.role", one["role"], " or ".join(ROLES))
            messages.append({"role": one["role"], "content": content_block(one.get("content"), f"{field}.content")})
        else:
            messages.append({"role": "user", "content": content_block(one, f"{field}.content")})
    return messages


def _object(value: Any, field: str) -> None:
    if not isinstance(value, Mapping):
        raise _bad(field, value, "an object")


def _text(value: Any, field: str) -> None:
    if not isinstance(value, str):
        raise _bad(field, value, "text")


def _base64(value: Any, field: str) -> None:
    _text(value, field)
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(field, value, "base64") from error


def _resource(value: Any, field: str) -> None:
    _object(value, field)
    _text(value.get("uri"), f"{field}.uri")
    if ("text" in value) == ("blob" in value):
        held = "both text and blob" if "text" in value else "neither text nor blob"
        raise InvalidArgument(f"{field}: has {held}; give one", details={"field": field})
    (_text if "text" in value else _base64)(value.get("text", value.get("blob")), f"{field}.text or blob")


_BLOCKS: dict[str, dict[str, Check]] = {
    "text": {"text": _text},
    "image": {"data": _base64, "mimeType": _text},
    "audio": {"data": _base64, "mimeType": _text},
    "resource": {"resource": _resource},
    "resource_link": {"uri": _text, "name": _text},
}


def _bad(field: str, value: Any, wanted: str) -> InvalidArgument:
    if value is None:
        return InvalidArgument(f"{field}: is missing; it must be {wanted}", details={"field": field})
    shown = repr(value)[:_SHOWN_MAX]
    return InvalidArgument(f"{field}: {shown} is not {wanted}", details={"field": field})


__all__ = ["content_block", "content_blocks", "prompt_messages"]
