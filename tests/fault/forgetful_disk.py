# ruff: noqa: N802 (the names of SQLite)
"""A disk that forgets, at a loss of power, whatever was not synced: an apsw VFS that keeps its own books.

Every write and truncation is noted per file and becomes durable when that file is synced; the name of a new file, and
the removal of one, when the folder is. `crash()` writes what would be left into another folder: nothing unsynced, or
a random choice of it, torn at sector boundaries.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512


class Image:
    """One file: what is durable, and what has been written since, as (offset, bytes) or a size for a truncation."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.unsynced: list[tuple[int, bytes] | int] = []
        self.named = False
        self.removed = False

    def sync(self) -> None:
        for change in self.unsynced:
            apply(self.durable, change)
        self.unsynced.clear()


class ForgetfulDisk(apsw.VFS):
    """Register one, open connections with its name, and give `sync` and `sync_folder` to the engine."""

    def __init__(self, name: str, seed: int) -> None:
        self.lock = threading.RLock()
        self.images: dict[str, Image] = {}
        self.at_sync: Callable[[str], None] = lambda name: None
        self.syncs = 0
        self._chance = random.Random(seed)
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> _File:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        with self.lock:
            if path is not None:
                image = self.images.setdefault(os.path.basename(path), Image())
                image.removed = False
        return _File(self, name, flags, os.path.basename(path or ""))

    def xDelete(self, name: str, sync_folder: bool) -> None:
        super().xDelete(name, sync_folder)
        with self.lock:
            if sync_folder:
                self.images.pop(os.path.basename(name), None)
            elif os.path.basename(name) in self.images:
                self.images[os.path.basename(name)].removed = True

    def change(self, name: str, change: tuple[int, bytes] | int) -> None:
        with self.lock:
            if name in self.images:
                self.images[name].unsynced.append(change)

    def sync_file(self, name: str, *, with_name: bool = False) -> None:
        """The moment at which power may go: just before and just after."""
        with self.lock:
            self.syncs += 1
            self.at_sync(f"before the sync of {name}")
            if name in self.images:
                self.images[name].sync()
                self.images[name].named |= with_name
            self.at_sync(f"after the sync of {name}")

    def sync(self, fd: int) -> None:
        """For `Options.sync`."""
        self.sync_file(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    def sync_folder(self, path: str) -> None:
        """Instead of `files.sync_folder`."""
        with self.lock:
            self.images = {name: image for name, image in self.images.items() if not image.removed}
            for image in self.images.values():
                image.named = True

    def crash(self, folder: Path, *, luck: float) -> None:
        """Writes what is left; each unsynced change survives, torn, with the probability `luck`."""
        for old in folder.iterdir():
            old.unlink()
        for name, image in self.images.items():
            if image.named and not name.endswith("-shm"):
                left = bytearray(image.durable)
                for change in image.unsynced:
                    if luck and self._chance.random() < luck:
                        apply(left, self._torn(change))
                (folder / name).write_bytes(left)

    def _torn(self, change: tuple[int, bytes] | int) -> tuple[int, bytes] | int:
        if isinstance(change, int) or self._chance.random() < 0.7:
            return change
        offset, data = change
        return offset, data[: self._chance.randrange(0, len(data) + SECTOR, SECTOR)]


class _File(apsw.VFSFile):
    def __init__(self, disk: ForgetfulDisk, name: Any, flags: list[int], base: str) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        self._base = base

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._disk.change(self._base, (offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._disk.change(self._base, size)

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._disk.sync_file(self._base, with_name=self._base.endswith(("-wal", "-journal")))


def apply(data: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        if change < len(data):
            del data[change:]
        else:
            data.extend(bytes(change - len(data)))
        return
    offset, written = change
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(written)] = written
