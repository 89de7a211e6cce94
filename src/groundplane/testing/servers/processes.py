"""Starting, finding and ending processes: groups, descendants, accounts, memory. Linux, by /proc."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundplane.core.errors import Unavailable
from groundplane.testing.servers.contract import Account

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def account_of(names: Sequence[str]) -> Account | None:
    """The first of these users that exists, where the caller is root and may become it; None = stay who you are."""
    if not names or os.geteuid() != 0:
        return None
    for name in (*names, "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return Account(found.pw_name, found.pw_uid, found.pw_gid)
    return None


def give(path: Path, account: Account | None) -> None:
    """Make a file or folder, with everything below it, the account's own."""
    if account is None:
        return
    for one in (path, *path.rglob("*")):
        os.chown(one, account.uid, account.gid, follow_symlinks=False)


def environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The small environment of a server: nothing of the caller's gets in but the way to programs and the mark of a run
    of tests, by which a process that is left behind is found.
    """
    kept = {name: os.environ[name] for name in ("PATH", "JAVA_HOME", "GROUNDPLANE_TEST_RUN") if name in os.environ}
    path = f"{kept.get('PATH', '')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".lstrip(":")
    return {**kept, "PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "TZ": "UTC", **extra}


def spawn(
    argv: Sequence[str], *, home: Path, env: Mapping[str, str], account: Account | None, log: Path
) -> subprocess.Popen[bytes]:
    """Start a process that leads its own session; its output goes to the end of `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(argv), cwd=home, env=environment(home, env), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, umask=0o077 if account else -1, **_as(account),
        )  # fmt: skip


def run(
    argv: Sequence[str],
    *,
    home: Path,
    env: Mapping[str, str] | None = None,
    account: Account | None = None,
    timeout_s: float = 60.0,
) -> str:
    """Run a command to its end; its output. Raises `Unavailable` with the last lines where it fails."""
    try:
        done = subprocess.run(
            list(argv), cwd=home, env=environment(home, env or {}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=timeout_s, check=False, start_new_session=True, **_as(account),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{argv[0]}: {error}") from error
    text: str = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise Unavailable(f"{argv[0]}: ended with {done.returncode}:\n{tail(text, 20)}")
    return text


def _as(account: Account | None) -> dict[str, Any]:
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": [account.gid]}


def tail(text: str, lines: int) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def tail_of(path: Path, lines: int, bytes_max: int = 262_144) -> str:
    """The last lines of a file, which may be long or missing."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - bytes_max))
            return tail(log.read().decode(errors="replace"), lines)
    except FileNotFoundError:
        return ""


def alive(pid: int) -> bool:
    """Whether the process exists and has not ended: one whose first thread alone has ended still holds its ports."""
    fields = _fields(pid)
    return bool(fields) and not _ended(fields)


def _fields(pid: int | str) -> list[str]:
    """Of /proc/PID/stat, from the state on; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _ended(fields: list[str]) -> bool:
    state, threads = fields[0], int(fields[17])
    return state == "X" or (state == "Z" and threads <= 1)


def descendants(roots: Sequence[int]) -> list[int]:
    """These processes and everything below them and in their sessions, parents first."""
    below: dict[int, list[int]] = {}
    sessions: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        fields = _fields(entry) if entry.isdigit() else []
        if fields and not _ended(fields):
            below.setdefault(int(fields[1]), []).append(int(entry))
            sessions.setdefault(int(fields[3]), []).append(int(entry))
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop(0)
        if pid in found or (not alive(pid) and pid not in sessions):
            continue
        found.append(pid)
        waiting += below.get(pid, []) + [p for p in sessions.get(pid, []) if p != pid]
    return [pid for pid in found if alive(pid)]


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """The signal to each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def freeze_tree(roots: Sequence[int], timeout_s: float = 10.0) -> None:
    """SIGSTOP to these processes and all below them, those born meanwhile included; returns when no thread runs."""
    deadline = time.monotonic() + timeout_s
    while running := [pid for pid in descendants(roots) if not _stands_still(pid)]:
        if time.monotonic() > deadline:
            raise Unavailable(f"processes {running}: do not stop")
        send(running, signal.SIGSTOP)
        time.sleep(0.002)


def _stands_still(pid: int) -> bool:
    try:
        threads = [Path(entry, "stat").read_text() for entry in os.scandir(f"/proc/{pid}/task")]
    except OSError:
        return not alive(pid)  # a thread ended meanwhile: look again
    return all(one.rpartition(")")[2].split()[0] in "TtZX" for one in threads)


def kill_tree(roots: Sequence[int], timeout_s: float = 10.0) -> None:
    """SIGKILL to these processes and all below them, those born meanwhile included; returns when they are gone."""
    deadline = time.monotonic() + timeout_s
    seen: set[int] = set(roots)
    while True:
        found = descendants(sorted(seen))
        seen.update(found)
        send(found, signal.SIGKILL)
        reap(seen)
        if not found:
            return
        if time.monotonic() > deadline:
            raise Unavailable(f"processes {found} do not end after SIGKILL within {timeout_s:g} s")
        time.sleep(0.002)


def reap(pids: set[int]) -> None:
    """Take the exit codes of those that were handed to us as their reaper."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def memory_bytes(pids: Sequence[int]) -> int:
    """Resident memory, pages shared among several counted once (PSS) where the kernel tells."""
    return sum(_memory(pid) for pid in pids)


def _memory(pid: int) -> int:
    for name, field in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
        except OSError:
            continue
    return 0


def die_with(parent: int, number: signal.Signals) -> Callable[[], None]:
    """For `preexec_fn`: the child gets this signal when its parent is gone, also by SIGKILL. To be made and started by
    the main thread: the kernel means the thread.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def setup() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return setup


def become_reaper() -> None:
    """Orphans among our descendants become our children instead of init's, so that none is lost."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def may_walk(path: Path, account: Account | None) -> bool:
    """Whether the account may walk through all parents of the path: those that are open to everybody."""
    return account is None or all(one.stat().st_mode & 0o001 for one in path.parents)


def reachable(folder: Path, account: Account | None) -> Path:
    """The folder where the account can read it: itself, or a copy where a parent shuts the account out (root's home).

    The copy is made once, beside the machine's caches, under the name of the folder.
    """
    if may_walk(folder / "x", account):
        return folder
    target = Path("/var/cache/groundplane/servers", *folder.parts[-2:])
    if not target.exists():
        half = target.with_name(f"{target.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        half.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, half, symlinks=True)
        try:
            half.rename(target)
        except OSError:  # somebody else was quicker
            shutil.rmtree(half)
    return target
