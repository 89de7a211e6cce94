"""Every access of the gateway is decided here, by `security.access.decide`, and told to the audit log where it changes
something or is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from groundplane.core.errors import ErrorRecord, GroundplaneError, NotFound, PermissionDenied, from_record
from groundplane.security.access import Action, Caller, Decision, Verdict, decide, has_scope
from groundplane.security.port import Outcome
from groundplane.security.store import Security
from groundplane.telemetry.logs import get_logger

_OF_STORES = frozenset({"unavailable", "deadline_exceeded", "closed"})
_OWN = ("gateway:", "sessions:", "issuer:")
"""How messages of the gateway itself begin that have one of those codes."""
_log = get_logger("gateway")


class Change:
    """A change under way: say with `detail` what came of it."""

    def __init__(self) -> None:
        self.detail = ""


class Access:
    """Decides. Without `security` nothing is told to an audit log."""

    def __init__(self, security: Security | None = None) -> None:
        self._security = security

    def check(
        self,
        caller: Caller | None,
        action: Action,
        *,
        resource: str = "",
        owner: str | None = None,
        tool: str | None = None,
        job: str | None = None,
        refusal: PermissionDenied | None = None,
    ) -> None:
        """Return where it is allowed. Else `permission_denied` (`unauthenticated`, `insufficient_scope`), or
        `not_found` where the job of somebody else is to look as if it did not exist. `refusal` says why a stranger is
        one.
        """
        decision = decide(caller, action, owner=owner, tool=tool, job=job)
        if decision.allowed:
            return
        self.record(caller, action, "refused", resource=resource, detail=decision.verdict.value)
        if decision.verdict is Verdict.UNAUTHENTICATED and refusal is not None:
            raise refusal
        _refuse(decision, action, resource)

    @contextmanager
    def changing(self, caller: Caller, action: Action, resource: str) -> Iterator[Change]:
        """Around a change that was allowed: the audit log gets what came of it."""
        change = Change()
        try:
            yield change
        except GroundplaneError as error:
            self.record(caller, action, "failed", resource=resource, detail=error.reason or error.code)
            raise
        except BaseException:
            self.record(caller, action, "failed", resource=resource, detail="interrupted")
            raise
        self.record(caller, action, "done", resource=resource, detail=change.detail)

    def record(
        self, caller: Caller | None, action: Action, outcome: Outcome, *, resource: str = "", detail: str = ""
    ) -> None:
        """Tell the audit log."""
        if self._security is not None:
            self._security.record(caller, action, outcome, resource=resource, detail=detail)


def unauthenticated(why: str = "is missing") -> PermissionDenied:
    """Nobody knows the caller."""
    return PermissionDenied(
        f"authorization: {why}; send a valid API key or token as `Authorization: Bearer …`", reason="unauthenticated"
    )


def caller_of(scope: Mapping[str, Any]) -> Caller | None:
    """Who sent the request of this ASGI scope; None for a stranger."""
    caller: Caller | None = (scope.get("state") or {}).get("caller")
    return caller


def admitted(scope: Mapping[str, Any], action: Action, resource: str) -> Caller | None:
    """The sender of this ASGI scope, where it may do `action` as far as is known; None for a stranger who may. Raises
    as `Access.check`, and what kept the sender from being known.
    """
    state = scope["state"]
    caller: Caller | None = state["caller"]
    decision = decide(caller, action)
    if decision.verdict is Verdict.UNAUTHENTICATED and not isinstance(state["refusal"], PermissionDenied):
        raise state["refusal"]  # what knows callers is away
    state["access"].check(caller, action, resource=resource, refusal=state["refusal"])
    return caller


def told(caller: Caller | None, error: GroundplaneError) -> GroundplaneError:
    """The error as the caller is told of it. What a store says of itself names hosts, databases and roles: those are
    for who may read the details of health; for everybody else they are in the log.
    """
    of_store = error.code in _OF_STORES or "sqlstate" in error.details
    if not of_store or error.message.startswith(_OWN) or decide(caller, Action.PROBE_DETAILS).allowed:
        return error
    _log.warning("store_refused", code=error.code, reason=error.reason, error=error.message)
    if error.code == "invalid_argument":
        text = "request: holds text that cannot be stored; look for NUL characters"
    else:
        text = "gateway: what it needs does not answer as it should; call again, or ask who runs it"
    return from_record(ErrorRecord(error.code, text, error.reason, {}, error.retryable))


def lists_tool(caller: Caller, tool: str) -> bool:
    """Whether the tool is listed for the caller: who may call it, and who sees everything."""
    return has_scope(caller, "read") or decide(caller, Action.CALL_TOOL, tool=tool).allowed


def resource_of_job(job_id: str) -> str:
    """What the audit log calls a job."""
    return f"job:{job_id}"


def _refuse(decision: Decision, action: Action, resource: str) -> NoReturn:
    if decision.verdict is Verdict.UNAUTHENTICATED:
        raise unauthenticated()
    if decision.verdict is Verdict.HIDDEN:  # in the words of the store for a job that is not there
        raise NotFound(
            f"job_id: no job has the id {resource.removeprefix('job:')[:300]!r}; look at the list of jobs",
            reason="job_not_found",
        )
    what = f"needs the scope {decision.scope!r}" if decision.scope else "is not for this caller"
    raise PermissionDenied(
        f"access: {action.value} {what}; ask who gave you the key or token",
        reason="insufficient_scope",
        details={"action": action.value, "scope": decision.scope},
    )
