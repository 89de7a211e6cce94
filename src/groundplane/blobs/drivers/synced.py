"""Which folders' names are known to be durable, so that a new object costs one sync of its folder and not one of each
folder above it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

_HELD_MAX = 32


class SyncedFolders:
    """Holds the folders it knows open: while it does, no other folder can get their numbers.

    A folder is removed only when it is empty. So one that still is the folder it was has never been away, and neither
    has any above it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._held: OrderedDict[Path, int] = OrderedDict()
        self._lock = threading.Lock()

    def sync_up(self, folder: Path) -> None:
        """The names in `folder`, and those of it and of all above it, are durable when this returns.

        Another process may have made one of the folders and not yet have synced its name: what is not known is synced.
        """
        sync_folder(folder)
        fresh: list[tuple[Path, int]] = []
        try:
            while folder != self._root and not self._known(folder):
                fresh.append((folder, _opened(folder)))  # before its name is synced: what is remembered is what was
                folder = folder.parent
                sync_folder(folder)
        except BaseException:
            for _, descriptor in fresh:
                os.close(descriptor)
            raise
        self._remember(fresh)

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            while self._held:
                os.close(self._held.popitem()[1])

    def _known(self, folder: Path) -> bool:
        with self._lock:
            descriptor = self._held.get(folder)
            if descriptor is None:
                return False
            self._held.move_to_end(folder)
            return os.path.samestat(os.fstat(descriptor), os.stat(folder))

    def _remember(self, fresh: list[tuple[Path, int]]) -> None:
        with self._lock:
            for folder, descriptor in fresh:
                if folder in self._held:
                    os.close(self._held.pop(folder))
                self._held[folder] = descriptor
            while len(self._held) > _HELD_MAX:
                os.close(self._held.popitem(last=False)[1])


def sync_folder(folder: Path) -> None:
    """The names in a folder are durable when this returns."""
    descriptor = _opened(folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
