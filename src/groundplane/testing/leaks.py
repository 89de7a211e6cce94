"""What a test may not leave behind: tasks, threads, open descriptors (sockets and files), child processes, memory.

    before = Snapshot()
    ...
    assert before.leaked() == []

The check costs well under a millisecond for a clean test: it compares what exists before and after, and waits only
when something is left.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

GRACE_S = 5.0
"""How long something may take to go away after the test ended."""

_RUN_VARIABLE = "GROUNDPLANE_TEST_RUN"
_IGNORED_TARGETS = ("/dev/", "/proc/", "/sys/", "pipe:[pytest")
_IGNORED_THREADS = ("pytest_timeout", "execnet", "pydevd", "ThreadPoolExecutor-hypothesis")


def descriptors(pid: int | None = None) -> dict[int, str]:
    """Open descriptors of a process (None: of this one) by number, with what they point at."""
    found: dict[int, str] = {}
    folder = f"/proc/{pid or 'self'}/fd"
    for name in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
        if not target.startswith(_IGNORED_TARGETS) or target.startswith("/dev/shm/"):
            found[int(name)] = target
    return found


def resident_bytes(pid: int | None = None) -> int:
    """Memory of a process (None: of this one) that is in RAM now."""
    pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def threads() -> set[threading.Thread]:
    """Threads of this process, without those of debuggers and test tools."""
    return {t for t in threading.enumerate() if not t.name.startswith(_IGNORED_THREADS)}


def children(parent: int | None = None) -> dict[int, str]:
    """Direct children of a process with their command lines; a child that ended unwaited is shown as `<zombie>`."""
    pid = os.getpid() if parent is None else parent
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            listed = (task / "children").read_text().split()
        except OSError:
            continue  # the thread ended meanwhile
        for child in listed:
            found[int(child)] = command_line(int(child))
    return found


def command_line(pid: int) -> str:
    """A process's arguments; `<zombie>` for one that ended unwaited, `<gone>` for none."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "<gone>"
    return raw.replace(b"\0", b" ").decode(errors="replace").strip() or "<zombie>"


def mark_run() -> str:
    """Mark this process's environment, so that every process it starts can be found again, orphans included."""
    token = f"{os.getpid()}-{time.monotonic_ns()}"
    os.environ[_RUN_VARIABLE] = token
    return token


def processes_of_run(token: str) -> dict[int, str]:
    """Every other live process that carries the mark of `mark_run`."""
    needle = f"{_RUN_VARIABLE}={token}".encode()
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # gone, or another user's
        if needle in environment:
            found[int(entry)] = command_line(int(entry))
    return found


_runtime: set[int] = set()


def _adopt_runtime() -> None:
    """obstore starts one runtime in a process, with its first request, and keeps it: these are nobody's leak. It is
    known by its shape, as numbers may be those of a closed event loop: two descriptors that poll, and what wakes them.
    """
    if "obstore" not in sys.modules or _runtime:
        return
    found = descriptors()
    polled = {fd: _polled(fd) for fd, target in found.items() if target == "anon_inode:[eventpoll]"}
    for waker in (fd for fd, target in found.items() if target == "anon_inode:[eventfd]"):
        pollers = [fd for fd, woken_by in polled.items() if waker in woken_by]
        if len(pollers) == 2:
            _runtime.update({waker, *pollers})


def _polled(fd: int) -> set[int]:
    """The descriptors that one which polls waits for: proc(5), `fdinfo`."""
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    except OSError:
        return set()  # closed meanwhile
    return {int(line.split()[1]) for line in lines if line.startswith("tfd:")}


def _closing_by_themselves() -> frozenset[str]:
    """Connections to object stores: obstore may close one `timeout_s` after the store was closed, and not before."""
    module = sys.modules.get("groundplane.backends.s3.objects")
    if module is None:
        return frozenset()
    found = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if int(words[2].rpartition(":")[2], 16) in module.Objects.ports:
                found.add(f"socket:[{words[9]}]")
    return frozenset(found)


class Snapshot:
    """What existed before a test; `leaked()` says what exists now and did not then."""

    def __init__(self) -> None:
        self.threads = threads()
        self.descriptors = descriptors()
        self.children = children()

    def leaked(self) -> list[str]:
        """Waits until nothing is left, at most `GRACE_S`; returns what still is."""
        left = self._difference()
        if not left:
            return []
        gc.collect()
        eventually(lambda: not self._difference(), GRACE_S)
        return self._difference()

    def _difference(self) -> list[str]:
        _adopt_runtime()
        left = [f"thread {t.name!r}" for t in threads() - self.threads if t.is_alive()]
        fresh = {fd: target for fd, target in descriptors().items() if self.descriptors.get(fd) != target}
        closing = _closing_by_themselves() if fresh else frozenset()
        for fd, target in fresh.items():
            if fd not in _runtime and target not in closing:
                left.append(f"descriptor {fd} -> {target}")
        left += [f"child process {pid}: {line}" for pid, line in children().items() if pid not in self.children]
        return sorted(left)


async def leaked_tasks(before: set[asyncio.Task[object]]) -> list[str]:
    """Tasks of the running loop which are not in `before`, after giving those being cancelled time to end."""
    deadline = time.monotonic() + GRACE_S
    while True:
        left = {task for task in asyncio.all_tasks() - before if not _of_the_test_runner(task)}
        if not left or time.monotonic() > deadline:
            return sorted(f"task {task.get_name()!r}: {task.get_coro()!r}" for task in left)
        await asyncio.wait(left, timeout=0.05)


def _of_the_test_runner(task: asyncio.Task[object]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")


def eventually(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Polls a synchronous condition until it holds or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
