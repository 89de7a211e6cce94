"""Metrics for the hot path: plain numbers in one loop, turned into samples when they are scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class FastCounter:
    """A counter of one series."""

    __slots__ = ("value",)
    kind: ClassVar[Any] = CounterMetricFamily

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add."""
        self.value += amount

    def sample(self) -> tuple[float]:
        """What is scraped of it."""
        return (self.value,)


class FastGauge(FastCounter):
    """A gauge of one series."""

    __slots__ = ()
    kind = GaugeMetricFamily

    def set(self, value: float) -> None:
        """Set."""
        self.value = float(value)

    def dec(self) -> None:
        """Take one away."""
        self.value -= 1.0


class FastHistogram:
    """A histogram of one series."""

    __slots__ = ("_bounds", "counts", "total")
    kind: ClassVar[Any] = HistogramMetricFamily

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(float(bound) for bound in bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Put a value in."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def sample(self) -> tuple[list[tuple[str, float]], float]:
        """What is scraped of it: upper bounds with what lies below each, and the sum."""
        total = 0
        found: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, float("inf")), self.counts, strict=True):
            total += count
            found.append((floatToGoString(bound), float(total)))  # type: ignore[no-untyped-call]
        return found, self.total


Series = TypeVar("Series", FastCounter, FastGauge, FastHistogram)


class FastFamily(Collector, Generic[Series]):
    """A metric with labels; `make` makes a series, each once."""

    def __init__(self, name: str, text: str, labels: Sequence[str], make: Callable[[], Series]) -> None:
        self._name = name
        self._text = text
        self._labels = list(labels)
        self._make: Callable[[], Series] = make
        self._series: dict[tuple[str, ...], Series] = {}

    def of(self, *values: str) -> Series:
        """The series of these values of the labels."""
        return self._series.get(values) or self._series.setdefault(values, self._make())

    def describe(self) -> list[Metric]:
        """The empty metric: the registry learns the names from it."""
        return [self._empty()]

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        family = self._empty()
        for values, one in self._series.items():
            family.add_metric(values, *one.sample())
        yield family

    def _empty(self) -> Any:
        return self._make().kind(self._name, self._text, labels=self._labels)
