"""A whole plane of real processes that are killed on purpose, and started again at once.

The programs are those that `groundplane dev` starts, with the same command lines; only the supervisor is another one:
it restarts without backoff, and can stop a process in a chosen window of a message (a failpoint), kill any other
while it stands there, and let it go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

import leaks
from groundplane.cli.gateway_process import GatewayConfig
from groundplane.cli.loading import Description, describe
from groundplane.cli.plane_programs import PlanePrograms
from groundplane.cli.processes import Program
from groundplane.plane import Plane
from stacks import Stack

T = TypeVar("T")
APP = Path(__file__).resolve().parent.parent / "apps" / "fault_app.py"
PATIENCE_S = 40.0
_MARK = "GROUNDPLANE_TEST_LAB"
_ROWS_OF_CONSUMERS = ("queue_sessions", "queue_claims", "queue_leases")


class Member:
    """One program and the process that runs it now."""

    def __init__(self, program: Program, folder: Path, environment: Mapping[str, str]) -> None:
        self.program = program
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.arm_file = folder / "armed" / program.name.replace(" ", "-")
        self._log = folder / "logs" / f"{program.name.replace(' ', '-')}.log"
        self._environment = {**environment, "GROUNDPLANE_FAILPOINTS_WHILE": str(self.arm_file)}

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        """Start the program, and feed it what it reads from its standard input."""
        self.process = self._spawn()
        self.starts += 1
        if self.program.feed is not None and self.process.stdin is not None:
            data = await self.program.feed()
            with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
                pipe.write(data)

    def _spawn(self) -> subprocess.Popen[bytes]:
        if self.program.ready_file is not None:
            self.program.ready_file.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self.program.argv,
                stdin=subprocess.PIPE if self.program.feed else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.program.folder,
                env={**os.environ, **self.program.environment, **self._environment},
            )

    def ready(self) -> bool:
        """Whether the process that runs now has said that it is ready."""
        return self.details().get("pid") == self.pid if self.program.ready_file else True

    def details(self) -> dict[str, object]:
        try:
            found = msgspec.json.decode((self.program.ready_file or Path("/none")).read_bytes())
        except (OSError, msgspec.DecodeError):
            return {}
        return found if isinstance(found, dict) else {"pid": self.pid}

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else ""


class Lab:
    """The plane. `members` by the names of their programs: `gateway`, `ends`, `sidecar effect`, `runtime effect`…"""

    def __init__(self, folder: Path, stack: Stack, description: Description, failpoints: str) -> None:
        self.folder = folder
        self.stack = stack
        self.state = stack.state
        self.effects = folder / "effects"
        self.hits = folder / "hits"
        self.description = description
        self.members: dict[str, Member] = {}
        self.unexpected: list[str] = []
        self.url = ""
        self.mark = uuid.uuid4().hex
        self._environment = {
            _MARK: self.mark,
            "GROUNDPLANE_TEST_EFFECTS": str(self.effects),
            "GROUNDPLANE_FAILPOINTS": failpoints,
            "GROUNDPLANE_FAILPOINTS_LOG": str(self.hits),
        }
        self.settings = stack.settings(port=0, grace_s=10.0, log_level="warning")
        self._programs = PlanePrograms(self.settings, self._gateway_config)
        self._killed: set[int] = set()
        self._stopping = False

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, *, stack: Stack | None = None, failpoints: str = "") -> AsyncIterator[Lab]:
        """Start everything and wait until it is ready; `failpoints` as in `core.failpoints`, armed by `arm` alone.

        Without `stack` everything is stored in the folder."""
        for name in ("armed", "logs", "effects"):
            (folder / name).mkdir(parents=True)
        lab = cls(folder, stack or Stack("embedded", folder / "state"), describe(str(APP)), failpoints)
        (lab.state / "run").mkdir(parents=True, exist_ok=True)
        async with Plane.open(lab.settings, upgrade=True) as plane:
            await plane.declare(lab.description.actors.values())
        watching = None
        try:
            await lab._start()
            watching = asyncio.create_task(lab._supervise())
            await lab.all_ready()
            lab.url = str(lab.members["gateway"].details()["url"])
            lab._programs.keep_port(lab.url)
            yield lab
        finally:
            lab._stopping = True
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            lab.end()

    async def add(self, program: Program) -> Member:
        """Start one more program."""
        member = self.members[program.name] = Member(program, self.folder, self._environment)
        await member.start()
        return member

    async def all_ready(self, timeout_s: float = 2 * PATIENCE_S) -> None:
        await self.until(lambda: all(one.ready() for one in self.members.values()), "all are ready", timeout_s)

    # ------------------------------------------------------------------------------------------------- failpoints

    def arm(self, name: str) -> None:
        self.members[name].arm_file.touch()

    def disarm(self, name: str) -> None:
        self.members[name].arm_file.unlink(missing_ok=True)

    def hit_lines(self) -> list[list[str]]:
        return [line.split() for line in self.hits.read_text().splitlines()] if self.hits.exists() else []

    async def stopped_at_window(self, name: str, timeout_s: float = PATIENCE_S) -> int:
        """Arm `name` and wait until it stands still at its window. Its pid."""
        before = len(self.hit_lines())
        self.arm(name)
        try:
            await self.until(lambda: len(self.hit_lines()) > before, f"{name} comes to its window", timeout_s)
        finally:
            self.disarm(name)
        pid = int(self.hit_lines()[before][2])
        await self.until(lambda: _state(pid) in "TtZX", f"{name} stands still", timeout_s)
        return pid

    # ------------------------------------------------------------------------------------------------------ kills

    def kill(self, *names: str) -> None:
        """SIGKILL these, all at once."""
        for pid in [self.members[name].pid for name in names]:
            self._killed.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """SIGKILL of the whole group, workers too."""
        self._killed.update(one.pid for one in self.members.values())
        for pid in [*(one.pid for one in self.members.values()), *self.processes()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_worker(self, actor: str, choice: random.Random) -> None:
        """SIGKILL of a worker of an actor's runtime, if it has one at this moment."""
        workers = sorted(leaks.children(self.members[f"runtime {actor}"].pid))
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(choice.choice(workers), signal.SIGKILL)

    def signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def processes(self) -> dict[int, str]:
        """Every process of this lab, grandchildren and orphans included, with its command line."""
        needle = f"{_MARK}={self.mark}".encode()
        found = {}
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and needle in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found[int(entry)] = leaks.command_line(int(entry))
        return found

    async def restart(self, name: str) -> int:
        """SIGTERM; the exit code, once its successor is ready."""
        member = self.members[name]
        process = member.process
        assert process is not None
        self._killed.add(process.pid)
        process.send_signal(signal.SIGTERM)
        await self.until(lambda: member.pid != process.pid and member.ready(), f"{name} has been replaced")
        return process.returncode

    # ------------------------------------------------------------------------------------------------------- ends

    async def stop(self) -> dict[str, int]:
        """SIGTERM in the order of `groundplane dev`; the exit codes. Everything must go by itself."""
        self._stopping = True
        codes: dict[str, int] = {}
        for stage in sorted({one.program.stage for one in self.members.values()}):
            leaving = {name: one for name, one in self.members.items() if one.program.stage == stage}
            for one in leaving.values():
                self.signal(one.pid, signal.SIGTERM)
            await self.until(lambda: all(_ended(one) for one in leaving.values()), f"stage {stage} has stopped")  # noqa: B023
            codes |= {name: one.process.returncode for name, one in leaving.items() if one.process}
        return codes

    def left_behind(self) -> list[str]:
        """What a plane that has stopped should not have left: processes, sockets, rows of consumers."""
        files = [str(one) for one in self.state.rglob("*") if one.is_socket() or one.suffix in (".alive", ".ready")]
        return [*self.processes().values(), *files, *self._rows_of_consumers()]

    def _rows_of_consumers(self) -> list[str]:
        if not self.stack.embedded:
            return []
        with contextlib.closing(sqlite3.connect(self.state / "plane.db")) as db:
            counts = {one: db.execute(f"SELECT count(*) FROM {one}").fetchone()[0] for one in _ROWS_OF_CONSUMERS}
        return [f"{count} rows of {table}" for table, count in counts.items() if count]

    def end(self) -> None:
        """SIGKILL of what is left, so that a test that fails leaves nothing behind."""
        for pid in self.processes():
            self.signal(pid, signal.SIGKILL)
        for one in self.members.values():
            if one.process is not None:
                one.process.kill()
                one.process.wait(10)

    def logs(self) -> str:
        return "\n".join(f"--- {name} ({one.starts} starts)\n{one.log()}" for name, one in self.members.items())

    async def until(self, condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.unexpected:
                raise AssertionError(
                    f"ended without having been killed, while {what!r} was waited for: {self.unexpected}"
                )
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n{self.logs()}")
            await asyncio.sleep(0.005)

    async def _start(self) -> None:
        programs = [
            self._programs.gateway(),
            *self._programs.runtimes(self.description),
            *self._programs.sidecars(self.description),
            *self._programs.ends(self.description),
        ]
        for program in programs:
            await self.add(program)

    async def _supervise(self) -> None:
        """Start again at once whatever ended; what was not killed by the lab (or itself, by order) is remembered."""
        while True:
            for name, member in self.members.items():
                process = member.process
                if self._stopping or process is None or process.poll() is None:
                    continue
                if process.pid not in self._killed and process.returncode != -signal.SIGKILL:
                    self.unexpected.append(f"{name} ended with {process.returncode}: {member.log()}")
                await member.start()
            await asyncio.sleep(0.005)

    async def _gateway_config(self) -> bytes:
        return GatewayConfig.of(
            self._programs.gateway_settings(),
            self.description.offer,
            name=self.description.name,
            ready_file=self._programs.ready_file("gateway"),
        )


async def eventually(condition: Callable[[], Awaitable[T]], what: str, timeout_s: float = PATIENCE_S) -> T:
    """The first true value of an asynchronous condition."""
    deadline = time.monotonic() + timeout_s
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(0.02)
    return value


def words(path: Path) -> list[list[str]]:
    """The lines of an effects file, split."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def _ended(member: Member) -> bool:
    return member.process is None or member.process.poll() is not None


def _state(pid: int) -> str:
    """The letter of `/proc/PID/stat`; X where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return "X"


__all__ = ["Lab", "Member", "eventually", "words"]
