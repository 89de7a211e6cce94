"""Watching: sample, keep, evaluate, deliver, again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.telemetry.alerts import Alerts
from groundplane.telemetry.delivery import Courier
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.scraping import Source

INTERVAL_S = 15.0
_log = get_logger("alerts")


class Watcher:
    """Evaluates rules over a source while `run` runs. It delivers what changed to the channels of the courier."""

    def __init__(self, source: Source, alerts: Alerts, courier: Courier, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.alerts = alerts
        self.courier = courier
        self._source = source
        self._clock = clock

    async def step(self) -> None:
        """One round."""
        samples = await self._source.samples()
        now_s = self._clock.now_ms() / 1000
        self.alerts.record(samples, now_s)
        await self.courier.send(self.alerts.evaluate(now_s))

    async def run(self, interval_s: float = INTERVAL_S) -> None:
        """Round after round, until cancelled."""
        while True:
            await self.step()
            await asyncio.sleep(interval_s)


class AlertCollector(Collector):
    """What fires, and how delivery goes."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def describe(self) -> list[Metric]:
        """The names."""
        return list(_families())

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        firing, waiting, notices = _families()
        counts = dict.fromkeys((one.name for one in self._watcher.alerts.rules), 0)
        for alert in self._watcher.alerts.firing():
            counts[alert.rule.name] += 1
        for name, count in counts.items():
            firing.add_metric([name], count)
        courier = self._watcher.courier
        waiting.add_metric([], courier.waiting())
        for outcome, told in (("delivered", courier.delivered), ("failed", courier.failed)):
            for channel, count in told.items():
                notices.add_metric([channel, outcome], count)
        yield from (firing, waiting, notices)


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, CounterMetricFamily]:
    return (
        GaugeMetricFamily("groundplane_alerts_firing", "Alerts that fire, by rule.", labels=["rule"]),
        GaugeMetricFamily("groundplane_notices_waiting", "Notices that a channel has not taken yet."),
        CounterMetricFamily(
            "groundplane_notices", "Attempts to deliver a notice, by outcome.", labels=["channel", "outcome"]
        ),
    )
