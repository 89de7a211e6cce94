"""What `groundplane doctor` says of the limits that the system sets to a process: files, processes, memory."""

from __future__ import annotations

import resource
from pathlib import Path

from groundplane.cli.finding import Finding
from groundplane.core.settings import Settings

FILES_BESIDE = 512
"""Files and sockets of a gateway beside those of its clients."""
PROCESSES_MIN = 256
MEMORY_MIN_BYTES = 512 * 1024 * 1024
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def examine_limits(settings: Settings) -> list[Finding]:
    """A finding for each limit that is too low for a plane on this machine, or one that all are fine."""
    files = _soft(resource.RLIMIT_NOFILE)
    processes = _soft(resource.RLIMIT_NPROC)
    memory = _memory()
    wanted = settings.connections + FILES_BESIDE
    found: list[Finding] = []
    if files is not None and files < wanted:
        text = f"a process may open {files} files; the gateway takes up to {settings.connections} connections"
        remedy = f"Allow {wanted} (`ulimit -n {wanted}`, LimitNOFILE= of systemd), or set gateway.connections lower."
        found.append(_low("files", text, remedy))
    if processes is not None and processes < PROCESSES_MIN:
        text = f"this user may have {processes} processes and threads"
        found.append(_low("processes", text, f"Allow {PROCESSES_MIN} (`ulimit -u`, TasksMax= of systemd)."))
    if memory is not None and memory < MEMORY_MIN_BYTES:
        text = f"there are {memory / 2**20:,.0f} MiB of memory"
        found.append(_low("memory", text, "Give it 512 MiB: a gateway takes 100, a sidecar 40, each runtime its own."))
    shown = ", ".join(
        f"{name} {value if value is not None else 'without limit'}"
        for name, value in (("files", files), ("processes", processes))
    )
    return found or [Finding(check="limits", severity="ok", message=shown)]


def _low(what: str, message: str, remedy: str) -> Finding:
    return Finding(check="limits", severity="warning", reason=f"limit_{what}", message=message, remedy=remedy)


def _soft(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _memory() -> int | None:
    """Bytes that the machine has, or that its control group allows."""
    amounts: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        amounts += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]
        allowed = _CGROUP.read_text().strip()
        amounts += [int(allowed)] if allowed.isdecimal() else []
    except OSError:  # not Linux, or no such control group: what was read by then is told
        pass
    return min(amounts, default=None)
