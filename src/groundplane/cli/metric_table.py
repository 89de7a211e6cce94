"""Every metric that a plane exports, by the role that exports it: read from the collectors themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from groundplane.bus.observing import BusObserver
from groundplane.cli.monitor import RestartCollector
from groundplane.gateway.metrics import GatewayMetrics
from groundplane.gateway.observer import Observer
from groundplane.gateway.services_observer import ServicesObserver
from groundplane.telemetry.alerts import Alerts
from groundplane.telemetry.delivery import Courier
from groundplane.telemetry.health import Health
from groundplane.telemetry.metrics import ActorMetrics
from groundplane.telemetry.process import HealthCollector, process_registry
from groundplane.telemetry.watcher import AlertCollector, Watcher


class MetricRow(msgspec.Struct, frozen=True, kw_only=True):
    """One metric, under the name of its family: counters get `_total`, histograms `_bucket`, `_sum` and `_count`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    roles: tuple[str, ...]

    def samples(self) -> list[str]:
        """The names that its samples have."""
        if self.kind == "counter":
            return [f"{self.name}_total"]
        if self.kind == "histogram":
            return [f"{self.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")]
        return [self.name]


def metric_rows() -> list[MetricRow]:
    """All of them, by name."""
    found: dict[str, MetricRow] = {}
    for role, registry in _registries().items():
        for family, labels in _families(registry):
            old = found.get(family.name)
            roles = (*(old.roles if old is not None else ()), role)
            found[family.name] = MetricRow(
                name=family.name, kind=family.type, labels=labels, help=family.documentation, roles=roles
            )
    return [found[name] for name in sorted(found)]


def _registries() -> dict[str, CollectorRegistry]:
    """What each role registers. Nothing is opened: the collectors are asked for names alone."""
    roles = {role: process_registry(role, folder=Path()) for role in ("gateway", "sidecar", "ends", "services", "dev")}
    for role, registry in roles.items():
        registry.register(HealthCollector(Health(role)))
    GatewayMetrics(roles["gateway"])
    Observer(cast("Any", None), cast("Any", None), cast("Any", None), roles["gateway"])
    ServicesObserver(cast("Any", None), roles["gateway"])
    BusObserver(cast("Any", None), roles["services"])
    for role in ("sidecar", "ends"):
        ActorMetrics(roles[role], "actor")
    roles["dev"].register(RestartCollector({}))
    roles["dev"].register(AlertCollector(Watcher(cast("Any", None), Alerts([]), Courier([]))))
    return roles


def _families(registry: CollectorRegistry) -> Iterator[tuple[Metric, tuple[str, ...]]]:
    for collector in list(registry._collector_to_names):
        describe = getattr(collector, "describe", None)
        for family in describe() if describe is not None else collector.collect():
            labels = getattr(family, "_labelnames", None) or getattr(collector, "_labelnames", ())
            yield family, tuple(labels or ())
