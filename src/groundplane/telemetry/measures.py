"""Metrics of an application: counters, gauges, histograms, timed summaries, and statistics of operations.

    metrics = Metrics(registry, prefix="acme")
    orders = metrics.counter("orders", "Orders taken.", labels=("kind",))
    orders.inc(kind="book")
    with metrics.operation("search"):            # counted, timed, and its failures apart
        …
    metrics.statistics()["search"]               # total, succeeded, failed, success_rate, p50 … p99

Everything is bounded: at most `SERIES_MAX` series of a metric, `METRICS_MAX` metrics, and a summary has a fixed size
below 1 MiB. What is over a bound raises `resource_exhausted`, which no label of your own code should ever meet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import AlreadyExists, InvalidArgument, ResourceExhausted
from groundplane.telemetry.fast_metrics import FastCounter, FastFamily, FastGauge, FastHistogram
from groundplane.telemetry.metrics import SECONDS, SERIES_MAX
from groundplane.telemetry.sketch import Sketch

METRICS_MAX = 1000
QUANTILES = (0.5, 0.9, 0.95, 0.99)
WINDOW_S = 600.0
"""A summary tells of the values of the last ten minutes."""
_PARTS = 5
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}\Z")

Kind = TypeVar("Kind")


class OperationStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of one operation since the start, and how long those of the last ten minutes took, in seconds (NaN where
    there was none). `success_rate` is 0 to 1, and 1 where nothing was called.
    """

    total: int
    succeeded: int
    failed: int
    success_rate: float
    p50: float
    p90: float
    p95: float
    p99: float


class Summary:
    """Quantiles of the values of the last ten minutes: five sketches, of which the oldest is dropped every two minutes.

    Its size is fixed (83 kB), and so is its error: see `telemetry.sketch`. `count` and `total` are of all values.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._parts = [Sketch() for _ in range(_PARTS)]
        self._turned_at = clock.monotonic()
        self.count = 0
        self.total = 0.0

    @property
    def size_bytes(self) -> int:
        """The memory of the values."""
        return sum(one.size_bytes for one in self._parts)

    def observe(self, value: float) -> None:
        """Put a value of 0 or more in."""
        self._turn()
        self._parts[-1].add(value)
        self.count += 1
        self.total += value

    @contextmanager
    def time(self) -> Iterator[None]:
        """Put in how long the block took, in seconds, however it ended."""
        began = self._clock.monotonic()
        try:
            yield
        finally:
            self.observe(self._clock.monotonic() - began)

    def quantiles(self, *wanted: float) -> dict[float, float]:
        """Those quantiles of the window; p50, p90, p95 and p99 where none is named."""
        self._turn()
        whole = Sketch()
        for one in self._parts:
            whole.merge(one)
        return {q: whole.quantile(q) for q in wanted or QUANTILES}

    def _turn(self) -> None:
        part_s = WINDOW_S / _PARTS
        passed = int((self._clock.monotonic() - self._turned_at) / part_s)
        if passed <= 0:
            return
        self._turned_at += passed * part_s
        for _ in range(min(passed, _PARTS)):
            oldest = self._parts.pop(0)
            oldest.clear()
            self._parts.append(oldest)


class Labelled(Generic[Kind]):
    """A metric with labels: the same series for the same values."""

    def __init__(self, name: str, labels: Sequence[str], make: Callable[[tuple[str, ...]], Kind]) -> None:
        self.name = name
        self.labels = tuple(labels)
        self._make = make
        self.series: dict[tuple[str, ...], Kind] = {}

    def of(self, **labels: str) -> Kind:
        """The series of these values. `invalid_argument` where others than the declared labels are given,
        `resource_exhausted` for the 1,001st series.
        """
        if set(labels) != set(self.labels):
            raise InvalidArgument(f"labels: {sorted(labels)!r} are not those of {self.name!r}: {list(self.labels)!r}")
        values = tuple(str(labels[name]) for name in self.labels)
        found = self.series.get(values)
        if found is None:
            if len(self.series) >= SERIES_MAX:
                raise ResourceExhausted(
                    f"labels: {values!r} would be series {SERIES_MAX + 1} of {self.name!r}; use labels with few values",
                    reason="too_many_series",
                )
            found = self.series[values] = self._make(values)
        return found


class Metrics:
    """The metrics of an application in one registry. From one thread, or one event loop."""

    def __init__(
        self, registry: CollectorRegistry, *, prefix: str = "groundplane_app", clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._registry = registry
        self._prefix = prefix
        self._clock = clock
        self._names: set[str] = set()
        self._operations: Labelled[_Operation] | None = None

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Labelled[FastCounter]:
        """A number that only rises. Its name has no `_total`: the exposition adds that."""
        return self._family(name, text, labels, FastCounter)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Labelled[FastGauge]:
        """A number that goes up and down."""
        return self._family(name, text, labels, FastGauge)

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), bounds: Sequence[float] = SECONDS
    ) -> Labelled[FastHistogram]:
        """Counts below bounds, which a server can add up over processes."""
        return self._family(name, text, labels, lambda: FastHistogram(bounds))

    def summary(self, name: str, text: str, labels: Sequence[str] = ()) -> Labelled[Summary]:
        """Quantiles of the last ten minutes of this process; they cannot be added up over processes."""
        full = self._take(name, labels)
        made: Labelled[Summary] = Labelled(full, labels, lambda _: Summary(self._clock))
        self._registry.register(_SummaryCollector(full, text, made))
        return made

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Count and time a block as one call of the operation; one that raises has failed."""
        one = self._operation(name)
        began = self._clock.monotonic()
        try:
            yield
        except BaseException:
            one.failed.inc()
            raise
        else:
            one.succeeded.inc()
        finally:
            one.seconds.observe(self._clock.monotonic() - began)

    def statistics(self) -> dict[str, OperationStatistics]:
        """Each operation that was called."""
        series = self._operations.series if self._operations is not None else {}
        return {name: one.statistics() for (name,), one in series.items()}

    def _operation(self, name: str) -> _Operation:
        if self._operations is None:
            calls = self.counter("operations", "Operations that ended.", ("operation", "outcome"))
            seconds = self.summary("operation_seconds", "How long operations took.", ("operation",))

            def make(values: tuple[str, ...]) -> _Operation:
                (operation,) = values
                succeeded = calls.of(operation=operation, outcome="ok")
                failed = calls.of(operation=operation, outcome="failed")
                return _Operation(succeeded, failed, seconds.of(operation=operation))

            self._operations = Labelled("operations", ("operation",), make)
        return self._operations.of(operation=name)

    def _family(self, name: str, text: str, labels: Sequence[str], make: Callable[[], Any]) -> Labelled[Any]:
        full = self._take(name, labels)
        family: FastFamily[Any] = FastFamily(full, text, labels, make)
        self._registry.register(family)
        return Labelled(full, labels, lambda values: family.of(*values))

    def _take(self, name: str, labels: Sequence[str]) -> str:
        full = f"{self._prefix}_{name}"
        for one in (full, *labels):
            if not _NAME.match(one):
                raise InvalidArgument(f"name: {one!r} is no name of a metric or label; use letters, digits and _")
        if full in self._names:
            raise AlreadyExists(f"name: {full!r} is declared twice; keep what the first declaration returned")
        if len(self._names) >= METRICS_MAX:
            raise ResourceExhausted(f"name: {full!r} would be metric {METRICS_MAX + 1}; use labels instead of names")
        self._names.add(full)
        return full


class _Operation:
    def __init__(self, succeeded: FastCounter, failed: FastCounter, seconds: Summary) -> None:
        self.succeeded, self.failed, self.seconds = succeeded, failed, seconds

    def statistics(self) -> OperationStatistics:
        succeeded, failed = int(self.succeeded.value), int(self.failed.value)
        total = succeeded + failed
        p50, p90, p95, p99 = self.seconds.quantiles().values()
        rate = succeeded / total if total else 1.0
        return OperationStatistics(
            total=total, succeeded=succeeded, failed=failed, success_rate=rate, p50=p50, p90=p90, p95=p95, p99=p99
        )


class _SummaryCollector(Collector):
    def __init__(self, name: str, text: str, summaries: Labelled[Summary]) -> None:
        self._name, self._text, self._summaries = name, text, summaries

    def describe(self) -> list[Metric]:
        return [Metric(self._name, self._text, "summary")]

    def collect(self) -> Iterator[Metric]:
        family = Metric(self._name, self._text, "summary")
        for values, one in list(self._summaries.series.items()):
            labels: Mapping[str, str] = dict(zip(self._summaries.labels, values, strict=True))
            for q, value in one.quantiles().items():
                if not math.isnan(value):
                    family.add_sample(self._name, {**labels, "quantile": f"{q:g}"}, value)
            family.add_sample(f"{self._name}_count", dict(labels), one.count)
            family.add_sample(f"{self._name}_sum", dict(labels), one.total)
        yield family


__all__ = ["QUANTILES", "Labelled", "Metrics", "OperationStatistics", "Summary"]
