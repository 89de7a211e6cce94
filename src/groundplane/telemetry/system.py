"""What the machine and the process use: CPU, memory, disk, network, read from `/proc` when they are scraped (Linux).

    registry.register(SystemCollector(folder))

Metrics of the process itself are those of every Prometheus client (`process_*`,
https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_TICKS = os.sysconf("SC_CLK_TCK")
_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


class SystemCollector(Collector):
    """CPU seconds by mode, memory, the disk that `folder` lies on, and bytes of all network interfaces but loopback.

    What the machine does not tell is left out. `proc` is where its tables are.
    """

    def __init__(self, folder: Path, *, proc: Path = Path("/proc")) -> None:
        self._folder = folder
        self._proc = proc

    def describe(self) -> list[Metric]:
        """The names, without reading anything."""
        return [_cpu(), _cpus(), _memory(), _disk(), _network()]

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        yield self._read_cpu()
        cpus = _cpus()
        cpus.add_metric([], float(len(os.sched_getaffinity(0))))
        yield cpus
        yield self._read_memory()
        yield self._read_disk()
        yield self._read_network()

    def _read_cpu(self) -> Metric:
        family = _cpu()
        words = self._lines("stat")[:1]
        for mode, ticks in zip(_MODES, words[0].split()[1:] if words else [], strict=False):
            family.add_metric([mode], int(ticks) / _TICKS)
        return family

    def _read_memory(self) -> Metric:
        family = _memory()
        for line in self._lines("meminfo"):
            name, _, value = line.partition(":")
            kind = {"MemTotal": "total", "MemAvailable": "available"}.get(name)
            if kind is not None:
                family.add_metric([kind], int(value.split()[0]) * 1024)
        return family

    def _read_disk(self) -> Metric:
        family = _disk()
        place = self._folder.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            usage = shutil.disk_usage(place)
        except OSError:  # unmounted: then there is nothing to tell, and `doctor` says why
            return family
        family.add_metric(["total"], usage.total)
        family.add_metric(["free"], usage.free)
        return family

    def _read_network(self) -> Metric:
        family = _network()
        received = sent = 0
        for line in self._lines("net/dev")[2:]:
            name, _, rest = line.partition(":")
            if name.strip() != "lo":
                numbers = rest.split()
                received, sent = received + int(numbers[0]), sent + int(numbers[8])
        family.add_metric(["received"], received)
        family.add_metric(["sent"], sent)
        return family

    def _lines(self, name: str) -> list[str]:
        try:
            return (self._proc / name).read_text().splitlines()
        except OSError:  # not Linux, or hidden from this process
            return []


def _cpu() -> CounterMetricFamily:
    return CounterMetricFamily(
        "groundplane_system_cpu_seconds", "CPU time of the machine, all processors.", labels=["mode"]
    )


def _cpus() -> GaugeMetricFamily:
    return GaugeMetricFamily("groundplane_system_cpus", "Processors that this process may use.", labels=[])


def _memory() -> GaugeMetricFamily:
    return GaugeMetricFamily("groundplane_system_memory_bytes", "Memory of the machine.", labels=["kind"])


def _disk() -> GaugeMetricFamily:
    return GaugeMetricFamily("groundplane_system_disk_bytes", "The disk of the state folder.", labels=["kind"])


def _network() -> CounterMetricFamily:
    return CounterMetricFamily(
        "groundplane_system_network_bytes", "Bytes of all interfaces but loopback.", labels=["direction"]
    )
