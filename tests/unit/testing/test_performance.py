"""The tracker of speed: percentiles, ratios to the peer, and what was lost since a baseline."""

from __future__ import annotations

import asyncio
import json

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.testing.performance import Tracker


def tracked(ours_s: float, peers_s: float = 0.001) -> Tracker:
    tracker = Tracker()
    for _ in range(10):
        tracker.note("put", "ours", ours_s)
        tracker.note("put", "raw", peers_s, peer=True)
    return tracker


@pytest.mark.req("KIT-07")
def test_percentiles_are_those_of_the_nearest_rank_and_throughput_is_of_the_time_taken() -> None:
    tracker = Tracker()
    for number in range(1, 101):
        tracker.note("get", "ours", number / 1000)
    (one,) = tracker.results()
    assert (one.p50_ms, one.p95_ms, one.p99_ms, one.max_ms) == pytest.approx((50, 95, 99, 100))
    assert one.per_s == pytest.approx(100 / 5.05)
    assert (one.ratio, one.latency_ratio) == (None, None)


@pytest.mark.req("KIT-07")
def test_a_batch_counts_as_many_operations_as_it_did() -> None:
    tracker = Tracker()
    tracker.note("put", "ours", 0.1, count=100)
    (one,) = tracker.results()
    assert (one.count, one.per_s, one.p50_ms) == pytest.approx((100, 1000, 1))
    with pytest.raises(InvalidArgument):
        tracker.note("put", "ours", -1)


@pytest.mark.req("KIT-07")
def test_results_stand_beside_the_peer_of_the_same_run_in_markdown_and_json() -> None:
    tracker = tracked(0.002)
    ours, raw = tracker.results()
    assert (ours.ratio, ours.latency_ratio, raw.ratio) == (pytest.approx(0.5), pytest.approx(2), None)
    assert "| put | ours | 500 | 2 | 2 | 2 | 0.5 × |" in tracker.markdown()
    assert [one["subject"] for one in json.loads(tracker.to_json())] == ["ours", "raw"]


@pytest.mark.req("KIT-07")
def test_a_ratio_that_fell_is_a_loss_and_a_slower_machine_is_none() -> None:
    baseline = json.loads(tracked(0.002).to_json())
    assert tracked(0.02, 0.01).losses(baseline, loss=0.1) == []
    assert tracked(0.0021).losses(baseline, loss=0.1) == []
    assert tracked(0.003).losses(baseline, loss=0.1) == ["put, ours: 0.333 × its peer, was 0.5"]


@pytest.mark.anyio
@pytest.mark.req("KIT-07")
async def test_a_load_of_several_callers_counts_its_whole_time() -> None:
    most = running = 0

    async def call() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    at_once = 0.0
    for _ in range(5):  # the best counts: one stall is longer than the whole load
        tracker = Tracker()
        await tracker.load("wait", "ours", call, count=40, callers=8)
        (one,) = tracker.results()
        assert (one.count, most) == (40, 8)
        assert one.p50_ms >= 10
        assert one.per_s < 8 / 0.01
        at_once = max(at_once, one.per_s * one.p50_ms / 1000)
    assert at_once > 2
