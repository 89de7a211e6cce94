"""Joins as values: which join a child belongs to, the joined envelope, the timer, what a handler is told."""

from __future__ import annotations

import pytest

from groundplane.core.envelope import Branch, Claim, Envelope, Route
from groundplane.core.ids import joined_id
from groundplane.jobs.port import Joined
from groundplane.mesh import joins
from groundplane.mesh.ledger.port import JoinKey
from groundplane.mesh.routing import dedup_key
from groundplane.mesh.spec import ActorSpec
from groundplane.mesh.start import JOB_TOKEN

pytestmark = pytest.mark.req("MESH-13")

SPEC = ActorSpec(name="sum", handler="m:f", join=True, join_timeout_s=9.0)
OUTER, INNER = Branch("grand", 0, 1, 2), Branch("parent", 1, 2, 3)


def _child(**fields: object) -> Envelope:
    defaults = {
        "id": "child",
        "route": Route(["a", "b", "sum", "z"], 2),
        "payload": 7,
        "created_at": 1,
        "root_id": "root",
        "parent_id": "parent",
        "job_id": "j",
        "branches": [OUTER, INNER],
        "headers": {"traceparent": "t", "mine": 1},
    }
    return Envelope(**{**defaults, **fields})  # type: ignore[arg-type]


def test_a_child_belongs_to_the_innermost_fan_out() -> None:
    assert joins.is_join(SPEC, _child())
    assert not joins.is_join(SPEC, _child(branches=[]))
    assert not joins.is_join(ActorSpec(name="sum", handler=""), _child())
    assert joins.key_of(SPEC, _child()) == JoinKey("parent", 1, "sum")


def test_the_timer_keeps_what_reports_need_and_nothing_of_the_childs_own() -> None:
    headers = {"traceparent": "t", "tracestate": "s", "mine": 1, JOB_TOKEN: "token"}
    made = joins.timer(SPEC, _child(claim=Claim("claims/k", 1, "c"), headers=headers))
    assert made.envelope.headers == {"traceparent": "t", "tracestate": "s", JOB_TOKEN: "token", joins.TIMER: "join"}
    assert (made.envelope.payload, made.envelope.claim, made.envelope.job_id) == (None, None, "j")
    assert (made.queue, made.delay_s) == ("sum", 9.0)


def test_the_joined_envelope_stands_for_the_parent_inside_the_outer_fan_out() -> None:
    made = joins.joined(_child(claim=Claim("claims/k", 1, "c")))
    assert (made.id, made.parent_id, made.root_id, made.job_id) == (joined_id("parent", 1), "parent", "root", "j")
    assert (made.branches, made.route, made.claim) == ([OUTER], Route(["a", "b", "sum", "z"], 2), None)
    assert joins.joined(_child(id="sibling", branches=[OUTER, Branch("parent", 1, 0, 3)])).id == made.id


def test_every_child_sends_the_same_timer_and_it_joins_as_they_do() -> None:
    first = joins.timer(SPEC, _child())
    other = joins.timer(SPEC, _child(id="sibling", payload=8, branches=[OUTER, Branch("parent", 1, 0, 3)]))
    assert (first.queue, first.delay_s) == ("sum", 9.0)
    assert dedup_key(first.envelope) == dedup_key(other.envelope)
    assert joins.is_timer(first.envelope)
    assert not joins.is_timer(_child())
    assert first.envelope.payload is None
    assert first.envelope.headers == {"traceparent": "t", joins.TIMER: "join"}
    made = joins.joined(first.envelope)
    assert made.id == joins.joined(_child()).id
    assert joins.TIMER not in made.headers


def test_the_handler_is_told_what_is_missing_and_why() -> None:
    gathered = joins.Gathered(_child(), {2: b"", 0: b""}, 4)
    assert gathered.info() == {"total": 4, "missing": [1, 3], "reason": "join_timeout"}
    assert joins.Gathered(_child(), {0: b"", 1: b""}, 2).info() == {"total": 2, "missing": [], "reason": None}


def test_the_ledger_keeps_a_payload_or_a_claim() -> None:
    assert joins.unpack(joins.pack(_child(payload=None))) == (None, None)
    assert joins.unpack(joins.pack(_child(payload={"claim": 1}))) == (None, {"claim": 1})
    claim = Claim("claims/k", 1, "c")
    assert joins.unpack(joins.pack(_child(payload=None, claim=claim))) == (claim, None)
    items = {0: joins.pack(_child()), 1: joins.pack(_child(payload=None, claim=claim))}
    assert joins.Gathered(_child(), items, 2).claims() == [claim]


def test_a_job_is_told_that_one_envelope_replaces_the_children() -> None:
    made = joins.joined(_child())
    assert joins.report(_child(), made) == [Joined(job_id="j", parent_id="parent", envelope_id=made.id)]
    assert joins.report(_child(job_id=None), made) == []


@pytest.mark.parametrize(
    "fields, waits",
    [
        ({"route": Route(["a", "b", "sum"], 1)}, True),
        ({"route": Route(["a", "b", "sum"], 2)}, False),
        ({"route": Route(["a", "b", "c"], 1)}, False),
        ({"route": Route(["a", "b", "sum"], 1), "branches": []}, False),
    ],
)
def test_a_failed_child_is_held_only_when_a_join_is_ahead(fields: dict[str, object], waits: bool) -> None:
    assert joins.waits_ahead(_child(**fields), frozenset({"sum"})) is waits
