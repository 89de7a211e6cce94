"""Running `groundplane` as a user does: real processes, a state folder of their own, free ports."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import leaks

START_S = 90.0
"""A start takes a few seconds; a machine on which six planes start at once takes longer."""
PIPELINE = """
from groundplane import App

app = App("acme")


@app.actor
def double(value: int) -> int:
    return value * 2


@app.actor
async def add_five(value: int) -> int:
    return value + 5


app.tool("pipeline", route=[double, add_five], description="Doubles a number and adds five.", timeout=30)
"""


def environment(**extra: str) -> dict[str, str]:
    """The environment without settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GROUNDPLANE_")}
    kept["GROUNDPLANE_TEST_RUN"] = os.environ.get("GROUNDPLANE_TEST_RUN", "")
    for name in ("LOG_LEVEL", "DATABASE_URL", "RABBITMQ_URL", "NO_COLOR"):
        kept.pop(name, None)
    return {**kept, **extra}


def groundplane(
    *arguments: str | Path, folder: Path, timeout_s: float = 60.0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """One command, waited for."""
    return subprocess.run(
        [sys.executable, "-m", "groundplane.cli", *map(str, arguments)],
        cwd=folder,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class Running:
    """A command that serves until it is stopped, and its lines of JSON."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.url = ""
        self._buffer = b""

    def line(self, timeout_s: float = START_S) -> dict[str, Any]:
        """The next line of standard output."""
        assert self.process.stdout is not None
        ends_at = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, ends_at - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert data, f"no line of output; the log says:\n{self.log.read_text()}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def event(self, name: str, timeout_s: float = START_S) -> dict[str, Any]:
        """The next line of that event; others are passed over."""
        ends_at = time.monotonic() + timeout_s
        while True:
            found = self.line(max(0.1, ends_at - time.monotonic()))
            if found.get("event") == name:
                return found

    def children(self) -> dict[str, int]:
        """Its direct children by name (`gateway`, `ends`, `sidecar double`, `runtime double`)."""
        return {named(line): pid for pid, line in leaks.children(self.process.pid).items() if named(line)}

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 28.0) -> int:
        """Signal it and wait for its end, which comes before the grace of 30 s is over."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


def named(line: str) -> str:
    """What a child's command line says it is."""
    words = line.split()
    if "groundplane.cli.gateway_process" in words:
        return "gateway"
    if "groundplane.mesh.ends" in words:
        return "ends"
    if "groundplane.mesh.sidecar" in words:
        return f"sidecar {json.loads(line.partition('--config ')[2])['actor']['name']}"
    if "--handler" in words:
        return f"runtime {words[words.index('--handler') + 1].rpartition(':')[2]}"
    return ""


@contextlib.contextmanager
def serving(*arguments: str | Path, folder: Path, ready: bool = True, **extra: str) -> Iterator[Running]:
    """A command that serves, from its ready line on; killed with its whole session in the end."""
    log = folder / f"log-{time.monotonic_ns()}.txt"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "groundplane.cli", *map(str, arguments)],
            cwd=folder,
            env=environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    running = Running(process, log)
    try:
        if ready:
            running.url = str(running.event("ready").get("url", ""))
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def request(
    url: str, body: Any = None, timeout_s: float = 30.0, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """GET, or POST of JSON: status and answer."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(asked, timeout=timeout_s) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")


def run_job(url: str, tool: str, arguments: dict[str, Any], wait_s: float = 30.0) -> dict[str, Any]:
    """Start a job and wait for its end."""
    status, job = request(f"{url}/v1/jobs", {"tool": tool, "arguments": arguments})
    assert status == 202, job
    status, job = request(f"{url}/v1/jobs/{job['job_id']}/result?wait={wait_s}", timeout_s=wait_s + 10)
    assert status == 200, job
    assert isinstance(job, dict)
    return job


def kill(pid: int) -> None:
    """SIGKILL one process."""
    os.kill(pid, signal.SIGKILL)


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Wait until the condition holds; fail with `what` when it does not in time."""
    assert leaks.eventually(condition, timeout_s), what
