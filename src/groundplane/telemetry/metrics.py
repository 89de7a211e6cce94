"""Metrics: names of the mesh, in base units with bounded labels, and the registry that `/metrics` shows.

`prometheus_client` is imported when the first metric is made. Custom metrics of handlers are bounded: at most
`CUSTOM_METRICS_MAX` names and `SERIES_MAX` series of each; what is over is counted and dropped.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from groundplane.telemetry.fast_metrics import FastCounter, FastFamily, FastGauge, FastHistogram

SERIES_MAX = 1000
CUSTOM_METRICS_MAX = 100
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
BYTES = (256, 1024, 4096, 16384, 65536, 262144, 1048576, 16777216, 104857600)
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}\Z")


def new_registry() -> CollectorRegistry:
    """An empty registry: one for each process (tests: for each object)."""
    return CollectorRegistry()


def render(registry: CollectorRegistry) -> bytes:
    """The text that Prometheus reads."""
    return generate_latest(registry)


class _Families:
    """The metrics of all actors in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> FastFamily[FastCounter]:
            made = FastFamily(f"groundplane_actor_{name}", text, ("actor", *labels), FastCounter)
            registry.register(made)
            return made

        def histogram(name: str, text: str, bounds: tuple[float, ...]) -> FastFamily[FastHistogram]:
            made = FastFamily(f"groundplane_actor_{name}", text, ("actor",), partial(FastHistogram, bounds))
            registry.register(made)
            return made

        self.received = counter("messages_received", "Deliveries received.")
        self.processed = counter("messages_processed", "Calls that succeeded.")
        self.retries = counter("retries", "Deliveries handed back for another attempt.")
        self.dead = counter("dead_letters", "Messages that became dead letters here.")
        self.repeats = counter("repeats", "Deliveries that were handled before, and were not run again.")
        self.reports_lost = counter("reports_lost", "Progress reports that the job store did not take.")
        self.custom_refused = counter("custom_metrics_refused", "Values of custom metrics over a bound.")
        self.processing = histogram("processing_seconds", "From receipt to settlement.", SECONDS)
        self.runtime = histogram("runtime_seconds", "From the call to the runtime's answer.", SECONDS)
        self.receive = histogram("receive_seconds", "Waiting for messages.", SECONDS)
        self.send = histogram("send_seconds", "Sending and settling.", SECONDS)
        self.size = histogram("message_bytes", "Size of received messages.", BYTES)
        self.sent = counter("messages_sent", "Messages sent, by queue.", "queue")
        self.failed = counter("messages_failed", "Calls that failed, by reason.", "reason")
        self.active = FastFamily("groundplane_actor_active", "Deliveries being handled.", ("actor",), FastGauge)
        registry.register(self.active)
        self.concurrency = FastFamily(
            "groundplane_actor_concurrency", "Deliveries that may be handled at once.", ("actor",), FastGauge
        )
        registry.register(self.concurrency)


_families: weakref.WeakKeyDictionary[CollectorRegistry, _Families] = weakref.WeakKeyDictionary()


class ActorMetrics:
    """What a sidecar or an end actor measures (MESH-22). The children of the labels are made once."""

    def __init__(self, registry: CollectorRegistry, actor: str) -> None:
        families = _families.get(registry)
        if families is None:
            families = _families[registry] = _Families(registry)
        self.received = families.received.of(actor)
        self.processed = families.processed.of(actor)
        self.retries = families.retries.of(actor)
        self.dead = families.dead.of(actor)
        self.repeats = families.repeats.of(actor)
        self.reports_lost = families.reports_lost.of(actor)
        self.custom_refused = families.custom_refused.of(actor)
        self._sent = families.sent
        self._failed = families.failed
        self.processing = families.processing.of(actor)
        self.runtime = families.runtime.of(actor)
        self.receive = families.receive.of(actor)
        self.send = families.send.of(actor)
        self.size = families.size.of(actor)
        self.active = families.active.of(actor)
        self.concurrency = families.concurrency.of(actor)
        self.actor = actor
        self._labels: dict[str, set[str]] = {"queue": set(), "reason": set()}

    def sent(self, queue: str) -> None:
        """One message was sent to `queue`."""
        self._sent.of(self.actor, self._bounded("queue", queue)).inc()

    def failed(self, reason: str) -> None:
        """One call failed with `reason`."""
        self._failed.of(self.actor, self._bounded("reason", reason)).inc()

    def _bounded(self, label: str, value: str) -> str:
        known = self._labels[label]
        if value in known:
            return value
        if len(known) >= SERIES_MAX - 1:
            return "other"
        known.add(value)
        return value


class CustomMetrics:
    """Metrics that handlers declare by using them: `counter`, `gauge` or `histogram`, named `groundplane_custom_*`."""

    def __init__(self, registry: CollectorRegistry, actor: str) -> None:
        self._registry = registry
        self._actor = actor
        self._made: dict[str, tuple[str, tuple[str, ...], Any]] = {}
        self._series: dict[str, set[tuple[str, ...]]] = {}

    def record(self, name: str, kind: str, value: float, labels: Mapping[str, str]) -> bool:
        """Take one value. False when it is over a bound, or does not fit how the name was used first."""
        names = tuple(sorted(labels))
        metric = self._metric(name, kind, names)
        if metric is None:
            return False
        values = (self._actor, *(str(labels[label])[:128] for label in names))
        series = self._series[name]
        if values not in series:
            if len(series) >= SERIES_MAX:
                return False
            series.add(values)
        return _apply(metric.labels(*values), kind, float(value))

    def _metric(self, name: str, kind: str, labels: tuple[str, ...]) -> Any:
        known = self._made.get(name)
        if known is not None:
            return known[2] if known[:2] == (kind, labels) else None
        factory = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}.get(kind)
        fits = factory and _NAME.match(name) and all(_NAME.match(label) and label != "actor" for label in labels)
        if not fits or len(self._made) >= CUSTOM_METRICS_MAX or factory is None:
            return None
        try:
            made = factory(
                f"groundplane_custom_{name}", "Declared by a handler.", ("actor", *labels), registry=self._registry
            )
        except ValueError:  # a reserved label, or a name whose series another metric has
            return None
        self._made[name] = (kind, labels, made)
        self._series[name] = set()
        return made


def _apply(child: Any, kind: str, value: float) -> bool:
    if kind == "counter":
        if value < 0:
            return False
        child.inc(value)
    elif kind == "gauge":
        child.set(value)
    else:
        child.observe(value)
    return True


__all__ = ["ActorMetrics", "CollectorRegistry", "CustomMetrics", "new_registry", "render"]
