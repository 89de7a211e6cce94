"""What a rule looks at, twice: as a value of the points of this process, and as PromQL for a server.

    Level       the newest value of each series, folded: the largest, the least, the sum
    Share       one level divided by another, both summed up
    Increase    by how much counters rose within a window
    Ratio       one increase divided by another, where there was enough to divide by
    Quantile    a quantile of a histogram within a window, interpolated as `histogram_quantile` does

`by` names the labels that stay; there is one value for each combination of theirs. `where` picks series: a regular
expression of a whole label, with `!` before it one that must not match.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

import msgspec

from groundplane.telemetry.series import Labels, Points, Series

STALE_S = 300.0
"""A level that is older is none: https://prometheus.io/docs/prometheus/latest/querying/basics/#staleness"""
Values: TypeAlias = dict[Labels, float]
_FOLDS: dict[str, Callable[[list[float]], float]] = {"max": max, "min": min, "sum": math.fsum}


class _Expression(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    by: list[str] = []
    where: dict[str, str] = {}


class Level(_Expression, tag="level", frozen=True, kw_only=True):
    """The newest value."""

    metric: str
    fold: Literal["max", "min", "sum"] = "max"

    def names(self) -> set[str]:
        """The metrics that are looked at."""
        return {self.metric}

    def promql(self) -> str:
        """For Prometheus."""
        return f"{self.fold}{_by(self.by)} ({self.metric}{_selector(self.where)})"

    def values(self, points: Points, now_s: float) -> Values:
        """Now."""
        found = ((one, one.last(now_s - STALE_S, now_s)) for one in points.select(self.metric, self.where))
        return _folded(found, self.by, _FOLDS[self.fold])


class Increase(_Expression, tag="increase", frozen=True, kw_only=True):
    """How much counters rose."""

    metric: str
    window_s: float

    def names(self) -> set[str]:
        """The metrics that are looked at."""
        return {self.metric}

    def promql(self) -> str:
        """For Prometheus."""
        return f"sum{_by(self.by)} (increase({self.metric}{_selector(self.where)}[{_window(self.window_s)}]))"

    def values(self, points: Points, now_s: float) -> Values:
        """Within the window that ends now."""
        chosen = points.select(self.metric, self.where)
        return _folded(((one, one.increase(now_s - self.window_s, now_s)) for one in chosen), self.by, math.fsum)


class Ratio(_Expression, tag="ratio", frozen=True, kw_only=True):
    """`part` by `whole`, where the whole rose by `at_least`. `where` is of the part."""

    part: str
    whole: str
    window_s: float
    at_least: float = 1.0

    def names(self) -> set[str]:
        """The metrics that are looked at."""
        return {self.part, self.whole}

    def promql(self) -> str:
        """For Prometheus."""
        part, whole = self._parts()
        return f"{part.promql()} / ({whole.promql()} >= {self.at_least:g})"

    def values(self, points: Points, now_s: float) -> Values:
        """Within the window that ends now."""
        part, whole = (one.values(points, now_s) for one in self._parts())
        return {
            labels: part[labels] / value for labels, value in whole.items() if value >= self.at_least and labels in part
        }

    def _parts(self) -> tuple[Increase, Increase]:
        return (
            Increase(metric=self.part, window_s=self.window_s, by=self.by, where=self.where),
            Increase(metric=self.whole, window_s=self.window_s, by=self.by),
        )


class Quantile(_Expression, tag="quantile", frozen=True, kw_only=True):
    """A quantile of a histogram, named without `_bucket`."""

    metric: str
    q: float
    window_s: float

    def names(self) -> set[str]:
        """The metrics that are looked at."""
        return {f"{self.metric}_bucket"}

    def promql(self) -> str:
        """For Prometheus."""
        rates = f"rate({self.metric}_bucket{_selector(self.where)}[{_window(self.window_s)}])"
        return f"histogram_quantile({self.q:g}, sum{_by([*self.by, 'le'])} ({rates}))"

    def values(self, points: Points, now_s: float) -> Values:
        """Within the window that ends now; no value where nothing was observed."""
        chosen = points.select(f"{self.metric}_bucket", self.where)
        risen = ((one, one.increase(now_s - self.window_s, now_s)) for one in chosen)
        buckets: dict[Labels, list[tuple[float, float]]] = {}
        for labels, count in _folded(risen, [*self.by, "le"], math.fsum).items():
            rest = tuple(pair for pair in labels if pair[0] != "le")
            buckets.setdefault(rest, []).append((float(dict(labels).get("le", "nan")), count))
        found = {labels: histogram_quantile(self.q, sorted(of_one)) for labels, of_one in buckets.items()}
        return {labels: value for labels, value in found.items() if not math.isnan(value)}


class Share(_Expression, tag="share", frozen=True, kw_only=True):
    """One level by another, both summed up: how much of what may be used is. `where` is of both."""

    part: str
    whole: str

    def names(self) -> set[str]:
        """The metrics that are looked at."""
        return {self.part, self.whole}

    def promql(self) -> str:
        """For Prometheus."""
        part, whole = self._parts()
        return f"{part.promql()} / ({whole.promql()} > 0)"

    def values(self, points: Points, now_s: float) -> Values:
        """Now."""
        part, whole = (one.values(points, now_s) for one in self._parts())
        return {labels: part[labels] / value for labels, value in whole.items() if value > 0 and labels in part}

    def _parts(self) -> tuple[Level, Level]:
        return (
            Level(metric=self.part, fold="sum", by=self.by, where=self.where),
            Level(metric=self.whole, fold="sum", by=self.by, where=self.where),
        )


Expression: TypeAlias = Level | Share | Increase | Ratio | Quantile


def histogram_quantile(q: float, buckets: list[tuple[float, float]]) -> float:
    """As Prometheus has it: linear within a bucket, the highest finite bound for what lies above it, NaN for nothing.

    `buckets` are upper bounds, rising to infinity, and the counts of all values up to them
    (https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile).
    """
    if len(buckets) < 2 or not buckets[-1][1] > 0 or not math.isinf(buckets[-1][0]):
        return math.nan
    rank = q * buckets[-1][1]
    index = next(index for index, (_, count) in enumerate(buckets) if count >= rank)
    if index == len(buckets) - 1:
        return buckets[-2][0]
    bound, count = buckets[index]
    if index == 0 and bound <= 0:
        return bound
    below, before = buckets[index - 1] if index else (0.0, 0.0)
    if count == before:
        return below
    return below + (bound - below) * (rank - before) / (count - before)


def _folded(
    found: Iterable[tuple[Series, float | None]], by: list[str], fold: Callable[[list[float]], float]
) -> Values:
    groups: dict[Labels, list[float]] = {}
    for series, value in found:
        if value is not None:
            labels = dict(series.labels)
            kept = tuple((name, labels[name]) for name in sorted(by) if labels.get(name))
            groups.setdefault(kept, []).append(value)
    return {labels: fold(values) for labels, values in groups.items()}


def _by(labels: list[str]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def _selector(where: Mapping[str, str]) -> str:
    parts = []
    for label, wanted in where.items():
        operator = "!~" if wanted.startswith("!") else "=~"
        text = wanted.removeprefix("!").replace("\\", "\\\\").replace('"', '\\"')
        parts.append(f'{label}{operator}"{text}"')
    return "{" + ", ".join(parts) + "}" if parts else ""


def _window(seconds: float) -> str:
    return f"{round(seconds)}s"
