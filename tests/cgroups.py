"""A memory cgroup of a test's own, where this machine lets one be made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A cgroup with a limit. What is started with `inside` lives in it."""

    def __init__(self, folder: Path, limit_bytes: int, version: int) -> None:
        self.folder = folder
        names = ("memory.max", "memory.swap.max") if version == 2 else _NAMES_OF_VERSION_1
        for name in names:
            if (folder / name).exists():
                swap = version == 2 and "swap" in name
                (folder / name).write_text("0" if swap else str(limit_bytes))
        self._events = folder / ("memory.events" if version == 2 else "memory.oom_control")

    def inside(self, arguments: list[str]) -> list[str]:
        """The command that runs these arguments in the group."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *arguments]

    def kills(self) -> int:
        """How many processes of the group the kernel has killed for want of memory."""
        lines = (line.split() for line in self._events.read_text().splitlines())
        return next((int(line[1]) for line in lines if line[0] == "oom_kill"), 0)


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """A new group, gone afterwards; the test is skipped where none can be made."""
    folder, version = _made()
    try:
        yield MemoryGroup(folder, limit_bytes, version)
    finally:
        folder.rmdir()


_NAMES_OF_VERSION_1 = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")


def _made() -> tuple[Path, int]:
    name = f"groundplane-test-{os.getpid()}-{os.urandom(3).hex()}"
    reasons = []
    for parent, version in ((ROOT / "memory", 1), (ROOT, 2)):
        folder = parent / name
        try:
            if version == 2:
                _delegate_memory(parent)
            folder.mkdir()
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        if (folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).exists():
            return folder, version
        folder.rmdir()
        reasons.append(f"{parent}: has no memory controller")
    pytest.skip(f"the kernel's OOM killer: no memory cgroup can be made here ({'; '.join(reasons)}); run as root with "
                "a writable /sys/fs/cgroup")  # fmt: skip


def _delegate_memory(parent: Path) -> None:
    if "memory" not in (parent / "cgroup.controllers").read_text().split():
        return
    control = parent / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory")
