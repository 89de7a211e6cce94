"""The metrics of several processes as one page: those of each with a label `process`.

plane = PlaneMetrics({"gateway": "http://127.0.0.1:9090/metrics", …}, registry)
text = await plane.render()
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from groundplane.core.errors import GroundplaneError
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.scraping import fetch, samples_of
from groundplane.telemetry.series import Sample

_log = get_logger("metrics")


class PlaneMetrics:
    """The metrics of the processes of `targets` (name → URL of the page), which may change, and of `registry`, whose
    process is named `own`. A process that does not answer is told by `up` being 0.
    """

    def __init__(self, targets: Mapping[str, str], registry: CollectorRegistry, *, own: str = "plane") -> None:
        self._targets = targets
        self._registry = registry
        self._own = own

    async def render(self) -> bytes:
        """The text that Prometheus reads: each metric once, with the series of all processes."""
        merged: dict[str, Metric] = {}
        for process, families in await self._families():
            for family in families:
                one = merged.get(family.name)
                if one is None:
                    one = merged[family.name] = Metric(family.name, family.documentation, family.type)
                for sample in family.samples:
                    one.samples.append(sample._replace(labels={"process": process, **sample.labels}))
        return generate_latest(_Collected(merged.values()))

    async def samples(self) -> list[Sample]:
        """The same as samples with `job` and `instance`, as rules expect them of Prometheus."""
        found: list[Sample] = []
        for process, families in await self._families():
            found += samples_of(families, {"job": "groundplane", "instance": process})
        return found

    async def _families(self) -> list[tuple[str, list[Metric]]]:
        targets = list(self._targets.items())
        pages = await asyncio.gather(*(self._page(name, url) for name, url in targets))
        return [(self._own, [*self._registry.collect(), _up(1)]), *pages]

    async def _page(self, name: str, url: str) -> tuple[str, list[Metric]]:
        try:
            return name, [*await fetch(url), _up(1)]
        except GroundplaneError as error:
            _log.warning("process_not_scraped", process=name, error=error.message)
            return name, [_up(0)]


class _Collected:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _up(value: float) -> Metric:
    family = GaugeMetricFamily("up", "1 where the process answered.")
    family.add_metric([], value)
    return family
