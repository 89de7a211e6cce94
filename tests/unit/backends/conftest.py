"""A table for the tests of the engine, and a sync that the test holds in its hand."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from groundplane.backends.sqlite import MigrationSet

NOTES = MigrationSet(
    component="notes",
    scripts=(("0001_create.sql", "CREATE TABLE note (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT UNIQUE) STRICT"),),
)


class HeldSync:
    """A sync function that counts, and blocks while it is held."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: OSError | None = None
        self._open = threading.Event()
        self._open.set()
        self.entered = threading.Event()

    def __call__(self, fd: int) -> None:
        self.calls += 1
        self.entered.set()
        if not self._open.wait(20):
            raise TimeoutError("the test never let the sync go")
        if self.error is not None:
            raise self.error

    def hold(self) -> None:
        self.entered.clear()
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()


@pytest.fixture
def notes() -> MigrationSet:
    return NOTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plane.db"


@pytest.fixture
def sync() -> HeldSync:
    return HeldSync()
