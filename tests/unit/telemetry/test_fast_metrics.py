"""The metrics of the hot path are scraped as the client library's own would be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from groundplane.telemetry.fast_metrics import FastCounter, FastFamily, FastGauge, FastHistogram
from groundplane.telemetry.metrics import render

BOUNDS = (0.1, 1.0, 5.0)


def _scraped(registry: CollectorRegistry) -> list[str]:
    return [line for line in render(registry).decode().splitlines() if "_created" not in line]


@pytest.mark.req("MESH-22.1")
@given(values=st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0, 1.5, 5.0, 7.0]), max_size=12))
def test_a_histogram_counts_as_the_librarys_own(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = FastFamily("took", "Took.", ["actor"], lambda: FastHistogram(BOUNDS))
    ours.register(fast)
    slow = Histogram("took", "Took.", ["actor"], buckets=BOUNDS, registry=theirs)
    fast.of("a")
    slow.labels("a")
    for value in values:
        fast.of("a").observe(value)
        slow.labels("a").observe(value)
    assert _scraped(ours) == _scraped(theirs)


@pytest.mark.req("MESH-22.1", "MESH-22.3")
def test_counters_and_gauges_are_scraped_as_the_librarys_own() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    got, busy = FastFamily("got", "Got.", ["actor"], FastCounter), FastFamily("busy", "Busy.", ["actor"], FastGauge)
    ours.register(got)
    ours.register(busy)
    other_got = Counter("got", "Got.", ["actor"], registry=theirs)
    other_busy = Gauge("busy", "Busy.", ["actor"], registry=theirs)
    for name in ("a", "b", "a"):
        got.of(name).inc()
        other_got.labels(name).inc()
        busy.of(name).inc()
        other_busy.labels(name).inc()
    busy.of("a").dec()
    other_busy.labels("a").dec()
    assert got.of("a") is got.of("a")
    assert _scraped(ours) == _scraped(theirs)
