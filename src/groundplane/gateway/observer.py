"""What a gateway tells of stores and queues as metrics: the job store's sizes, its outbox, and how deep the queues are.

Queues are counted by a task every `EVERY_S` seconds and not when somebody scrapes: a slow broker delays no scrape.
Every gateway tells the same; take the maximum over them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from groundplane.core.envelope import ERROR_END, HAPPY_END
from groundplane.core.errors import GroundplaneError
from groundplane.gateway.tools import ToolTable
from groundplane.jobs import Jobs
from groundplane.queues import Queues
from groundplane.queues.port import Depth
from groundplane.telemetry.logs import get_logger

EVERY_S = 10.0
QUEUES_MAX = 240
"""Four series for each in one metric: more queues than this are not told (see `groundplane_queues_untold`)."""
COUNT_TIMEOUT_S = 5.0
_log = get_logger("gateway")


class Observer(Collector):
    """Shows the sizes of one plane in a registry while `run` runs."""

    def __init__(self, jobs: Jobs, queues: Queues, tools: ToolTable, registry: CollectorRegistry) -> None:
        self._jobs = jobs
        self._queues = queues
        self._tools = tools
        self._depths: dict[str, Depth] = {}
        self._untold = 0
        registry.register(self)

    async def run(self) -> None:
        """Count the queues again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Count the queues of all tools and of the ends now. One that does not answer is told no more, not as empty."""
        names = sorted({*self._tools.actors(), HAPPY_END, ERROR_END})
        depths: dict[str, Depth] = {}
        for name in names[:QUEUES_MAX]:
            try:
                async with asyncio.timeout(COUNT_TIMEOUT_S):
                    depths[name] = await self._queues.depth(name)
            except TimeoutError:
                _log.warning("queue_not_counted", queue=name, error=f"no answer within {COUNT_TIMEOUT_S:g} s")
                break  # nor would the others be within the time
            except GroundplaneError as error:
                if error.code == "closed":
                    raise
                if error.code != "not_found":
                    _log.warning("queue_not_counted", queue=name, error=error.message)
        self._depths, self._untold = depths, len(names) - len(depths)

    def describe(self) -> list[Metric]:
        """The names."""
        return [*_queue_families(), *_job_families()]

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        messages, oldest, untold = _queue_families()
        for name, depth in self._depths.items():
            for state in ("ready", "in_flight", "delayed", "dead"):
                messages.add_metric([name, state], getattr(depth, state))
            oldest.add_metric([name], depth.oldest_age_s)
        untold.add_metric([], self._untold)
        yield from (messages, oldest, untold)
        yield from self._collect_jobs()

    def _collect_jobs(self) -> Iterator[Metric]:
        stored, due, age, failures, followers = _job_families()
        counts = self._jobs.statistics()
        if counts.swept is not None:
            for kind in ("jobs", "events", "outbox"):
                stored.add_metric([kind], getattr(counts.swept, kind))
            due.add_metric([], counts.swept.outbox_due)
            age.add_metric([], counts.outbox_age_s)
        failures.add_metric([], counts.relay_failures)
        followers.add_metric([], counts.followers)
        yield from (stored, due, age, failures, followers)


def _queue_families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("groundplane_queue_messages", "Messages of a queue, by state.", labels=["queue", "state"]),
        GaugeMetricFamily(
            "groundplane_queue_oldest_message_seconds", "Age of the oldest message that is ready.", labels=["queue"]
        ),
        GaugeMetricFamily("groundplane_queues_untold", "Queues that could not be counted, or are too many.", labels=[]),
    )


def _job_families() -> tuple[
    GaugeMetricFamily,
    GaugeMetricFamily,
    GaugeMetricFamily,
    CounterMetricFamily,
    GaugeMetricFamily,
]:
    return (
        GaugeMetricFamily("groundplane_jobs_stored", "Rows of the job store as of the last sweep.", labels=["kind"]),
        GaugeMetricFamily("groundplane_outbox_messages", "Messages that wait to be relayed, parked ones apart."),
        GaugeMetricFamily(
            "groundplane_outbox_oldest_seconds", "The oldest message of the outbox has waited at least so long."
        ),
        CounterMetricFamily("groundplane_outbox_relay_failures", "Attempts to relay that failed."),
        GaugeMetricFamily("groundplane_job_followers", "Who waits for events of jobs in this process."),
    )
