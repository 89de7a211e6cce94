"""The files beside the database: what is synced, what is watched, and the space held back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from groundplane.core.errors import FailedPrecondition

_RECHECK_S = 1.0


class WriteAheadLog:
    """An own, permanently open descriptor of the `-wal` file, to make commits durable outside the write lock.

    Open it while a connection of this process has the file open: then nobody removes it. SQLite holds no locks on
    this file, so opening and closing it is safe (unlike the database and its `-shm`).
    """

    def __init__(self, path: str, sync: Callable[[int], None]) -> None:
        self._paths = (path, path + "-wal")
        self._sync = sync
        self._fd = os.open(self._paths[1], os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync_folder(path)
            self._inodes = tuple(os.stat(one).st_ino for one in self._paths)
            self.check()
        except BaseException:
            os.close(self._fd)
            raise

    def sync(self) -> None:
        """Returns when everything committed before is durable."""
        self._sync(self._fd)

    def check(self) -> None:
        """`failed_precondition` (`database_replaced`) where the files are no longer those which were opened."""
        try:
            same = (
                os.stat(self._paths[1]).st_ino == self._inodes[1] == os.fstat(self._fd).st_ino
                and os.stat(self._paths[0]).st_ino == self._inodes[0]
            )
        except FileNotFoundError:
            same = False
        if not same:
            raise FailedPrecondition(
                f"database: {self._paths[0]!r} or its -wal file was removed or replaced while it was open; "
                "stop every process of the plane, restore the file, and start again",
                reason="database_replaced",
                details={"path": self._paths[0]},
            )

    def size(self) -> int:
        """Bytes of the log."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)


class Ballast:
    """A file of zeros whose space is given up when the disk is full, so that essential writes still get through.

    It is as large as the log may grow between two checkpoints. So there is always room to move the log into the
    database, after which the log's own space is written over again and again. While it is given up (`spent`) other
    writes are to be refused, or they would eat the space.
    """

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._size = size
        self.spent = size > 0 and not os.path.exists(path)
        self._checked = -_RECHECK_S
        self.restore()

    def release(self) -> bool:
        """Gives the space up. Returns whether there was any left to give."""
        if not self._size:
            return False
        self.spent = True
        self._checked = time.monotonic()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return False
        return True

    def look(self) -> None:
        """Sees whether another process has given the space up."""
        if self._size and not os.path.exists(self._path):
            self.spent = True

    def restore(self) -> bool:
        """Takes the space back where there is twice as much as needed; looks at most once a second."""
        if not self.spent:
            return True
        now = time.monotonic()
        if now - self._checked < _RECHECK_S:
            return False
        self._checked = now
        room = os.statvfs(os.path.dirname(self._path))
        if room.f_bavail * room.f_frsize >= 2 * self._size:
            self.spent = not self._fill()
        return not self.spent

    def _fill(self) -> bool:
        """Allocates the file unless it is there; a full disk is no error."""
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            if os.fstat(fd).st_size < self._size:
                os.posix_fallocate(fd, 0, self._size)
        except OSError:
            os.unlink(self._path)
            return False
        finally:
            os.close(fd)
        return True


def sync_folder(path: str) -> None:
    """Makes the names of the files beside `path` durable: syncing a file does not promise that of its name."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
