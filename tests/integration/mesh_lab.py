"""A mesh of real processes for tests, embedded in a temporary folder or on servers: start, send, wait, look, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from groundplane.blobs.store import Blobs
from groundplane.core.envelope import Envelope
from groundplane.core.errors import NotFound
from groundplane.jobs.port import Job, JobEvent, OutboxMessage
from groundplane.jobs.store import Jobs
from groundplane.mesh import launch
from groundplane.mesh.claims import Claims
from groundplane.mesh.spec import ActorSpec, Limits, ToolSpec
from groundplane.mesh.start import queue_specs, relayed, start_job, transport_headers
from groundplane.plane import Plane
from groundplane.queues.client import Queues
from groundplane.queues.port import OutgoingMessage
from stacks import Stack

T = TypeVar("T")
FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "mesh"
TIMEOUT_S = 20.0
START_S = 60.0


class Ports(Protocol):
    """What a lab needs of an opened plane."""

    @property
    def queues(self) -> Queues: ...
    @property
    def jobs(self) -> Jobs: ...
    @property
    def blobs(self) -> Blobs: ...


class Lab:
    """The opened plane of a test and the processes that it started."""

    def __init__(self, stack: Stack, plane: Ports, limits: Limits) -> None:
        settings = stack.settings()
        self.place = msgspec.structs.replace(launch.Place.of(settings), limits=limits, log_level=None)
        self.stack = stack
        self.state = stack.state
        self.queues = plane.queues
        self.jobs = plane.jobs
        self.blobs = plane.blobs
        self.claims = Claims(plane.blobs, limits)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, stack: Stack | Path, limits: Limits | None = None) -> AsyncIterator[Lab]:
        """A mesh on this stack; a folder alone is an embedded one."""
        if isinstance(stack, Path):
            stack = Stack("embedded", stack)
        (stack.state / "run").mkdir(parents=True, exist_ok=True)
        async with Plane.open(stack.settings(), ports=("queues", "jobs", "blobs"), upgrade=True) as plane:
            lab = cls(stack, plane, limits or Limits())
            relay = asyncio.create_task(plane.jobs.run_relay(lab._relay))
            sweeper = asyncio.create_task(plane.jobs.run_sweeper(0.2))
            try:
                yield lab
            finally:
                for task in (relay, sweeper):
                    task.cancel()
                await asyncio.gather(relay, sweeper, return_exceptions=True)
                lab.end()

    async def _relay(self, messages: list[OutboxMessage]) -> None:
        await self.queues.send(*map(relayed, messages))

    async def declare(self, *specs: ActorSpec) -> None:
        await self.queues.declare(*queue_specs(specs))

    async def start(self, *specs: ActorSpec, ends: bool = True, **more: Any) -> None:
        """Declare, and start runtime and sidecar of each actor (and the ends); wait until all are ready."""
        await self.declare(*specs)
        commands = [launch.ends(self.place, joins=[s.name for s in specs if s.join])] if ends else []
        for spec in specs:
            commands += [launch.runtime(spec, self.place), launch.sidecar(spec, self.place, **more)]
        for command in commands:
            self.spawn(command)
        for command in commands:
            await self.ready(command)

    def spawn(self, command: launch.Command, **environment: str) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join([str(FIXTURES), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": paths, **command.environment, **environment}
        log = open(self.state / "run" / f"{command.name}.log", "ab")  # noqa: SIM115
        with log:
            process = subprocess.Popen(command.arguments, env=env, cwd=FIXTURES, stdout=log, stderr=log)
        self.processes[command.name] = process
        return process

    async def ready(self, command: launch.Command) -> dict[str, Any]:
        process = self.processes[command.name]

        async def there() -> bytes | None:
            if process.poll() is not None:
                raise AssertionError(f"{command.name} ended with {process.returncode}:\n{self.log(command.name)}")
            try:
                return command.ready_file.read_bytes()
            except FileNotFoundError:
                return None

        data = await eventually(there, START_S)
        try:
            return dict(msgspec.json.decode(data))
        except msgspec.DecodeError:
            return {}

    def log(self, name: str) -> str:
        return (self.state / "run" / f"{name}.log").read_text(errors="replace")[-6000:]

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait(10)

    async def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(process.wait, 20)

    def end(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(8)
        self.processes.clear()

    async def send(self, actors: list[str], payload: Any, **fields: Any) -> Envelope:
        """Put an envelope without a job onto the first actor's queue."""
        delay = fields.pop("delay_s", 0.0)
        envelope = Envelope.new(actors, payload, **fields)
        await self.queues.send(
            OutgoingMessage(
                queue=actors[0],
                payload=envelope.to_bytes(),
                id=envelope.id,
                headers=transport_headers(envelope),
                delay_s=delay,
            )
        )
        return envelope

    async def job(self, route: list[str], payload: Any, **fields: Any) -> str:
        created = await start_job(self.jobs, ToolSpec(name="tool", route=route), payload, **fields)
        return created.job.job_id

    async def finished(self, job_id: str, timeout_s: float = TIMEOUT_S) -> Job:
        job = await self.jobs.wait_finished(job_id, timeout_s)
        if job is None:
            now = await self.jobs.get(job_id)
            raise AssertionError(f"job is {now.state} at {now.actor!r} {now.progress}\n{self.logs()}")
        return job

    async def events(self, job_id: str) -> list[JobEvent]:
        return (await self.jobs.events(0, job_id)).items

    async def outcome(self, envelope_id: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """What an end actor persisted of an envelope."""
        found = await self.outcomes(lambda all_of: any(one["id"] == envelope_id for one in all_of), timeout_s)
        return next(one for one in found if one["id"] == envelope_id)

    async def outcomes(
        self, enough: Callable[[list[dict[str, Any]]], bool], timeout_s: float = TIMEOUT_S
    ) -> list[dict[str, Any]]:
        async def look() -> list[dict[str, Any]] | None:
            found = [
                {**msgspec.json.decode(await self.blobs.get(info.key)), "key": info.key}
                for prefix in ("results/", "errors/")
                async for info in self.blobs.list(prefix)
            ]
            return found if enough(found) else None

        try:
            return await eventually(look, timeout_s)
        except TimeoutError as error:
            raise AssertionError(f"no outcome\n{self.logs()}") from error

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in self.state.glob("run/*.log")
        )

    def edited(self, data: bytes, payload: Any) -> bytes:
        """An envelope's bytes with another payload, as an operator edits a dead letter."""
        return msgspec.structs.replace(Envelope.from_bytes(data), payload=payload).to_bytes()

    async def idle(self, *queues: str) -> None:
        """Wait until nothing is ready, delayed or in flight."""

        async def empty() -> bool:
            return not any([(await self.queues.depth(name)).total for name in queues])

        await eventually(empty)


async def eventually(look: Callable[[], Awaitable[T | None]], timeout_s: float = TIMEOUT_S) -> T:
    """The first truthy value of `look`; TimeoutError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(NotFound):
            value = await look()
            if value:
                return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {timeout_s} s")
        await asyncio.sleep(0.02)


async def lines(path: Path, count: int = 1, timeout_s: float = TIMEOUT_S) -> list[str]:
    """The lines of a file once there are `count`."""

    async def look() -> list[str] | None:
        found = _lines(path)
        return found if len(found) >= count else None

    return await eventually(look, timeout_s)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
