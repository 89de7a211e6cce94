"""A disk that can be full: a small file system of its own, so that filling it harms nobody else."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


class NoSmallDisk(RuntimeError):
    """This machine cannot mount one; the message says why. Skip the test by this name."""


class SmallDisk:
    """A mounted file system of `size_bytes` at `path`."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._filler = path / ".filler"

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Take all room but `leave_bytes`: from now on writing more is ENOSPC."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while (room := self.free_bytes() - leave_bytes) > 0 or leave_bytes == 0:
                    file.write(bytes(min(65_536, max(4096, room))))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give back what `fill` took."""
        self._filler.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Room that is left."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def small_disk(folder: Path, *, size_bytes: int = 16 * 1024 * 1024) -> Iterator[SmallDisk]:
    """Mount a tmpfs of that size at `folder` (made where it is missing) until the block ends.

    Raises `NoSmallDisk` without root, or where the kernel refuses to mount.
    """
    if os.geteuid() != 0:
        raise NoSmallDisk("needs root to mount a small file system (tmpfs)")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=1777", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        raise NoSmallDisk(f"a small file system (tmpfs) cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder, size_bytes)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
