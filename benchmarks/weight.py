"""Weight: import time, start of `dev`, idle CPU of a whole plane, memory of sidecar and runtime, socket overhead."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.plane import caller, cpu_s, family, mesh, resident_mib
from benchmarks.report import Row
from groundplane.mesh.routing import Result
from groundplane.mesh.spec import ActorSpec

SECTION = "Weight and start"
APP = """
from groundplane import App
app = App("bench")

@app.actor
def double(value: int) -> int:
    return value * 2

@app.actor
def add_five(value: int) -> int:
    return value + 5

app.tool("pipeline", route=[double, add_five])
"""


def rows(rounds: int, scale: float) -> list[Row]:
    """One row for each bar."""
    starts, idle = zip(*(_dev(idle_s=10 * scale) for _ in range(rounds)), strict=True)
    sidecar, runtime, bare, recoveries = asyncio.run(_memory())
    return [
        _row("import groundplane, over `python -c pass`", "time", "ms", _imports(10), bar=100.0),
        _row("groundplane dev, two actors", "start to ready", "s", list(starts), bar=2.0),
        _row("groundplane dev, two actors, all its processes", "idle CPU", "% of a core", list(idle), bar=2.0),
        _row("sidecar", "resident", "MiB", [sidecar], bar=40.0),
        _row("runtime's worker, over the bare interpreter", "resident", "MiB", [runtime - bare], bar=16.0),
        _row("a worker after `kill -9`", "to the next answer", "ms", recoveries, bar=50.0),
    ]


def _row(subject: str, metric: str, unit: str, values: list[float], **more: Any) -> Row:
    value = statistics.median(values)
    return Row(
        section=SECTION, subject=subject, metric=metric, unit=unit, value=value, rounds=values, better="lower", **more
    )


def _imports(count: int) -> list[float]:
    def spent(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return (time.perf_counter() - begin) * 1000

    return [spent("import groundplane") - spent("pass") for _ in range(count)]


def _dev(*, idle_s: float) -> tuple[float, float]:
    """Seconds to the ready line, and the share of a core that the idle plane uses."""
    with tempfile.TemporaryDirectory(prefix="groundplane-bench-") as folder:
        (Path(folder) / "app.py").write_text(APP)
        argv = ["-m", "groundplane.cli", "dev", "app:app", "--port", "0", "--state", f"{folder}/state", "--json"]
        environment = {**os.environ, "GROUNDPLANE_LOG_LEVEL": "WARNING"}
        begin = time.perf_counter()
        with subprocess.Popen([sys.executable, *argv], cwd=folder, stdout=subprocess.PIPE, env=environment) as dev:
            assert dev.stdout is not None
            assert json.loads(dev.stdout.readline())["event"] == "ready"
            start = time.perf_counter() - begin
            time.sleep(1)
            members = family(dev.pid)
            before = sum(map(cpu_s, members))
            time.sleep(idle_s)
            idle = (sum(map(cpu_s, members)) - before) / idle_s * 100
            dev.send_signal(signal.SIGTERM)
            dev.wait(40)
    return start, idle


async def _memory() -> tuple[float, float, float, list[float]]:
    one, two = (ActorSpec(name=f"echo{n}", handler="echo_handlers:echo", concurrency=n) for n in (1, 2))
    async with mesh([one, two]) as (_, members):
        await asyncio.sleep(1)
        worker = max(family(members["echo1.runtime"].pid)[1:], key=resident_mib)
        sizes = resident_mib(members["echo1.sidecar"].pid), resident_mib(worker), _bare_interpreter()
        return *sizes, await _recoveries(str(members["echo2.runtime"].socket))


async def _recoveries(socket: str) -> list[float]:
    """Milliseconds from a SIGKILL of the worker to the next answer."""
    spent = []
    async with caller(socket) as (client, call):
        for _ in range(10):
            await call(1)
            begin = time.perf_counter()
            os.kill(client.about["worker"], signal.SIGKILL)
            while not isinstance(await call(1), Result):  # the first call may be told that its worker died
                pass
            spent.append((time.perf_counter() - begin) * 1000)
            await asyncio.sleep(0.5)  # a standby is forked again
    return spent


def _bare_interpreter() -> float:
    code = "import os; print(open('/proc/self/statm').read().split()[1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return int(done.stdout) * os.sysconf("SC_PAGE_SIZE") / 2**20
