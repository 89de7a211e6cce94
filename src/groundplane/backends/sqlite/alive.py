"""Proof of life among the processes of one machine: a file that is locked as long as its owner lives."""

from __future__ import annotations

import fcntl
import os
import secrets
import weakref
from contextlib import suppress
from pathlib import Path


class AliveFile:
    """A locked file: proof that this process lives, readable by others."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        while True:
            self.name = f"{secrets.token_hex(8)}.alive"
            self._fd = os.open(folder / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if self._lock():
                break
            os.close(self._fd)
        os.write(self._fd, f"{os.getpid()}\n".encode())
        _FILES.add(self)

    def _lock(self) -> bool:
        """False where somebody who tidies up took the file between its creation and its lock."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return os.fstat(self._fd).st_nlink == 1

    def close(self) -> None:
        _FILES.discard(self)
        with suppress(FileNotFoundError):
            os.unlink(self._folder / self.name)
        os.close(self._fd)

    def forget(self) -> None:
        """In a forked child: the lock is shared with it and must end with the parent."""
        os.close(self._fd)


def owner_has_ended(path: Path) -> bool:
    """Whether the lock of an alive file is free. A file that is not there tells nothing: False."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


_FILES: weakref.WeakSet[AliveFile] = weakref.WeakSet()


def _forget_files() -> None:
    for file in list(_FILES):
        with suppress(OSError):
            file.forget()


os.register_at_fork(after_in_child=_forget_files)
