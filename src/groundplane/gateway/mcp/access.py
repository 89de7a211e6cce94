"""What each method of MCP asks for, looked at before the SDK gets the request: a refusal is an HTTP status with a
challenge, as the authorization part of MCP wants it.

A method that is served and not listed here keeps the gateway's MCP side from starting.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from groundplane.core.errors import Internal
from groundplane.gateway.access import Access
from groundplane.security.access import Action, Caller

METHODS: dict[str, Action] = {
    "initialize": Action.CONNECT,
    "ping": Action.CONNECT,
    "server/discover": Action.CONNECT,
    "logging/setLevel": Action.CONNECT,
    "completion/complete": Action.CONNECT,
    "subscriptions/listen": Action.CONNECT,
    "prompts/list": Action.CONNECT,
    "prompts/get": Action.CONNECT,
    "resources/list": Action.CONNECT,
    "resources/templates/list": Action.CONNECT,
    "resources/read": Action.CONNECT,
    "resources/subscribe": Action.CONNECT,
    "resources/unsubscribe": Action.CONNECT,
    "tools/list": Action.LIST_TOOLS,
    "tools/call": Action.CALL_TOOL,
    "tasks/get": Action.READ_JOB,
    "tasks/update": Action.ANSWER_QUESTION,
    "tasks/cancel": Action.CONTROL_JOB,
    "notifications/initialized": Action.CONNECT,
    "notifications/cancelled": Action.CONTROL_JOB,
    "notifications/progress": Action.CONNECT,
    "notifications/roots/list_changed": Action.CONNECT,
}
"""The action of each method. What names a job is decided once more with its owner, where the job is read."""


class _Params(msgspec.Struct):
    name: msgspec.Raw = msgspec.Raw(b"null")


class _Message(msgspec.Struct):
    method: str = ""
    params: msgspec.Raw = msgspec.Raw(b"{}")


def check_served(methods: Iterable[str]) -> None:
    """Raise where a method is served that nobody decides about."""
    unlisted = sorted(set(methods) - set(METHODS))
    if unlisted:
        raise Internal(f"mcp: {', '.join(unlisted)} are served and have no action; list them in gateway/mcp/access.py")


def check_body(access: Access, caller: Caller | None, body: bytes) -> None:
    """Decide about the messages of a body. What cannot be read is left to the SDK, which refuses it."""
    for method, name in _messages(body):
        action = METHODS.get(method, Action.CONNECT)
        tool = name if action is Action.CALL_TOOL else None
        access.check(caller, action, tool=tool, resource=f"tool:{tool}" if tool is not None else f"mcp:{method[:100]}")


def _messages(body: bytes) -> list[tuple[str, str | None]]:
    try:
        if body.lstrip()[:1] == b"[":
            read = msgspec.json.decode(body, type=list[_Message])
        else:
            read = [msgspec.json.decode(body, type=_Message)]
    except (msgspec.DecodeError, RecursionError):
        return [("", None)]
    return [(one.method, _tool_name(one)) for one in read]


def _tool_name(message: _Message) -> str | None:
    if message.method != "tools/call":
        return None
    try:
        return msgspec.json.decode(msgspec.json.decode(message.params, type=_Params).name, type=str)
    except (msgspec.DecodeError, RecursionError):
        return None
