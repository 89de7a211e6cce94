"""Metrics of an application: summaries in bounded memory, statistics of operations, bounds on labels."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.core.errors import AlreadyExists, InvalidArgument, ResourceExhausted
from groundplane.telemetry.measures import WINDOW_S, Metrics, Summary
from groundplane.telemetry.metrics import new_registry, render
from groundplane.telemetry.sketch import RELATIVE_ERROR, Sketch
from groundplane.testing.clock import VirtualClock


@pytest.mark.req("TEL-02.2")
def test_five_operations_of_which_one_fails_are_five_four_one_and_four_fifths() -> None:
    metrics = Metrics(new_registry())
    for number in range(5):
        try:
            with metrics.operation("search"):
                if number == 3:
                    raise LookupError("gone")
        except LookupError:
            continue
    found = metrics.statistics()["search"]
    assert (found.total, found.succeeded, found.failed, found.success_rate) == (5, 4, 1, 0.8)


@pytest.mark.req("TEL-02.1")
def test_a_million_values_take_no_more_memory_than_one_and_stay_below_a_mebibyte() -> None:
    summary = Summary()
    summary.observe(0.1)
    before, draw = summary.size_bytes, random.Random(1)
    for _ in range(200_000):
        summary.observe(draw.expovariate(10))
    assert summary.size_bytes == before < 1024 * 1024


@pytest.mark.req("TEL-02.1")
def test_the_four_quantiles_are_within_one_percent_of_the_exact_ones() -> None:
    summary, draw = Summary(), random.Random(2)
    values = sorted(draw.lognormvariate(-3, 1.5) for _ in range(20_000))
    for value in values:
        summary.observe(value)
    for q, found in summary.quantiles().items():
        exact = values[max(1, math.ceil(q * len(values))) - 1]
        assert found == pytest.approx(exact, rel=RELATIVE_ERROR * 1.001), q


@given(st.lists(st.floats(1e-8, 1e8), min_size=1, max_size=200), st.floats(0, 1))
def test_any_quantile_of_any_values_is_within_the_stated_error(values: list[float], q: float) -> None:
    sketch, other = Sketch(), Sketch()
    for number, value in enumerate(values):
        (sketch if number % 2 else other).add(value)
    sketch.merge(other)
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert sketch.quantile(q) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.001)


def test_values_outside_the_range_are_kept_at_its_ends_and_others_are_refused() -> None:
    sketch = Sketch()
    sketch.add(0)
    assert sketch.quantile(0.5) == 0
    sketch.add(1e30)
    assert sketch.quantile(1.0) >= 1e9 * 0.98
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(InvalidArgument, match="value: "):
            sketch.add(value)


def test_a_summary_forgets_what_is_older_than_its_window_but_counts_it() -> None:
    clock = VirtualClock()
    summary = Summary(clock)
    summary.observe(100.0)
    clock.advance(WINDOW_S / 2)
    summary.observe(1.0)
    assert summary.quantiles(1.0)[1.0] == pytest.approx(100, rel=0.011)
    clock.advance(WINDOW_S / 2 + 1)
    assert summary.quantiles(1.0)[1.0] == pytest.approx(1, rel=0.011)
    clock.advance(WINDOW_S * 100)
    assert math.isnan(summary.quantiles(0.5)[0.5])
    assert (summary.count, summary.total) == (2, 101.0)


@pytest.mark.req("TEL-02.1")
def test_each_kind_is_exposed_as_prometheus_expects_it() -> None:
    registry, clock = new_registry(), VirtualClock()
    metrics = Metrics(registry, prefix="acme", clock=clock)
    metrics.counter("orders", "Orders.", ("kind",)).of(kind="book").inc(2)
    metrics.gauge("stock", "Stock.").of().set(7)
    metrics.histogram("size_bytes", "Sizes.", bounds=(10, 100)).of().observe(50)
    with metrics.summary("search_seconds", "Searches.").of().time():
        clock.advance(0.25)
    shown = render(registry).decode()
    assert 'acme_orders_total{kind="book"} 2.0' in shown
    assert "acme_stock 7.0" in shown
    assert 'acme_size_bytes_bucket{le="100.0"} 1.0' in shown
    assert "# TYPE acme_search_seconds summary" in shown
    quantiles = [line for line in shown.splitlines() if line.startswith("acme_search_seconds{")]
    assert [line.split('"')[1] for line in quantiles] == ["0.5", "0.9", "0.95", "0.99"]
    assert all(float(line.split()[-1]) == pytest.approx(0.25, rel=0.01) for line in quantiles)
    assert "acme_search_seconds_count 1.0" in shown


@pytest.mark.req("TEL-01.2")
def test_the_series_over_the_thousandth_is_refused_by_name() -> None:
    metrics = Metrics(new_registry())
    counter = metrics.counter("visits", "Visits.", ("page",))
    for number in range(1000):
        counter.of(page=str(number)).inc()
    counter.of(page="7").inc()
    with pytest.raises(ResourceExhausted, match="series 1001 of 'groundplane_app_visits'"):
        counter.of(page="1000")


def test_declarations_that_cannot_be_are_refused() -> None:
    metrics = Metrics(new_registry())
    metrics.counter("visits", "Visits.")
    with pytest.raises(AlreadyExists, match="declared twice"):
        metrics.gauge("visits", "Again.")
    with pytest.raises(InvalidArgument, match="name: 'groundplane_app_a-b'"):
        metrics.gauge("a-b", "Bad.")
    with pytest.raises(InvalidArgument, match="labels: "):
        metrics.counter("other", "Other.", ("kind",)).of(sort="book")
