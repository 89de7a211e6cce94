"""Watching source files: one `stat` for each once a second, which costs nothing that can be measured."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

INTERVAL_S = 1.0
FILES_MAX = 5000

Stamp = tuple[int, int, int] | None


class Watch:
    """The files and their state when they were last looked at."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._stamps: dict[Path, Stamp] = {}
        self.set(files)

    def __repr__(self) -> str:
        return f"<Watch {len(self._stamps)} files>"

    def set(self, files: Iterable[Path]) -> None:
        """Watch these from now on; those that were watched before keep their state."""
        chosen = sorted(set(files))[:FILES_MAX]
        self._stamps = {file: self._stamps[file] if file in self._stamps else _stamp(file) for file in chosen}

    def changed(self) -> list[Path]:
        """The files that changed, came or went since the last look."""
        found = []
        for file, before in self._stamps.items():
            now = _stamp(file)
            if now != before:
                self._stamps[file] = now
                found.append(file)
        return found

    async def wait(self) -> list[Path]:
        """Wait until something changed, and then until it stays the same for one look."""
        found: set[Path] = set()
        while True:
            latest = self.changed()
            found.update(latest)
            if found and not latest:
                return sorted(found)
            await asyncio.sleep(INTERVAL_S / 10 if found else INTERVAL_S)


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
