"""The folder in which installed servers and tools lie: by name, version and origin, each whole or not there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from groundplane.testing.servers.contract import Report

VARIABLE = "GROUNDPLANE_SERVERS_DIR"


def cache_folder() -> Path:
    """GROUNDPLANE_SERVERS_DIR, or `~/.cache/groundplane/servers` (XDG_CACHE_HOME)."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "groundplane" / "servers"


def build(folder: Path, make: Callable[[Path], None], report: Report) -> None:
    """Let `make` fill an empty folder beside, and give it its name when that is done; nothing stays where it fails.
    Call it while the folder is `locked`.
    """
    half = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    started = time.monotonic()
    try:
        make(half)
        if any(half.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
            half.rename(folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    report(f"done in {time.monotonic() - started:.0f} s")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While this process, and no other, may build the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.with_name(folder.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
