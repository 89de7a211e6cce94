"""Who may do what: one pure function, asked for every access on every lane.

    decide(caller, Action.CONTROL_JOB, owner=job.owner)

A caller has scopes. `tools:<glob>` lets it call the tools whose names match, and do everything with its own jobs.
`read` shows everybody's jobs, actors, services and dead letters; `operate` includes `read` and steers them; `admin`
includes `operate`, keys and the audit log. A job of somebody else is hidden from those who may not see it.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Literal

import msgspec

from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean

SCOPES_MAX = 100
PRINCIPAL_MAX = 200
_TOOL_GLOB = re.compile(r"[A-Za-z0-9._*:-]{1,128}")
_RESERVED = ("job:",)


class Action(Enum):
    """Everything that can be asked of a gateway. The values are the words of the audit log."""

    PROBE = "health.read"
    PROBE_DETAILS = "health.details"
    DESCRIBE = "api.describe"
    CONNECT = "gateway.connect"
    LIST_TOOLS = "tools.list"
    CALL_TOOL = "tools.call"
    LIST_JOBS = "jobs.list"
    READ_JOB = "jobs.read"
    CONTROL_JOB = "jobs.control"
    ANSWER_QUESTION = "jobs.answer"
    CHECK_JOB = "jobs.check"
    REPORT_JOB = "jobs.report"
    READ_PLANE = "plane.read"
    READ_ACTORS = "actors.read"
    READ_DEAD = "dead.read"
    REDRIVE_DEAD = "dead.redrive"
    PURGE_DEAD = "dead.purge"
    READ_AUDIT = "audit.read"
    READ_KEYS = "keys.read"
    CHANGE_KEYS = "keys.change"
    READ_SERVICES = "services.read"
    CHANGE_SERVICES = "services.change"

    @property
    def changes(self) -> bool:
        """Whether it changes something, so that the audit log tells of it also where it was allowed."""
        return self in _CHANGES


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `principal` owns the jobs that it starts ("" for the local caller, who has every scope); `name` is the
    key's name, the token's client, or the job; `key_id` names the API key.
    """

    principal: str
    name: str
    kind: Literal["local", "key", "token", "job"]
    scopes: tuple[str, ...] = ()
    key_id: str = ""


class Verdict(Enum):
    """What came of a question. `HIDDEN`: it is to look as if the thing did not exist."""

    ALLOWED = "allowed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    HIDDEN = "hidden"


class Decision(msgspec.Struct, frozen=True):
    """The verdict, and the scope that would have allowed it."""

    verdict: Verdict
    scope: str = ""

    @property
    def allowed(self) -> bool:
        """Whether it may be done."""
        return self.verdict is Verdict.ALLOWED


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Who may: `anyone` needs no caller; any of the others is enough. `caller`: everyone who is known; `own`: the
    owner; `job`: the holder of the job's token; `scope`: who has it; `tools`: who has a scope for the tool.
    """

    anyone: bool = False
    caller: bool = False
    own: bool = False
    job: bool = False
    tools: bool = False
    scope: str = ""


RULES: dict[Action, Rule] = {
    Action.PROBE: Rule(anyone=True),
    Action.PROBE_DETAILS: Rule(scope="read"),
    Action.DESCRIBE: Rule(anyone=True),
    Action.CONNECT: Rule(caller=True),
    Action.LIST_TOOLS: Rule(caller=True),
    Action.CALL_TOOL: Rule(tools=True),
    Action.LIST_JOBS: Rule(caller=True),
    Action.READ_JOB: Rule(own=True, scope="read"),
    Action.CONTROL_JOB: Rule(own=True, scope="operate"),
    Action.ANSWER_QUESTION: Rule(own=True, scope="operate"),
    Action.CHECK_JOB: Rule(own=True, job=True, scope="read"),
    Action.REPORT_JOB: Rule(job=True),
    Action.READ_PLANE: Rule(scope="read"),
    Action.READ_ACTORS: Rule(scope="read"),
    Action.READ_DEAD: Rule(scope="read"),
    Action.REDRIVE_DEAD: Rule(scope="operate"),
    Action.PURGE_DEAD: Rule(scope="operate"),
    Action.READ_AUDIT: Rule(scope="admin"),
    Action.READ_KEYS: Rule(scope="admin"),
    Action.CHANGE_KEYS: Rule(scope="admin"),
    Action.READ_SERVICES: Rule(scope="read"),
    Action.CHANGE_SERVICES: Rule(scope="operate"),
}
GRANTED_BY: dict[str, frozenset[str]] = {
    "read": frozenset({"read", "operate", "admin"}),
    "operate": frozenset({"operate", "admin"}),
    "admin": frozenset({"admin"}),
}
"""The scopes that grant each scope."""
LOCAL = Caller(principal="", name="local", kind="local", scopes=("admin", "operate", "read", "tools:*"))
"""The caller where nobody is authenticated: whoever reaches the loopback."""

_CHANGES = frozenset({
    Action.CALL_TOOL, Action.CONTROL_JOB, Action.ANSWER_QUESTION, Action.REPORT_JOB, Action.REDRIVE_DEAD,
    Action.PURGE_DEAD, Action.CHANGE_KEYS, Action.CHANGE_SERVICES,
})  # fmt: skip
_ALLOWED, _UNKNOWN = Decision(Verdict.ALLOWED), Decision(Verdict.UNAUTHENTICATED)


def decide(
    caller: Caller | None, action: Action, *, owner: str | None = None, tool: str | None = None, job: str | None = None
) -> Decision:
    """Whether `caller` (None: a stranger) may do `action`: to a job of `owner`, with `tool`, with the token of `job`.

    Of what is not known yet the answer is whether it could be allowed: a job's owner is known when it was read.
    """
    rule = RULES[action]
    if rule.anyone:
        return _ALLOWED
    if caller is None:
        return _UNKNOWN
    if caller.kind == "job":
        mine = rule.job and (job is None or caller.name == job)
        return _ALLOWED if mine else Decision(Verdict.HIDDEN if rule.job else Verdict.FORBIDDEN)
    if rule.caller or (rule.own and (owner is None or owner == caller.principal)):
        return _ALLOWED
    if rule.tools:
        return _ALLOWED if _may_call(caller.scopes, tool) else Decision(Verdict.FORBIDDEN, f"tools:{tool or '*'}")
    if rule.scope and has_scope(caller, rule.scope):
        return _ALLOWED
    if rule.own and not has_scope(caller, "read"):
        return Decision(Verdict.HIDDEN)
    return Decision(Verdict.FORBIDDEN, rule.scope)


def has_scope(caller: Caller, scope: str) -> bool:
    """Whether the caller has `read`, `operate` or `admin`, or one that includes it."""
    return not GRANTED_BY[scope].isdisjoint(caller.scopes)


def sees_owner(caller: Caller) -> str | None:
    """The owner whose jobs the caller may see; None for everybody's."""
    return None if has_scope(caller, "read") else caller.principal


def check_scopes(field: str, scopes: object) -> tuple[str, ...]:
    """The scopes in order, without repeats. `invalid_argument` for one that nobody knows."""
    if not isinstance(scopes, list | tuple | set | frozenset) or not 1 <= len(scopes) <= SCOPES_MAX:
        raise InvalidArgument(f"{field}: {scopes!r} is not a list of 1 to {SCOPES_MAX} scopes; write tools:* or read")
    for scope in scopes:
        if not is_scope(scope):
            hint = did_you_mean(str(scope), [*GRANTED_BY, "tools:*"])
            raise InvalidArgument(
                f"{field}: {str(scope)[:100]!r} is not a scope; use read, operate, admin, or tools: with a tool's name "
                f"or a pattern of it (tools:reports.*){hint}"
            )
    return tuple(sorted(set(scopes)))


def is_scope(scope: object) -> bool:
    """Whether it is a scope that this version knows."""
    if not isinstance(scope, str):
        return False
    return scope in GRANTED_BY or (scope.startswith("tools:") and bool(_TOOL_GLOB.fullmatch(scope[6:])))


def check_principal(field: str, principal: object) -> str:
    """The principal when it may own jobs: 1 to 200 printable characters, none that is kept for the gateway itself."""
    if not isinstance(principal, str) or not 1 <= len(principal) <= PRINCIPAL_MAX or not principal.isprintable():
        raise InvalidArgument(f"{field}: {principal!r} is not 1 to {PRINCIPAL_MAX} printable characters")
    if principal.startswith(_RESERVED):
        raise InvalidArgument(f"{field}: {principal!r} begins with {_RESERVED[0]!r}, which stands for jobs' own tokens")
    return principal


def _may_call(scopes: tuple[str, ...], tool: str | None) -> bool:
    globs = [scope[6:] for scope in scopes if scope.startswith("tools:")]
    return bool(globs) if tool is None else any(_matches(glob, tool) for glob in globs)


def _matches(glob: str, name: str) -> bool:
    """`*` is any run; every part is taken at its first place, so that no pattern takes long."""
    first, *rest = glob.split("*")
    if not rest:
        return name == glob
    *between, last = rest
    if not name.startswith(first) or len(name) < len(first) + len(last) or not name.endswith(last):
        return False
    start, end = len(first), len(name) - len(last)
    for part in between:
        found = name.find(part, start, end)
        if found < 0:
            return False
        start = found + len(part)
    return True
