"""JSON as RFC 8259 means it: UTF-8, no duplicate keys, no NaN, a bounded depth. What parsers let pass is refused."""

from __future__ import annotations

import json
from typing import Any

from groundplane.core.errors import InvalidArgument

DEPTH_MAX = 200


def parse(data: bytes) -> Any:
    """The value in `data`. Raises `InvalidArgument` (reason `msg_parsing_error`) that says what and where."""
    if not data.strip():
        raise _bad("is empty; send a JSON object")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise _bad(f"is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise _bad(f"is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise _bad(f"is nested deeper than {DEPTH_MAX} levels") from error
    except ValueError as error:
        raise _bad(f"is not JSON: {error}") from error
    _check_depth(value)
    if b"\\ud" in data or b"\\uD" in data:
        _check_text(value)
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _bad(f"has the key {key[:100]!r} twice in one object")
            seen.add(key)
    return value


def _constant(name: str) -> Any:
    raise _bad(f"has {name}, which is no JSON number")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise _bad(f"is nested deeper than {DEPTH_MAX} levels")


def _check_text(value: Any) -> None:
    """Half a surrogate pair is no text in UTF-8: no answer, message or store could carry it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _bad("has half of a surrogate pair in a text") from error


def _bad(what: str) -> InvalidArgument:
    return InvalidArgument(f"body: {what}", reason="msg_parsing_error", details={"field": "body"})
