"""What `groundplane dev` tells of its plane: all metrics on one page, the health of all processes, alerts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import msgspec
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from groundplane.cli.processes import Child
from groundplane.core.errors import GroundplaneError
from groundplane.core.settings import Settings
from groundplane.telemetry.admin import serve_admin
from groundplane.telemetry.aggregate import PlaneMetrics
from groundplane.telemetry.alerting import watcher_of
from groundplane.telemetry.health import Check, Health
from groundplane.telemetry.process import process_registry
from groundplane.telemetry.scraping import read_page
from groundplane.telemetry.watcher import AlertCollector


@asynccontextmanager
async def monitored(settings: Settings, children: Mapping[str, Child], *, port: int) -> AsyncIterator[str]:
    """Serve the page of the whole plane while open, and watch its rules; yields its URL. `children` may change."""
    monitor = _Monitor(settings, children)
    async with serve_admin("127.0.0.1", port, monitor.registry, monitor.health, exposition=monitor.page) as bound:
        watching = asyncio.create_task(monitor.watcher.run(settings.alerts_interval_s), name="alerts")
        following = asyncio.create_task(monitor.follow(), name="monitor")
        try:
            yield f"http://127.0.0.1:{bound}"
        finally:
            for task in (watching, following):
                task.cancel()
            await asyncio.gather(watching, following, return_exceptions=True)


class _Monitor:
    def __init__(self, settings: Settings, children: Mapping[str, Child]) -> None:
        self._children = children
        self._targets: dict[str, str] = {}
        self.health = Health("plane")
        self.registry = process_registry("dev", folder=settings.state)
        self.metrics = PlaneMetrics(self._targets, self.registry, own="dev")
        self.watcher = watcher_of(settings, self.metrics)
        self.registry.register(AlertCollector(self.watcher))
        self.registry.register(RestartCollector(children))
        self._look()

    async def follow(self) -> None:
        """Watch whatever processes there are, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            self._look()

    async def page(self) -> bytes:
        """The metrics of all processes that are ready now."""
        self._look()
        return await self.metrics.render()

    def _look(self) -> None:
        found = {name: _admin(child) for name, child in self._children.items()}
        self._targets.clear()
        self._targets.update({name: f"{url}/metrics" for name, url in found.items() if url})
        self.health.replace({name: self._check(name) for name in self._children})

    def _check(self, name: str) -> Check:
        async def check() -> str | None:
            child = self._children.get(name)
            if child is None:
                return None  # it was taken away a moment ago
            if not child.ready.is_set():
                ended = f", it ended last with {child.exit_meaning}" if child.exit_meaning else ""
                return f"is not ready after start {child.starts}{ended}"
            admin = _admin(child)
            return await _red_checks(admin) if admin else None

        return check


async def _red_checks(admin: str) -> str | None:
    """What a process says of itself: the reasons of its checks that failed."""
    try:
        page = await asyncio.to_thread(read_page, f"{admin}/healthz", also=(503,))
    except GroundplaneError as error:
        return f"does not answer: {error.message}"
    document = msgspec.json.decode(page)
    failed = {name: one["reason"] for name, one in document["checks"].items() if one["status"] == "failed"}
    return "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or None


def _admin(child: Child) -> str:
    """Where a process that is ready has its admin server; empty for those that have none."""
    if not child.ready.is_set():
        return ""
    port = child.details.get("admin_port")
    return str(child.details.get("admin", "")) or (f"http://127.0.0.1:{port}" if port else "")


class RestartCollector(Collector):
    """How often the processes of a supervisor were started again."""

    def __init__(self, children: Mapping[str, Child]) -> None:
        self._children = children

    def describe(self) -> list[Metric]:
        """The name."""
        return [_restarts()]

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        family = _restarts()
        for name, child in list(self._children.items()):
            family.add_metric([name], max(0, child.starts - 1))
        yield family


def _restarts() -> CounterMetricFamily:
    return CounterMetricFamily("groundplane_process_restarts", "Starts of a process after its first.", labels=["name"])
