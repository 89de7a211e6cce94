"""Who may do what."""

from __future__ import annotations

import itertools
import time

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.security.access import (
    LOCAL,
    RULES,
    Action,
    Caller,
    Verdict,
    check_principal,
    check_scopes,
    decide,
    sees_owner,
)

pytestmark = pytest.mark.req("GATE-18")

ALLOWED, STRANGER, FORBIDDEN, HIDDEN = (
    Verdict.ALLOWED, Verdict.UNAUTHENTICATED, Verdict.FORBIDDEN, Verdict.HIDDEN,
)  # fmt: skip


def key(*scopes: str, principal: str = "alice") -> Caller:
    return Caller(principal=principal, name="k", kind="key", scopes=scopes)


def test_every_action_has_a_rule_and_none_is_left_open_by_accident() -> None:
    assert set(RULES) == set(Action)
    assert {action for action, rule in RULES.items() if rule.anyone} == {Action.PROBE, Action.DESCRIBE}


@pytest.mark.parametrize("action", list(Action), ids=lambda one: one.name)
def test_a_stranger_may_do_what_is_open_to_anyone_and_nothing_else(action: Action) -> None:
    expected = ALLOWED if RULES[action].anyone else STRANGER
    for owner, tool in itertools.product((None, "", "alice"), (None, "echo")):
        assert decide(None, action, owner=owner, tool=tool).verdict is expected


@pytest.mark.parametrize("action", [one for one in Action if one is not Action.REPORT_JOB], ids=lambda one: one.name)
def test_the_local_caller_may_do_everything_but_report_as_an_actor(action: Action) -> None:
    assert decide(LOCAL, action, owner="", tool="echo").allowed
    assert decide(LOCAL, action, owner="somebody", tool="echo").allowed


@pytest.mark.parametrize("action", [Action.READ_JOB, Action.CONTROL_JOB, Action.ANSWER_QUESTION, Action.CHECK_JOB])
def test_ones_own_job_is_open_with_any_scope_and_that_of_another_looks_as_if_it_did_not_exist(action: Action) -> None:
    for caller in (key("tools:echo"), key("tools:other"), key("tools:*")):
        assert decide(caller, action, owner="alice").allowed
        assert decide(caller, action).allowed
        assert decide(caller, action, owner="bob").verdict is HIDDEN
        assert decide(caller, action, owner="").verdict is HIDDEN


def test_who_reads_everything_sees_the_jobs_of_others_and_may_not_steer_them() -> None:
    reader = key("read")
    assert decide(reader, Action.READ_JOB, owner="bob").allowed
    refused = decide(reader, Action.CONTROL_JOB, owner="bob")
    assert (refused.verdict, refused.scope) == (FORBIDDEN, "operate")
    assert decide(reader, Action.CONTROL_JOB, owner="alice").allowed
    assert decide(reader, Action.READ_DEAD).allowed
    assert decide(reader, Action.REDRIVE_DEAD).verdict is FORBIDDEN
    assert sees_owner(reader) is None
    assert sees_owner(key("tools:*")) == "alice"


@pytest.mark.parametrize(
    ("scope", "action", "verdict"),
    [
        ("tools:*", Action.READ_DEAD, FORBIDDEN),
        ("tools:*", Action.READ_ACTORS, FORBIDDEN),
        ("tools:*", Action.READ_PLANE, FORBIDDEN),
        ("tools:*", Action.PROBE_DETAILS, FORBIDDEN),
        ("tools:*", Action.LIST_JOBS, ALLOWED),
        ("tools:*", Action.LIST_TOOLS, ALLOWED),
        ("tools:*", Action.CONNECT, ALLOWED),
        ("read", Action.PROBE_DETAILS, ALLOWED),
        ("read", Action.READ_AUDIT, FORBIDDEN),
        ("read", Action.CALL_TOOL, FORBIDDEN),
        ("tools:*", Action.READ_SERVICES, FORBIDDEN),
        ("read", Action.READ_SERVICES, ALLOWED),
        ("read", Action.CHANGE_SERVICES, FORBIDDEN),
        ("operate", Action.CHANGE_SERVICES, ALLOWED),
        ("operate", Action.READ_PLANE, ALLOWED),
        ("operate", Action.REDRIVE_DEAD, ALLOWED),
        ("operate", Action.CALL_TOOL, FORBIDDEN),
        ("operate", Action.READ_KEYS, FORBIDDEN),
        ("operate", Action.READ_AUDIT, FORBIDDEN),
        ("admin", Action.REDRIVE_DEAD, ALLOWED),
        ("admin", Action.READ_AUDIT, ALLOWED),
        ("admin", Action.CHANGE_KEYS, ALLOWED),
        ("admin", Action.CALL_TOOL, FORBIDDEN),
    ],
)
def test_scopes_include_each_other_and_none_includes_the_tools(scope: str, action: Action, verdict: Verdict) -> None:
    assert decide(key(scope), action, tool="echo").verdict is verdict


@pytest.mark.parametrize(
    ("scope", "tool", "may"),
    [
        ("tools:*", "anything", True),
        ("tools:echo", "echo", True),
        ("tools:echo", "echo2", False),
        ("tools:echo", "Echo", False),
        ("tools:reports.*", "reports.daily", True),
        ("tools:reports.*", "reports", False),
        ("tools:reports.*", "reportsxdaily", False),
        ("tools:*.daily", "reports.daily", True),
        ("tools:*.daily", "reports.daily.old", False),
        ("tools:a*b*c", "abc", True),
        ("tools:a*b*c", "a-b-b-c", True),
        ("tools:a*b*c", "acb", False),
        ("tools:ab*ba", "aba", False),
        ("tools:**", "x", True),
    ],
)
def test_a_scope_opens_the_tools_whose_names_match_its_pattern(scope: str, tool: str, may: bool) -> None:
    decision = decide(key(scope), Action.CALL_TOOL, tool=tool)
    assert decision.allowed is may
    assert decision.scope == ("" if may else f"tools:{tool}")


def test_no_pattern_and_no_name_take_long() -> None:
    caller = key("tools:" + "*a" * 60 + "b")
    began = time.process_time()
    assert not decide(caller, Action.CALL_TOOL, tool="a" * 100_000 + "c").allowed
    assert time.process_time() - began < 1.0


def test_the_holder_of_a_jobs_token_may_report_on_that_job_and_do_nothing_else() -> None:
    actor = Caller(principal="job:1", name="1", kind="job")
    for action in Action:
        if RULES[action].anyone:
            continue
        own = action in (Action.REPORT_JOB, Action.CHECK_JOB)
        assert decide(actor, action, job="1", owner="").allowed is own, action
        assert not decide(actor, action, job="2", owner="job:1").allowed, action


def test_nobody_but_the_holder_of_its_token_reports_on_a_job() -> None:
    for caller in (LOCAL, key("tools:*", "admin"), key("operate")):
        assert decide(caller, Action.REPORT_JOB, owner=caller.principal, job="1").verdict is FORBIDDEN


def test_scopes_are_put_in_order_and_unknown_ones_are_refused_with_a_hint() -> None:
    assert check_scopes("scope", ["tools:b", "read", "read"]) == ("read", "tools:b")
    with pytest.raises(InvalidArgument, match=r"^scope: 'raed' .*did you mean 'read'"):
        check_scopes("scope", ["raed"])
    for bad in ([], "read", ["tools:"], ["tools:a b"], [3], ["read\n"], None):
        with pytest.raises(InvalidArgument, match=r"^scope"):
            check_scopes("scope", bad)


@pytest.mark.parametrize("principal", ["", "job:1", "a\nb", "x" * 201, None])
def test_a_principal_that_cannot_own_jobs_is_refused(principal: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^principal"):
        check_principal("principal", principal)
