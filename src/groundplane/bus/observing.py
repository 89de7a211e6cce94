"""How a process's part of the bus is, as metrics: whether it is ready, and how far its subscriptions are behind.

Looked at every `EVERY_S` seconds by a task, not when somebody scrapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from groundplane.bus.client import Bus
from groundplane.bus.port import Lag, Status
from groundplane.core.errors import GroundplaneError
from groundplane.telemetry.logs import get_logger

EVERY_S = 5.0
SUBSCRIPTIONS_MAX = 400
"""Two series for each: more subscriptions than this are not told (`groundplane_bus_subscriptions_untold`)."""
LOOK_TIMEOUT_S = 5.0
_log = get_logger("bus")


class BusObserver(Collector):
    """Shows one bus in a registry of metrics while `run` runs."""

    def __init__(self, bus: Bus, registry: CollectorRegistry) -> None:
        self._bus = bus
        self._status = Status(ready=False)
        self._lags: list[Lag] = []
        registry.register(self)

    async def run(self) -> None:
        """Look again and again, until cancelled or the bus is closed."""
        while True:
            try:
                await self.look()
            except GroundplaneError as error:  # closed
                _log.info("bus_not_observed", error=error.message)
                return
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Look now. A bus that does not answer is told as not ready, its lags not at all. Raises `closed` alone."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                self._status, self._lags = await self._bus.status()
        except TimeoutError:
            self._status, self._lags = Status(ready=False), []
        except GroundplaneError as error:
            self._status, self._lags = Status(ready=False), []
            if error.code == "closed":
                raise

    def describe(self) -> list[Metric]:
        """The names."""
        return list(_families())

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        ready, messages, untold, dropped = _families()
        shown = self._lags[:SUBSCRIPTIONS_MAX]
        for one in shown:
            messages.add_metric([one.consumer, one.pattern, "waiting"], one.waiting)
            messages.add_metric([one.consumer, one.pattern, "in_flight"], one.in_flight)
        ready.add_metric([], int(self._status.ready))
        untold.add_metric([], len(self._lags) - len(shown))
        dropped.add_metric([], self._status.dropped)
        yield from (ready, messages, untold, dropped)


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("groundplane_bus_ready", "Whether this process's part of the bus is ready: 1 or 0."),
        GaugeMetricFamily(
            "groundplane_bus_subscription_messages",
            "Messages of a durable subscription that wait, or are being handled.",
            labels=["consumer", "pattern", "state"],
        ),
        GaugeMetricFamily("groundplane_bus_subscriptions_untold", "Subscriptions that are too many to be told."),
        GaugeMetricFamily("groundplane_bus_dropped", "Transient messages lost by slow subscribers since the start."),
    )


__all__ = ["EVERY_S", "BusObserver"]
