"""A mesh of real processes on a temporary state folder, for the benchmarks: sidecars and runtimes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from groundplane.core.secrets import Url
from groundplane.mesh import launch
from groundplane.mesh.routing import Outcome
from groundplane.mesh.runtime_client import CallRequest, RuntimeClient, RuntimeSettings
from groundplane.mesh.spec import ActorSpec
from groundplane.mesh.start import queue_specs
from groundplane.queues import Queues
from groundplane.queues.port import QueueSpec

HANDLERS = Path(__file__).resolve().parent / "handlers"


class Member(NamedTuple):
    """A process of the mesh; a sidecar's metrics are at its admin port."""

    pid: int
    admin_port: int | None
    socket: str | None


@asynccontextmanager
async def mesh(
    actors: Sequence[ActorSpec], *extra_queues: str, queues: str = "embedded://"
) -> AsyncIterator[tuple[Queues, dict[str, Member]]]:
    """The queues of a running mesh, and its processes; every actor is ready. Jobs, ledger and blobs are embedded."""
    with tempfile.TemporaryDirectory(prefix="groundplane-bench-") as folder:
        place = launch.Place(state=Path(folder), queues=Url(queues), log_level="warning")
        place.run.mkdir(parents=True)
        async with Queues.open(queues, state=place.state) as opened:
            specs = [*queue_specs(actors), *(QueueSpec(name=name) for name in extra_queues)]
            await opened.declare(*specs)
            commands = [make(spec, place) for spec in actors for make in (launch.runtime, launch.sidecar)]
            processes = {command.name: start(command) for command in commands}
            try:
                members = {}
                for command in commands:
                    told = await ready(command, processes[command.name])
                    members[command.name] = Member(
                        processes[command.name].pid, told.get("admin_port"), told.get("socket")
                    )
                yield opened, members
            finally:
                stop(list(processes.values()))


@asynccontextmanager
async def caller(socket: str) -> AsyncIterator[tuple[RuntimeClient, Callable[[object], Awaitable[Outcome]]]]:
    """The sidecar's client of a runtime, and a function that calls its handler with a payload."""
    client = RuntimeClient(RuntimeSettings(socket=socket))
    try:
        await client.start()
        yield client, lambda payload: client.call(CallRequest(envelope={"id": "1", "payload": payload}), _Silent())
    finally:
        await client.aclose()


class _Silent:
    """A handler that reports nothing."""

    def progress(self, percent: float, message: str) -> None: ...

    def heartbeat(self) -> None: ...

    def metric(self, name: str, kind: str, value: float, labels: dict[str, str]) -> None: ...

    async def ask(self, op: str, fields: dict[str, Any]) -> Any: ...


def start(command: launch.Command) -> subprocess.Popen[bytes]:
    """The process of a command."""
    environment = {**os.environ, **command.environment, "PYTHONPATH": str(HANDLERS)}
    return subprocess.Popen(command.arguments, env=environment, cwd=HANDLERS)


async def ready(command: launch.Command, process: subprocess.Popen[bytes], timeout_s: float = 30) -> dict[str, Any]:
    """What the process wrote in its ready file, once it is there."""
    async with asyncio.timeout(timeout_s):
        while not command.ready_file.exists():
            if process.poll() is not None:
                raise RuntimeError(f"{command.name} ended with {process.returncode}")
            await asyncio.sleep(0.01)
    found: dict[str, Any] = msgspec.json.decode(command.ready_file.read_bytes() or b"{}")
    return found


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to all, and wait."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait(40)


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used so far, its ended children included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and everything below it."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    return [pid, *(member for child in children for member in family(child))]


def _children(task: Path) -> list[str]:
    return (task / "children").read_text().split()
