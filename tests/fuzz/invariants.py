"""What every answer of a gateway keeps, whatever was asked."""

from __future__ import annotations

import json
import re
from typing import Any

LEAK = re.compile(
    r"Traceback|\bFile \\?\"|site-packages|/root/|/home/|/tmp/|plane\.db|object at 0x|pydantic|starlette|sqlite3|"
    r"\b(?:Value|Key|Type|Attribute|Index|Runtime|Unicode\w+|Recursion|Assertion|Validation|OS)Error\b"
)
"""Of exceptions, files and machines nothing is told."""
HANDLERS_OWN = '"type":"ValueError"'
"""The type of what a handler raised is told, in the details of the job's error."""
STATUSES = frozenset((200, 202, 204, 400, 401, 403, 404, 405, 406, 409, 410, 413, 414, 415, 421, 422, 429, 431))
INTERNAL = -32603
_PROBLEM = {"type", "title", "status", "detail", "code", "reason", "details"}


class Broken(AssertionError):
    """An answer that must not be."""


def check(status: int, kind: str, body: bytes, sent: bytes = b"") -> list[dict[str, Any]]:
    """The JSON-RPC messages of an answer to `/mcp`. Raises `Broken`."""
    if status not in STATUSES:
        raise Broken(f"status {status}: {body[:500]!r}")
    text = body.decode("utf-8", "replace")
    check_text(text, sent.decode("utf-8", "replace"))
    if not body:
        return []
    if kind.startswith("application/problem+json"):
        problem = _object(text)
        if set(problem) != _PROBLEM or problem["status"] != status:
            raise Broken(f"no problem document: {text[:500]}")
        return []
    if kind.startswith("text/event-stream"):
        lines = [line[5:].strip() for line in re.split(r"\r\n|\r|\n", text) if line.startswith("data:")]
        return [message(_object(line)) for line in lines if line]
    if kind.startswith("application/json"):
        return [message(_object(text))]
    raise Broken(f"content type {kind!r}: {text[:500]}")


def check_text(text: str, sent: str) -> None:
    """Raises `Broken` where it tells something of the gateway's inside that was not sent to it."""
    leak = LEAK.search(text.replace(HANDLERS_OWN, ""))
    if leak is not None and leak[0] not in sent:
        raise Broken(f"it tells {leak[0]!r}: {text[:1000]}")


def message(found: dict[str, Any]) -> dict[str, Any]:
    """The message, when it is one of JSON-RPC 2.0 and tells of no fault of ours."""
    kinds = [key for key in ("result", "error", "method") if key in found]
    if found.get("jsonrpc") != "2.0" or len(kinds) != 1:
        raise Broken(f"no JSON-RPC message: {found!r}")
    if kinds == ["error"]:
        error = found["error"]
        if not isinstance(error.get("code"), int) or not isinstance(error.get("message"), str):
            raise Broken(f"no JSON-RPC error: {found!r}")
        if error["code"] in (0, INTERNAL):
            raise Broken(f"a fault: {found!r}")
    result = found.get("result")
    if isinstance(result, dict) and result.get("isError") and "the gateway failed" in json.dumps(result):
        raise Broken(f"a fault: {found!r}")
    return found


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Broken(f"no JSON: {text[:500]!r}") from error
    if not isinstance(found, dict):
        raise Broken(f"no object: {text[:500]!r}")
    return found
