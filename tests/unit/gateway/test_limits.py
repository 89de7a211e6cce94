"""Limits per caller: the bucket, the streams, what is kept in mind."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.core.errors import ResourceExhausted
from groundplane.gateway.limits import Limiter, Limits, principal_of
from groundplane.gateway.settings import GatewaySettings

NONE = Limits(rate=None, live_jobs=None, streams=None)


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refusal(limiter: Limiter, principal: str = "me") -> ResourceExhausted | None:
    try:
        limiter.admit(principal)
    except ResourceExhausted as error:
        return error
    return None


@pytest.mark.req("GATE-09.1")
def test_a_burst_passes_then_requests_pass_at_the_rate_and_the_wait_that_is_told_is_exact() -> None:
    clock = Time()
    limiter = Limiter(Limits(rate=4.0, burst=3), clock=clock)
    assert [refusal(limiter) for _ in range(3)] == [None, None, None]
    refused = refusal(limiter)
    assert refused is not None
    assert (refused.reason, refused.retryable) == ("rate_exceeded", True)
    assert refused.details == {"limit": "rate", "max": 4.0, "burst": 3, "retry_after_s": 0.25}
    clock.now += 0.2499
    assert refusal(limiter) is not None
    clock.now += 0.0001
    assert refusal(limiter) is None
    assert refusal(limiter) is not None
    clock.now += 60
    assert [refusal(limiter) is None for _ in range(4)] == [True, True, True, False]


@pytest.mark.req("GATE-09.1")
@given(
    rate=st.floats(0.5, 200),
    burst=st.integers(1, 50),
    steps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
@settings(max_examples=60, deadline=None)
def test_no_window_lets_more_through_than_burst_and_rate_allow(rate: float, burst: int, steps: list[float]) -> None:
    clock = Time()
    limiter = Limiter(Limits(rate=rate, burst=burst), clock=clock)
    passed: list[float] = []
    for step in steps:
        clock.now += step
        refused = refusal(limiter)
        if refused is None:
            passed.append(clock.now)
        else:  # who waits as told passes
            clock.now += refused.details["retry_after_s"] + 1e-6
            assert refusal(limiter) is None
            passed.append(clock.now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - passed[first]) + 1e-3


@pytest.mark.req("GATE-09.1")
def test_callers_have_buckets_of_their_own() -> None:
    limiter = Limiter(Limits(rate=1.0, burst=1), clock=Time())
    assert refusal(limiter, "a") is None
    assert refusal(limiter, "a") is not None
    assert refusal(limiter, "b") is None


@pytest.mark.req("GATE-09.1")
def test_idle_callers_are_forgotten_and_no_more_than_the_bound_are_kept() -> None:
    clock = Time()
    limiter = Limiter(Limits(rate=1.0, burst=10), clock=clock, callers_max=50)
    for n in range(500):
        limiter.admit(f"caller {n}")
    assert len(limiter) == 50
    clock.now += 1.5
    limiter.admit("another")
    assert len(limiter) == 1


@pytest.mark.req("GATE-09.1")
def test_a_caller_that_is_still_throttled_is_not_forgotten_for_quieter_ones() -> None:
    clock = Time()
    limiter = Limiter(Limits(rate=1.0, burst=2), clock=clock, callers_max=3)
    for name in ("greedy", "greedy", "b", "c"):
        limiter.admit(name)
    assert refusal(limiter, "greedy") is not None
    assert len(limiter) == 3


@pytest.mark.req("GATE-09.1")
def test_streams_are_counted_per_caller_and_let_go_of() -> None:
    counted: Counter[str] = Counter()
    limiter = Limiter(Limits(streams=2), refused=lambda limit: counted.update([limit]))
    with limiter.stream("me"), limiter.stream("me"), limiter.stream("you"):
        with (
            pytest.raises(ResourceExhausted, match="streams: 2 of this caller are open") as caught,
            limiter.stream("me"),
        ):
            pass
        assert (caught.value.reason, caught.value.details) == ("too_many_streams", {"limit": "streams", "max": 2})
    with limiter.stream("me"), limiter.stream("me"):
        pass
    assert repr(limiter) == "<Limiter 0 callers, 0 streams>"
    assert counted == {"streams": 1}


@pytest.mark.req("GATE-09.1")
def test_no_limit_limits_nothing_and_keeps_nothing() -> None:
    limiter = Limiter(NONE)
    for _ in range(1000):
        limiter.admit("me")
    with limiter.stream("me"):
        assert (len(limiter), repr(limiter)) == (0, "<Limiter 0 callers, 0 streams>")


@pytest.mark.req("GATE-09.1")
def test_the_defaults_hold_where_callers_are_authenticated_and_settings_win() -> None:
    unset = GatewaySettings()
    assert Limits.of(unset, authenticated=True) == Limits(rate=50.0, burst=100, live_jobs=100, streams=20)
    assert Limits.of(unset, authenticated=False) == NONE
    given = GatewaySettings(rate=5.0, burst=7, live_jobs="none", streams=3)
    for authenticated in (False, True):
        assert Limits.of(given, authenticated=authenticated) == Limits(rate=5.0, burst=7, live_jobs=None, streams=3)


def test_the_principal_is_that_of_the_caller_in_the_state() -> None:
    class Caller:
        principal = "key:7"

    assert principal_of({"state": {"caller": Caller()}}) == "key:7"
    assert (principal_of({}), principal_of({"state": {}})) == ("", "")
