"""What a gateway tells of services as metrics: their instances by status, and who leads.

Looked at every `EVERY_S` seconds by a task, not when somebody scrapes. Every gateway tells the same; take the maximum
over them. A registry that does not answer is told as away, its services not at all: never as none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from groundplane.core.clock import from_iso
from groundplane.core.errors import GroundplaneError
from groundplane.services.directory import Directory
from groundplane.services.leadership.observing import Lead
from groundplane.services.summary import ServiceHealth, summary
from groundplane.telemetry.logs import get_logger

EVERY_S = 10.0
SERVICES_MAX = 240
"""Four series for each: more services, or elections, than this are not told (`groundplane_services_untold`)."""
LOOK_TIMEOUT_S = 5.0
_log = get_logger("gateway")


class ServicesObserver(Collector):
    """Shows the services and leaders of one plane in a registry of metrics while `run` runs."""

    def __init__(self, directory: Directory, registry: CollectorRegistry) -> None:
        self._directory = directory
        self._services: list[ServiceHealth] = []
        self._leads: list[Lead] = []
        self._up = False
        registry.register(self)

    async def run(self) -> None:
        """Look again and again, until cancelled or the directory is closed."""
        while True:
            try:
                await self.look()
            except GroundplaneError as error:  # closed
                _log.info("services_not_observed", error=error.message)
                return
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Look now. Raises `closed` alone."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                registry = self._directory.registry
                defined = [one.definition.service_name for one in await registry.definitions.all()]
                found = summary(await registry.instances(), defined).details
            leads = self._directory.leaders()
        except TimeoutError:
            self._lost(f"no answer within {LOOK_TIMEOUT_S:g} s")
        except GroundplaneError as error:
            self._lost(error.message)
            if error.code == "closed":
                raise
        else:
            self._services, self._leads, self._up = found, leads, True

    def _lost(self, why: str) -> None:
        if self._up:
            _log.warning("services_not_counted", error=why)
        self._services, self._leads, self._up = [], [], False

    def describe(self) -> list[Metric]:
        """The names."""
        return [*_service_families(), *_leader_families()]

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        up, instances, untold = _service_families()
        services, leads = self._services[:SERVICES_MAX], self._leads[:SERVICES_MAX]
        up.add_metric([], int(self._up))
        untold.add_metric(["services"], len(self._services) - len(services))
        untold.add_metric(["elections"], len(self._leads) - len(leads))
        for one in services:
            for status, count in one.by_status.items():
                instances.add_metric([one.service_name, status], count)
        yield from (up, instances, untold)
        yield from _told(leads)


def _told(leads: list[Lead]) -> Iterator[Metric]:
    present, term, since = _leader_families()
    for one in leads:
        leader = one.leader or ""
        present.add_metric([one.name, leader], int(one.leader is not None))
        if one.term is not None:
            term.add_metric([one.name], one.term)
        if one.since is not None:
            since.add_metric([one.name], from_iso(one.since) / 1000)
    yield from (present, term, since)


def _service_families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("groundplane_services_up", "Whether the registry of services answers: 1 or 0."),
        GaugeMetricFamily(
            "groundplane_service_instances", "Instances of a service, by status.", labels=["service", "status"]
        ),
        GaugeMetricFamily(
            "groundplane_services_untold", "Services and elections that are too many to be told.", labels=["kind"]
        ),
    )


def _leader_families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily(
            "groundplane_leader", "1 with the id of who leads an election; 0 where nobody does.",
            labels=["election", "leader"],
        ),
        GaugeMetricFamily("groundplane_leader_term", "The term of who leads an election.", labels=["election"]),
        GaugeMetricFamily(
            "groundplane_leader_since_seconds",
            "When the present term began, in Unix seconds by the leader's clock.",
            labels=["election"],
        ),
    )  # fmt: skip


__all__ = ["EVERY_S", "ServicesObserver"]
