"""The write lock of a database file among processes: `flock` on a file of its own, with a deadline.

SQLite's own back-off starves writers for seconds; the kernel's queue for a `flock` does not. The kernel waits without
limit, though, and a stopped holder would block every writer: so the long wait happens in a thread that may be left
behind, and is used again by the next caller or undone when it ends.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

_SPIN_S = 0.0015
_PAUSE_S = 0.00005


class LockFile:
    """One descriptor, one holder in this process at a time; the caller sees to that."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._changed = threading.Condition()
        self._waiting = self._wanted = self._granted = self._aborted = self._closed = False
        self.contended = 0

    def try_acquire(self) -> bool:
        """Takes the lock if it is free now."""
        with self._changed:
            if self._waiting or self._aborted:
                return False
            return self._try()

    def acquire(self, deadline: float) -> bool:
        """Takes the lock, or returns False at the deadline (of `time.monotonic`) and after `abort`."""
        if self.try_acquire():
            return True
        self.contended += 1
        spin_until = min(deadline, time.monotonic() + _SPIN_S)
        while time.monotonic() < spin_until:
            time.sleep(_PAUSE_S)
            if self.try_acquire():
                return True
        return self._await_kernel(deadline)

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def abort(self) -> None:
        """Ends waiting at once; from now on the lock is never had."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def close(self) -> None:
        """Call once, when nobody holds the lock. A thread still waiting in the kernel closes it when it wakes."""
        self.abort()
        with self._changed:
            self._closed = True
            if not self._waiting:
                os.close(self._fd)

    def forget(self) -> None:
        """Closes the descriptor in a forked child, which would otherwise share the lock of its parent."""
        os.close(self._fd)

    def holder(self) -> str:
        """Who holds the lock as far as /proc tells: 'process 4711 (stopped)', or nothing."""
        try:
            wanted = f":{os.fstat(self._fd).st_ino}"
            for line in Path("/proc/locks").read_text().splitlines():
                words = line.split()
                if "->" not in words and words[1] == "FLOCK" and words[5].endswith(wanted):
                    return f"process {words[4]}{_state(words[4])}"
        except (OSError, IndexError):
            return ""
        return ""

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _await_kernel(self, deadline: float) -> bool:
        with self._changed:
            self._wanted = True
            if not self._waiting and not self._aborted:
                threading.Thread(target=self._wait_in_kernel, name="groundplane-flock", daemon=True).start()
                self._waiting = True
            while not self._granted:
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._aborted:
                    self._wanted = False
                    return False
                self._changed.wait(remaining)
            self._granted = self._wanted = False
            return True

    def _wait_in_kernel(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        with self._changed:
            self._waiting = False
            if self._wanted and not self._aborted:
                self._granted = True
                self._changed.notify_all()
                return
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            if self._closed:
                os.close(self._fd)


def _state(pid: str) -> str:
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
    return {"T": " (stopped)", "t": " (stopped by a debugger)", "D": " (waiting for the disk)"}.get(letter, "")
