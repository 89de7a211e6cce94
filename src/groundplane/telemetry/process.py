"""The registry of a process: what every role exports beside its own metrics.

    registry = process_registry("sidecar", folder=state)

Build, process and machine; the pools of the backends; the calls of the ports; the health checks. Other metrics are
registered by whoever measures them.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from groundplane._version import __version__
from groundplane.core import pools
from groundplane.telemetry import calls, traces
from groundplane.telemetry.health import Health
from groundplane.telemetry.system import SystemCollector


def process_registry(role: str, *, folder: Path) -> CollectorRegistry:
    """A registry that holds what every process exports. `folder` lies on the disk whose space is told."""
    registry = CollectorRegistry()
    registry.register(BuildCollector(role))
    ProcessCollector(registry=registry)
    for one in (SystemCollector(folder), PoolCollector(), CallCollector(), SpanCollector()):
        registry.register(one)
    return registry


class BuildCollector(Collector):
    """`groundplane_build_info`: always 1, with the version, the Python and the role as labels."""

    def __init__(self, role: str) -> None:
        self._labels = [__version__, platform.python_version(), role]

    def describe(self) -> list[Metric]:
        """The name."""
        return [_build()]

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        family = _build()
        family.add_metric(self._labels, 1.0)
        yield family


class SpanCollector(Collector):
    """What became of this process's spans (`traces.statistics`); zeros while tracing is off."""

    def describe(self) -> list[Metric]:
        """The name."""
        return [_spans()]

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        family, found = _spans(), traces.statistics()
        for outcome, count in (("ended", found.ended), ("exported", found.exported), ("failed", found.failed)):
            family.add_metric([outcome], count)
        yield family


class PoolCollector(Collector):
    """The pools that backends of this process announced (`core.pools`)."""

    def describe(self) -> list[Metric]:
        """The names."""
        return list(_pools())

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        held, waiting, most, again = _pools()
        for one in pools.states():
            held.add_metric([one.backend, "in_use"], one.in_use)
            held.add_metric([one.backend, "idle"], one.idle)
            waiting.add_metric([one.backend], one.waiting)
            if one.size_max is not None:
                most.add_metric([one.backend], one.size_max)
            again.add_metric([one.backend], one.reconnects)
        yield from (held, waiting, most, again)


class CallCollector(Collector):
    """The calls of the ports of this process (`telemetry.calls`)."""

    def describe(self) -> list[Metric]:
        """The names."""
        return list(_calls())

    def collect(self) -> Iterator[Metric]:
        """What is scraped; methods that were never called are left out."""
        ended, took, active = _calls()
        under_way: dict[str, int] = {}
        for one in calls.methods():
            under_way[one.port] = under_way.get(one.port, 0) + one.active
            for outcome, count in list(one.outcomes.items()):
                ended.add_metric([one.port, one.operation, outcome], count)
            if one.outcomes:
                bounds = [*map(floatToGoString, (*calls.SECONDS, float("inf")))]
                buckets = list(zip(bounds, accumulate(one.counts), strict=True))
                took.add_metric([one.port, one.operation], buckets, one.total_s)
        for port, count in under_way.items():
            active.add_metric([port], count)
        yield from (ended, took, active)


class HealthCollector(Collector):
    """What the health checks found last: nothing of a check whose result is older than 60 s."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def describe(self) -> list[Metric]:
        """The names."""
        return list(_health())

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        ready, ok, took = _health()
        report = self._health.results()
        ready.add_metric([], float(report.ok and bool(report.verdicts)))
        for one in report.verdicts:
            ok.add_metric([one.name], float(one.ok))
            took.add_metric([one.name], one.latency_s)
        yield from (ready, ok, took)


def _spans() -> CounterMetricFamily:
    return CounterMetricFamily("groundplane_trace_spans", "Recorded spans by what became of them.", labels=["outcome"])


def _build() -> GaugeMetricFamily:
    return GaugeMetricFamily("groundplane_build_info", "Always 1.", labels=["version", "python", "role"])


def _pools() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily, CounterMetricFamily]:
    return (
        GaugeMetricFamily(
            "groundplane_pool_connections", "What the pool of a backend holds.", labels=["backend", "state"]
        ),
        GaugeMetricFamily("groundplane_pool_waiting", "Calls that wait for a connection.", labels=["backend"]),
        GaugeMetricFamily("groundplane_pool_connections_max", "Most that the pool may hold.", labels=["backend"]),
        CounterMetricFamily("groundplane_pool_reconnects", "Connections made again.", labels=["backend"]),
    )


def _calls() -> tuple[CounterMetricFamily, HistogramMetricFamily, GaugeMetricFamily]:
    return (
        CounterMetricFamily(
            "groundplane_port_calls", "Calls of a port that ended.", labels=["port", "operation", "outcome"]
        ),
        HistogramMetricFamily(
            "groundplane_port_call_seconds", "From the call to its end, with retries.", labels=["port", "operation"]
        ),
        GaugeMetricFamily("groundplane_port_calls_active", "Calls of a port under way.", labels=["port"]),
    )


def _health() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("groundplane_ready", "1 where every health check was fine when it was run last.", labels=[]),
        GaugeMetricFamily("groundplane_health_check_ok", "1 where the check was fine.", labels=["check"]),
        GaugeMetricFamily("groundplane_health_check_seconds", "How long the check took.", labels=["check"]),
    )


__all__ = ["HealthCollector", "process_registry"]
