"""Counters and histograms for the hot path: plain numbers in one loop, turned into samples when they are scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class FastCounter:
    """A counter of one series."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add."""
        self.value += amount


class FastHistogram:
    """A histogram of one series."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Put a value in."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class FastFamily(Collector):
    """A metric with one label; its series are made once each, with `labels`."""

    def __init__(self, name: str, text: str, label: str, bounds: Sequence[float] | None = None) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._bounds = None if bounds is None else tuple(float(bound) for bound in bounds)
        self._counters: dict[str, FastCounter] = {}
        self._histograms: dict[str, FastHistogram] = {}

    def counter(self, value: str) -> FastCounter:
        """The counter of one value of the label."""
        return self._counters.setdefault(value, FastCounter())

    def histogram(self, value: str) -> FastHistogram:
        """The histogram of one value of the label."""
        return self._histograms.setdefault(value, FastHistogram(self._bounds or ()))

    def describe(self) -> list[Metric]:
        """The empty metric: the registry learns the names from it."""
        if self._bounds is None:
            return [CounterMetricFamily(self._name, self._text, labels=[self._label])]
        return [HistogramMetricFamily(self._name, self._text, labels=[self._label])]

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        if self._bounds is None:
            counters = CounterMetricFamily(self._name, self._text, labels=[self._label])
            for value, counter in self._counters.items():
                counters.add_metric([value], counter.value)
            yield counters
            return
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        for value, histogram in self._histograms.items():
            family.add_metric([value], _buckets(self._bounds, histogram.counts), histogram.total)
        yield family


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    total = 0
    found: list[tuple[str, float]] = []
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        total += count
        found.append((floatToGoString(bound), float(total)))  # type: ignore[no-untyped-call]
    return found
