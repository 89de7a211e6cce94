"""What metrics were, for a day: points in time, in memory, bounded, for rules that look back and for small plots.

    points = Points(names={"groundplane_ready"})
    points.record(samples, at_s=now)
    points.range("groundplane_ready", start_s=now - 3600, end_s=now)

Times are Unix seconds. It is no time series database: whoever wants more than a day, or more than one plane, has
Prometheus scrape the same metrics.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import lru_cache
from typing import TypeAlias

import msgspec

from groundplane.telemetry.metrics import SERIES_MAX

RETENTION_S = 86400.0
POINTS_MAX = 6000
"""Of one series: a day with one every 15 s, and some. The oldest goes for the newest."""

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Pairs of name and value, in the order of the names."""


class Sample(msgspec.Struct, frozen=True):
    """One value of one series, under the name that the exposition gives it (`…_total`, `…_bucket`)."""

    name: str
    labels: Labels
    value: float


class Series:
    """The points of one series, oldest first. `born` says that it came after the first recording of its name: a counter
    that is new then has risen from 0.
    """

    __slots__ = ("_times", "_values", "born", "labels")

    def __init__(self, labels: Labels, *, born: bool) -> None:
        self.labels = labels
        self.born = born
        self._times = array("d")
        self._values = array("d")

    def __len__(self) -> int:
        return len(self._times)

    def add(self, at_s: float, value: float) -> None:
        """A point; one that is not after the last is dropped."""
        if self._times and at_s <= self._times[-1]:
            return
        self._times.append(at_s)
        self._values.append(value)
        if len(self._times) > POINTS_MAX:
            self.born = False
            del self._times[0], self._values[0]

    def expire(self, before_s: float) -> int:
        """Forget the points before that time; how many."""
        count = bisect_left(self._times, before_s)
        if count:
            self.born = False
            del self._times[:count], self._values[:count]
        return count

    def between(self, start_s: float, end_s: float) -> list[tuple[float, float]]:
        """Time and value of the points from `start_s` to `end_s`, both included."""
        first, last = bisect_left(self._times, start_s), bisect_right(self._times, end_s)
        return list(zip(self._times[first:last], self._values[first:last], strict=True))

    def last(self, start_s: float, end_s: float) -> float | None:
        """The newest value of that time, or None."""
        index = bisect_right(self._times, end_s) - 1
        return self._values[index] if index >= 0 and self._times[index] >= start_s else None

    def increase(self, start_s: float, end_s: float) -> float | None:
        """By how much a counter rose in that time, over restarts of its process; None where nothing is known.

        The last value before `start_s` is where it rose from; a series that is new rose from 0. So, other than
        `increase()` of PromQL, the first failure counts, and nothing is extrapolated.
        """
        first, last = bisect_right(self._times, start_s), bisect_right(self._times, end_s)
        if last == 0 or (first == last and self._times[last - 1] < start_s):
            return None
        before = self._values[first - 1] if first else 0.0 if self.born else self._values[0]
        risen = 0.0
        for value in self._values[first:last]:
            risen += value - before if value >= before else value
            before = value
        return risen


class Points:
    """The points of some metrics. Used from one event loop.

    `names` are kept, others are passed over; of each at most 1,000 series, so that no label fills the memory.
    """

    def __init__(self, names: Set[str], *, retention_s: float = RETENTION_S) -> None:
        self._names = names
        self._retention_s = retention_s
        self._series: dict[str, dict[Labels, Series]] = {}
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<Points of {sum(map(len, self._series.values()))} series>"

    def record(self, samples: Iterable[Sample], at_s: float) -> None:
        """Take what was sampled at a time, and forget what is older than the retention."""
        known = set(self._series)
        for one in samples:
            if one.name not in self._names:
                continue
            of_name = self._series.setdefault(one.name, {})
            series = of_name.get(one.labels)
            if series is None:
                if len(of_name) >= SERIES_MAX:
                    self.dropped += 1
                    continue
                series = of_name[one.labels] = Series(one.labels, born=one.name in known)
            series.add(at_s, one.value)
        self.expire(at_s)

    def expire(self, now_s: float) -> int:
        """Forget the points that are older than the retention, and series without any; how many points."""
        gone = 0
        for of_name in self._series.values():
            for labels, series in list(of_name.items()):
                gone += series.expire(now_s - self._retention_s)
                if not len(series):
                    del of_name[labels]
        return gone

    def select(self, name: str, where: Mapping[str, str]) -> Iterator[Series]:
        """The series of a metric whose labels match: each value is a regular expression of the whole label, with `!`
        before it one that must not match. A label that is missing is empty.
        """
        matchers = [(label, _matcher(wanted)) for label, wanted in where.items()]
        for series in list(self._series.get(name, {}).values()):
            labels = dict(series.labels)
            if all(matches(labels.get(label, "")) for label, matches in matchers):
                yield series

    def range(
        self, name: str, *, start_s: float, end_s: float, where: Mapping[str, str] | None = None
    ) -> dict[Labels, list[tuple[float, float]]]:
        """The points of a metric between two times, by series."""
        found = {one.labels: one.between(start_s, end_s) for one in self.select(name, where or {})}
        return {labels: points for labels, points in found.items() if points}


@lru_cache(maxsize=1024)
def _matcher(wanted: str) -> Callable[[str], bool]:
    negated = wanted.startswith("!")
    pattern = re.compile(wanted.removeprefix("!"))
    return lambda value: (pattern.fullmatch(value) is None) is negated


def labels_of(pairs: Mapping[str, str]) -> Labels:
    """Labels in their order."""
    return tuple(sorted(pairs.items()))
