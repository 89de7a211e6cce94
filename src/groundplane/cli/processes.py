"""Supervised processes: started in parallel, restarted with backoff, stopped in stages, never left behind.

A child dies with its supervisor, also when that is killed (`PR_SET_PDEATHSIG`). Everything stays in one process group;
children ignore the terminal's Ctrl-C, so that the stop is the supervisor's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

BACKOFF_FIRST_S = 0.05
BACKOFF_CAP_S = 5.0
HEALTHY_AFTER_S = 10.0
KILL_WAIT_S = 5.0
_READY_POLL_S = 0.01
_READY_POLL_SLOW_S = 0.25
_PR_SET_PDEATHSIG = 1


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `stage` orders the stop: the lowest first. `ready_file` appears when the process does its work.

    `feed` makes what the process reads from its standard input; it may take its time. `nice` is added to the priority
    that the supervisor has: more is less (`nice(2)`).
    """

    name: str
    argv: list[str]
    environment: dict[str, str] = {}
    ready_file: Path | None = None
    stage: int = 0
    folder: Path | None = None
    feed: Callable[[], Awaitable[bytes]] | None = None
    exits: dict[int, str] = {}
    nice: int = 0


Listener = Callable[[str, "Child"], None]
"""Told of `started`, `ready` and `exited` of a child."""


class Child:
    """One program, kept running until it is stopped."""

    def __init__(self, program: Program, listener: Listener) -> None:
        self.program = program
        self.pid: int | None = None
        self.starts = 0
        self.status: int | None = None
        self.ready = asyncio.Event()
        self.details: dict[str, Any] = {}
        self._listener = listener
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "ready" if self.ready.is_set() else "starting" if self.pid else "down"
        return f"<Child {self.program.name} pid={self.pid} {state} starts={self.starts}>"

    @property
    def exit_meaning(self) -> str:
        """What the last exit says: a signal's name, or the program's word for its exit code."""
        if self.status is None:
            return ""
        if self.status < 0:
            return signal.Signals(-self.status).name
        word = self.program.exits.get(self.status, "")
        return f"exit {self.status}{f' ({word})' if word else ''}"

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.create_task(self._run(), name=f"child:{self.program.name}")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(task.exception(), Exception):
            self._tell_failures([task.exception()])

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def retire(self) -> None:
        """Never start it again, however it ends."""
        self._stopping.set()

    async def stop(self, timeout_s: float) -> bool:
        """SIGTERM, and SIGKILL after `timeout_s`. Whether it went by itself."""
        self.retire()
        self.signal(signal.SIGTERM)
        if self._task is None:
            return True
        done, _ = await asyncio.wait({self._task}, timeout=max(0.0, timeout_s))
        if not done:
            self.signal(signal.SIGKILL)
            await asyncio.wait({self._task}, timeout=KILL_WAIT_S)
        return bool(done)

    async def _run(self) -> None:
        backoff_s = 0.0
        while not self._stopping.is_set():
            started = time.monotonic()
            await self._start_and_watch()
            if self._stopping.is_set():
                return
            self._listener("exited", self)
            healthy = time.monotonic() - started >= HEALTHY_AFTER_S
            backoff_s = BACKOFF_FIRST_S if healthy else min(BACKOFF_CAP_S, max(BACKOFF_FIRST_S, backoff_s * 2))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()

    async def _start_and_watch(self) -> None:
        self.ready.clear()
        self._forget_ready()
        self._process = process = await asyncio.create_subprocess_exec(
            *self.program.argv,
            stdin=asyncio.subprocess.PIPE if self.program.feed else asyncio.subprocess.DEVNULL,
            cwd=self.program.folder,
            stdout=2,  # the supervisor's standard output is for its own lines
            env={**os.environ, **self.program.environment},
            preexec_fn=_child_setup(os.getpid(), self.program.nice),
        )
        self.pid, self.status = process.pid, None
        self.starts += 1
        self._listener("started", self)
        if self._stopping.is_set():
            process.terminate()
        beside = [asyncio.create_task(self._await_ready(process.pid)), asyncio.create_task(self._feed(process))]
        try:
            self.status = await process.wait()
        finally:
            for task in beside:
                task.cancel()
            self._tell_failures(await asyncio.gather(*beside, return_exceptions=True))
            self.pid = None
            self.ready.clear()
            self._forget_ready()

    def _forget_ready(self) -> None:
        if self.program.ready_file is not None:
            self.program.ready_file.unlink(missing_ok=True)

    async def _feed(self, process: asyncio.subprocess.Process) -> None:
        if self.program.feed is None or process.stdin is None:
            return
        try:
            process.stdin.write(await self.program.feed())
            await process.stdin.drain()
            process.stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            return  # it ended meanwhile, and will be started again
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise

    def _tell_failures(self, outcomes: list[BaseException | None]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                message = f"starting {self.program.name!r} failed"
                asyncio.get_running_loop().call_exception_handler({"message": message, "exception": outcome})

    async def _await_ready(self, pid: int) -> None:
        began = time.monotonic()
        while not self._look_ready(pid):
            slow = time.monotonic() - began > HEALTHY_AFTER_S
            await asyncio.sleep(_READY_POLL_SLOW_S if slow else _READY_POLL_S)
        self.ready.set()
        self._listener("ready", self)

    def _look_ready(self, pid: int) -> bool:
        file = self.program.ready_file
        if file is None:
            return True
        try:
            found = msgspec.json.decode(file.read_bytes() or b"{}")
        except (FileNotFoundError, msgspec.DecodeError):
            return False  # not there, or half written
        self.details = found if isinstance(found, dict) else {}
        return bool(self.details.get("pid", pid) == pid)


class Supervisor:
    """The children of one plane on this machine, by name."""

    def __init__(self, listener: Listener, *, grace_s: float) -> None:
        self.children: dict[str, Child] = {}
        self._listener = listener
        self._grace_s = grace_s

    def __repr__(self) -> str:
        return f"<Supervisor {list(self.children.values())}>"

    def start(self, programs: Sequence[Program]) -> None:
        """Start them all at once."""
        for program in programs:
            child = self.children[program.name] = Child(program, self._listener)
            child.start()

    async def replace(self, programs: Sequence[Program]) -> None:
        """Stop what is running under these names, and start the new programs."""
        await self.remove([program.name for program in programs])
        self.start(programs)

    async def remove(self, names: Sequence[str]) -> None:
        """Stop these in stages, and forget them."""
        leaving = {name: self.children.pop(name) for name in names if name in self.children}
        await self._stop(leaving)

    async def all_ready(self) -> None:
        """Return when every child is ready at the same time."""
        while not all(child.ready.is_set() for child in self.children.values()):
            await asyncio.gather(*(child.ready.wait() for child in list(self.children.values())))

    async def stop(self) -> bool:
        """Stop everything in stages within the grace. Whether all went by themselves."""
        leaving, self.children = self.children, {}
        return await self._stop(leaving)

    def kill(self) -> None:
        """SIGKILL everything now."""
        for child in self.children.values():
            child.signal(signal.SIGKILL)

    async def _stop(self, leaving: Mapping[str, Child]) -> bool:
        ends_at = time.monotonic() + self._grace_s
        clean = True
        for child in leaving.values():
            child.retire()
        for stage in sorted({child.program.stage for child in leaving.values()}):
            stopping = [child for child in leaving.values() if child.program.stage == stage]
            left = max(1.0, ends_at - time.monotonic())
            clean &= all(await asyncio.gather(*(child.stop(left) for child in stopping)))
        return clean


def _child_setup(parent: int, nice: int) -> Callable[[], None]:
    """Runs in the child between fork and exec: only calls that are safe there."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def setup() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.nice(nice)
        if os.getppid() != parent:  # the supervisor died before the line above
            os._exit(1)

    return setup
