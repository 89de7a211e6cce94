"""Security: API keys, tokens, access decisions, the audit log, sessions, secrets that replicas share.

    async with Security.open("embedded://", state=Path(".groundplane")) as security:
        made = await security.create_key("ci", ["tools:build.*"])
        caller = await security.verify(made.secret.reveal())
        decide(caller, Action.CALL_TOOL, tool="build.run").allowed

`Security` is the façade, `access` decides, `port` is the contract of a driver, `conformance` the suite it must pass.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundplane.security.access import LOCAL, Action, Caller, Decision, Verdict, decide
    from groundplane.security.port import ApiKey, AuditEntry, AuditQuery, Session
    from groundplane.security.store import Security

_HOME = {
    **dict.fromkeys(("LOCAL", "Action", "Caller", "Decision", "Verdict", "decide"), "access"),
    **dict.fromkeys(("ApiKey", "AuditEntry", "AuditQuery", "Session"), "port"),
    "Security": "store",
}

__all__ = [
    "LOCAL", "Action", "ApiKey", "AuditEntry", "AuditQuery", "Caller", "Decision", "Security", "Session", "Verdict",
    "decide",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
