"""What becomes of an envelope: every rule of routing, without a process or a clock."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.core.envelope import Branch, Claim, Envelope, Route
from groundplane.core.ids import child_id
from groundplane.core.retry import RetryPolicy
from groundplane.jobs.port import Note, Progress, Split
from groundplane.mesh.routing import (
    RETRY_SIGNAL,
    Decision,
    Failure,
    Output,
    Result,
    Router,
    Send,
    dedup_key,
    last_actor,
)
from groundplane.mesh.spec import ActorSpec, Limits

NOW = 1_000_000


def _router(name: str = "b", limits: Limits | None = None, **fields: Any) -> Router:
    return Router(ActorSpec(name=name, handler="m:f", **fields), limits, rand=lambda: 1.0)


def _envelope(actors: list[str] | None = None, current: int = 1, **fields: Any) -> Envelope:
    return Envelope(
        id="e", route=Route(actors or ["a", "b", "c"], current), payload={"in": 1}, created_at=5, root_id="e", **fields
    )


def _decide(outcome: Any, envelope: Envelope | None = None, attempt: int = 1, **fields: Any) -> Decision:
    return _router(**fields).decide(envelope or _envelope(), outcome, attempt=attempt, now_ms=NOW)


def _failure(reason: str = "processing_error", **fields: Any) -> Failure:
    return Failure(reason=reason, message="it broke", **fields)


@pytest.mark.req("MESH-01.2")
def test_one_output_continues_the_same_envelope_at_the_next_actor() -> None:
    decision = _decide(Result([Output({"out": 2})]), _envelope(attempt=3, headers={"h": 1}))
    assert decision.settlement == "ack"
    (send,) = decision.sends
    assert (send.queue, send.envelope.id, send.envelope.route) == ("c", "e", Route(["a", "b", "c"], 2))
    assert (send.envelope.payload, send.envelope.attempt, send.envelope.headers) == ({"out": 2}, 1, {"h": 1})


@pytest.mark.req("MESH-15.1")
@pytest.mark.parametrize("outputs", [1, 2])
def test_an_output_has_no_part_in_the_claim_of_its_input(outputs: int) -> None:
    envelope = _envelope(claim=Claim("claims/x", 9, "sum"))
    sends = _decide(Result([Output({"out": n}) for n in range(outputs)]), envelope).sends
    assert [(send.envelope.claim, send.envelope.payload) for send in sends] == [
        (None, {"out": n}) for n in range(outputs)
    ]


@pytest.mark.req("MESH-11")
def test_a_failure_is_no_early_end_whatever_the_envelope_was_before() -> None:
    (send,) = _decide(_failure(), _envelope(aborted=True, attempt=4)).sends
    assert (send.envelope.aborted, send.envelope.attempt) == (False, 1)


@pytest.mark.req("MESH-01.3")
def test_after_the_last_actor_comes_the_happy_end() -> None:
    (send,) = _decide(Result([Output(1)]), _envelope(["a", "b"])).sends
    assert (send.queue, send.envelope.route.current, send.envelope.aborted) == ("happy-end", 2, False)
    assert last_actor(send.envelope) == "b"


@pytest.mark.req("MESH-12.1", "MESH-02.2")
def test_several_outputs_are_children_with_deterministic_ids() -> None:
    decision = _decide(Result([Output("x"), Output("y")]), _envelope(job_id="j"))
    children = [send.envelope for send in decision.sends]
    assert [child.id for child in children] == [child_id("e", 1, 0), child_id("e", 1, 1)]
    assert {child.parent_id for child in children} == {child.root_id for child in children} == {"e"}
    assert [child.branches for child in children] == [[Branch("e", 1, 0, 2)], [Branch("e", 1, 1, 2)]]
    assert [child.payload for child in children] == ["x", "y"]
    assert Split(job_id="j", envelope_id="e", children=[child.id for child in children]) in decision.reports


@pytest.mark.req("MESH-02.2")
def test_a_fan_out_of_one_is_a_child_too() -> None:
    (send,) = _decide(Result([Output("x")], fanout=True)).sends
    assert send.envelope.id == child_id("e", 1, 0)


@pytest.mark.req("MESH-02.4")
def test_no_output_ends_at_the_happy_end_with_the_input_payload_and_its_claim() -> None:
    claim = Claim("claims/k", 1, "c")
    envelope = msgspec.structs.replace(_envelope(), payload=None, claim=claim)
    (send,) = _decide(Result([]), envelope).sends
    assert (send.queue, send.envelope.aborted, send.envelope.claim) == ("happy-end", True, claim)
    assert last_actor(send.envelope) == "b"


@pytest.mark.req("MESH-02.4")
def test_stopping_with_a_payload_ends_with_that_payload() -> None:
    (send,) = _decide(Result([], stopped_with=None), _envelope()).sends
    assert (send.envelope.payload, send.envelope.aborted) == (None, True)


@pytest.mark.req("MESH-01.4")
@pytest.mark.parametrize("current", [1, 2])
def test_the_future_of_a_route_may_be_edited(current: int) -> None:
    (send,) = _decide(Result([Output(1, Route(["a", "b", "x", "y"], current))])).sends
    assert (send.queue, send.envelope.route) == ("x", Route(["a", "b", "x", "y"], 2))


@pytest.mark.req("MESH-01.5")
@pytest.mark.parametrize(
    "route",
    [Route(["z", "b", "c"], 1), Route(["a", "z", "c"], 1), Route(["a"], 1), Route(["a", "b", "c"], 0),
     Route(["a", "b", "c"], 3), Route([], 0)],
)  # fmt: skip
def test_an_edited_past_is_a_route_error_and_a_dead_letter(route: Route) -> None:
    decision = _decide(Result([Output(1, route)]), retry=RetryPolicy(attempts=5))
    assert (decision.settlement, decision.reason) == ("reject", "route_error")
    assert decision.sends[0].queue == "error-end"
    assert decision.sends[0].envelope.payload == {"in": 1}


@pytest.mark.req("MESH-14")
def test_a_route_longer_than_hops_max_is_a_route_error_edited_or_received() -> None:
    limits = Limits(hops_max=3)
    longer = Result([Output(1, Route(["a", "b", "c", "d"], 1))])
    assert _decide(longer, limits=limits).reason == "route_error"
    refused = _router(limits=limits).refuse(_envelope(["a", "b", "c", "d"]), attempt=1, now_ms=NOW)
    assert refused is not None
    assert refused.reason == "route_error"
    assert _router(limits=limits).refuse(_envelope(), attempt=1, now_ms=NOW) is None


@pytest.mark.req("MESH-01.5")
def test_an_envelope_whose_turn_is_elsewhere_is_a_route_error() -> None:
    refused = _router("c").refuse(_envelope(), attempt=1, now_ms=NOW)
    assert refused is not None
    assert refused.reason == "route_error"


@pytest.mark.req("MESH-10.2")
@pytest.mark.parametrize("deadline, started", [(NOW - 1, False), (NOW, False), (NOW + 1, True), (None, True)])
def test_an_expired_envelope_is_not_started(deadline: int | None, started: bool) -> None:
    refused = _router().refuse(_envelope(deadline_at=deadline), attempt=1, now_ms=NOW)
    assert (refused is None) == started
    if refused is not None:
        assert (refused.reason, refused.settlement) == ("deadline_exceeded", "reject")


@pytest.mark.req("QUEUE-07")
@pytest.mark.parametrize("attempt, started", [(5, True), (6, False)])
def test_attempts_that_all_ended_in_crashes_are_told_to_the_error_end(attempt: int, started: bool) -> None:
    refused = _router().refuse(_envelope(), attempt=attempt, now_ms=NOW)
    assert (refused is None) == started
    if refused is not None:
        assert (refused.reason, refused.sends[0].queue) == ("attempts_exhausted", "error-end")


RETRIES = [
    # reason, fields of the failure, fields of the actor, attempts that are followed by another one
    ("processing_error", {}, {}, 0),
    ("processing_error", {}, {"retry": RetryPolicy(attempts=3)}, 2),
    ("processing_error", {"types": [RETRY_SIGNAL], "retryable": True}, {}, 4),
    ("processing_error", {"retryable": True}, {}, 0),
    ("processing_error", {"retryable": False}, {"retry": RetryPolicy(attempts=3)}, 0),
    ("connection_error", {}, {}, 4),
    ("runtime_crashed", {}, {}, 4),
    ("runtime_crashed", {}, {"retry": RetryPolicy(attempts=7)}, 6),
    ("oom_error", {}, {}, 1),
    ("cuda_oom_error", {}, {"retry": RetryPolicy(attempts=5)}, 1),
    ("timeout_error", {}, {"retry": RetryPolicy(attempts=5)}, 0),
    ("timeout_error", {}, {"retry": RetryPolicy(attempts=5), "retry_timeouts": True}, 4),
    ("msg_parsing_error", {}, {"retry": RetryPolicy(attempts=5)}, 0),
    ("route_error", {}, {"retry": RetryPolicy(attempts=5)}, 0),
    ("something_of_a_newer_runtime", {}, {"retry": RetryPolicy(attempts=2)}, 1),
]


@pytest.mark.req("MESH-06", "MESH-09.1")
@pytest.mark.parametrize("reason, failure, actor, again", RETRIES)
def test_how_often_a_failure_is_tried_again(
    reason: str, failure: dict[str, Any], actor: dict[str, Any], again: int
) -> None:
    settlements = [_decide(_failure(reason, **failure), attempt=n, **actor).settlement for n in range(1, 9)]
    assert settlements == ["nack"] * again + ["reject"] * (8 - again)


_PICKY = RetryPolicy(attempts=9, non_retryable=("LookupError",))


@pytest.mark.req("MESH-09.2")
@pytest.mark.parametrize(
    "failure, actor, final",
    [
        (_failure(), {}, "max_retries_exhausted"),
        (_failure(types=["a.B", "builtins.LookupError"]), {"retry": _PICKY}, "non_retryable"),
        (_failure("non_retryable", retryable=False), {}, "non_retryable"),
        (_failure("timeout_error"), {}, "timeout_error"),
        (_failure("msg_parsing_error", retryable=False), {}, "msg_parsing_error"),
        (_failure("payload_too_large", retryable=False), {}, "payload_too_large"),
        (_failure("effect_in_doubt"), {"retry": RetryPolicy(attempts=9)}, "effect_in_doubt"),
    ],
)  # fmt: skip
def test_a_final_failure_says_why_there_is_no_further_attempt(failure: Failure, actor: Any, final: str) -> None:
    decision = _decide(failure, attempt=1, **actor)
    assert (decision.settlement, decision.reason) == ("reject", final)
    error = decision.sends[0].envelope.error
    assert error is not None
    assert (error["reason"], error["message"]) == (failure.reason, "it broke")
    assert (error["details"]["final"], error["details"]["attempts"]) == (final, 1)


@pytest.mark.req("MESH-09.1")
def test_a_retry_waits_as_the_policy_says_with_full_jitter() -> None:
    policy = RetryPolicy(attempts=9, base_s=1.0, factor=2.0, cap_s=5.0)
    delays = [_decide(_failure(), attempt=n, retry=policy).delay_s for n in (1, 2, 3, 4)]
    assert delays == [1.0, 2.0, 4.0, 5.0]
    half = Router(ActorSpec(name="b", handler="", retry=policy), rand=lambda: 0.5)
    assert half.decide(_envelope(), _failure(), attempt=2, now_ms=NOW).delay_s == 1.0


def test_a_handler_may_say_when_to_try_again() -> None:
    signal = _failure(types=[RETRY_SIGNAL], retryable=True, retry_after_s=7.5)
    assert _decide(signal).delay_s == 7.5


@pytest.mark.req("MESH-09.2")
def test_a_retry_that_would_come_after_the_deadline_is_not_made() -> None:
    policy = RetryPolicy(attempts=9, base_s=1.0)
    in_time = _decide(_failure(), _envelope(deadline_at=NOW + 1001), retry=policy)
    too_late = _decide(_failure(), _envelope(deadline_at=NOW + 1000), retry=policy)
    assert in_time.settlement == "nack"
    assert (too_late.settlement, too_late.reason) == ("reject", "deadline_exceeded")
    assert too_late.error is not None
    assert too_late.error.reason == "processing_error"


@pytest.mark.req("MESH-11")
def test_a_failure_keeps_headers_ids_claim_payload_and_the_place_on_the_route() -> None:
    envelope = _envelope(headers={"traceparent": "t"}, parent_id="p", job_id="j", claim=Claim("claims/k", 3, "c"))
    (send,) = _decide(_failure(type="ValueError", traceback="tb"), envelope).sends
    kept = send.envelope
    assert (kept.id, kept.headers, kept.parent_id, kept.root_id, kept.job_id, kept.claim, kept.payload, kept.route) == (
        "e", {"traceparent": "t"}, "p", "e", "j", envelope.claim, {"in": 1}, envelope.route,
    )  # fmt: skip
    assert kept.error is not None
    assert (kept.error["type"], kept.error["traceback"], kept.error["code"]) == ("ValueError", "tb", "internal")


@pytest.mark.req("MESH-11")
def test_a_handler_changes_its_own_headers_and_never_those_of_the_mesh() -> None:
    envelope = _envelope(headers={"groundplane-job-token": "secret", "traceparent": "t", "mine": 1})
    edited = {"mine": 2, "new": 3, "groundplane-job-token": "forged", "groundplane-timer": "join"}
    (send,) = _decide(Result([Output(1, headers=edited)]), envelope).sends
    assert send.envelope.headers == {"groundplane-job-token": "secret", "traceparent": "t", "mine": 2, "new": 3}


@pytest.mark.req("MESH-06")
@pytest.mark.parametrize("data, shown", [(b"oops", {"text": "oops"}), (b"\xff\xfe", {"base64": "//4="})])
def test_unreadable_bytes_become_a_dead_letter_and_news_for_the_error_end(data: bytes, shown: Any) -> None:
    decision = _router().unreadable("id", data, "no map", reason="msg_parsing_error", now_ms=NOW)
    assert (decision.settlement, decision.reason, decision.sends[0].queue) == (
        "reject",
        "msg_parsing_error",
        "error-end",
    )
    assert (decision.sends[0].envelope.payload, decision.sends[0].envelope.id) == (shown, "id")


def test_without_a_job_nothing_is_reported() -> None:
    outcomes: list[Any] = [Result([Output(1), Output(2)]), Result([]), _failure()]
    assert [_decide(outcome).reports for outcome in outcomes] == [[], [], []]


@pytest.mark.req("JOB-05.1")
def test_a_job_is_told_of_completion_retries_and_dead_letters() -> None:
    envelope = _envelope(job_id="j")
    (done,) = _decide(Result([Output(1)]), envelope).reports
    assert done == Progress(job_id="j", envelope_id="e", hop=1, hops=3, actor="b", weight=100.0, status="completed")
    (again,) = _decide(_failure(), envelope, retry=RetryPolicy(attempts=2)).reports
    (dead,) = _decide(_failure(), envelope).reports
    assert isinstance(again, Note)
    assert isinstance(dead, Note)
    assert (again.kind, again.data["attempt"], dead.kind, dead.data["reason"]) == (
        "retry", 1, "dead_letter", "max_retries_exhausted",
    )  # fmt: skip


def test_too_many_children_are_refused() -> None:
    decision = _decide(Result([Output(n) for n in range(4)]), limits=Limits(fanout_max=3))
    assert (decision.settlement, decision.reason) == ("reject", "payload_too_large")


def test_the_dedup_key_is_the_id_and_the_hop_and_differs_after_a_redrive() -> None:
    assert (dedup_key(_envelope()), dedup_key(_envelope(), redrives=2)) == ("e:1", "e:1:r2")


names = st.sampled_from(["a", "b", "c", "d"])
routes = st.lists(names, min_size=1, max_size=8).flatmap(
    lambda actors: st.integers(0, len(actors) - 1).map(lambda current: Route(actors, current))
)
edits = st.one_of(st.none(), st.builds(Route, st.lists(names, max_size=8), st.integers(-1, 9)))
results = st.builds(Result, st.lists(st.builds(Output, st.integers(), edits), max_size=4), st.booleans())
failures = st.builds(
    Failure,
    reason=st.sampled_from(["processing_error", "oom_error", "timeout_error", "runtime_crashed", "route_error", "x"]),
    message=st.just("m"),
    retryable=st.sampled_from([None, True, False]),
)


@pytest.mark.req("MESH-01.4", "MESH-14", "MESH-11")
@given(
    route=routes,
    outcome=st.one_of(results, failures),
    attempt=st.integers(1, 20),
    allowed=st.integers(1, 8),
    job=st.sampled_from([None, "j"]),
)
def test_whatever_the_outcome_nothing_is_lost_and_the_past_never_changes(
    route: Route, outcome: Any, attempt: int, allowed: int, job: str | None
) -> None:
    envelope = Envelope(id="e", route=route, payload=0, created_at=1, job_id=job, headers={"groundplane-x": 1})
    router = Router(
        ActorSpec(name=str(route.actor), handler="", retry=RetryPolicy(attempts=allowed)), Limits(hops_max=8)
    )
    decision = router.decide(envelope, outcome, attempt=attempt, now_ms=NOW)
    queues = [send.queue for send in decision.sends]
    if decision.settlement == "ack":
        assert queues  # acked without a successor would be lost
    elif decision.settlement == "reject":
        assert queues == ["error-end"]
    else:
        assert not queues
        assert attempt < max(5, allowed)
    for send in decision.sends:
        _check_sent(envelope, send)
    assert len({(send.queue, dedup_key(send.envelope)) for send in decision.sends}) == len(decision.sends)


def _check_sent(envelope: Envelope, send: Send) -> None:
    sent = send.envelope
    done = envelope.route.current + 1
    assert sent.route.actors[:done] == envelope.route.past
    assert sent.route.current in (envelope.route.current, done)
    assert len(sent.route.actors) <= 8
    assert sent.headers == envelope.headers
    assert sent.job_id == envelope.job_id
    ends = {"happy-end": sent.aborted or sent.route.actor is None, "error-end": sent.error is not None}
    assert ends.get(send.queue, send.queue == sent.route.actor)
