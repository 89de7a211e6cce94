"""The lock file: what an abandoned wait may not do to the next holder."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundplane.backends.sqlite.lock_file import LockFile


class Other:
    """Another process, as far as the kernel can tell: a descriptor of its own."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def take(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def leave(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_UN)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    created = Other(tmp_path / "lock")
    yield created
    os.close(created.fd)


@pytest.fixture
def lock(tmp_path: Path, other: Other) -> Iterator[LockFile]:
    created = LockFile(str(tmp_path / "lock"))
    yield created
    other.leave()
    created.close()


def test_a_wait_that_was_given_up_never_unlocks_the_next_holder(lock: LockFile, other: Other) -> None:
    for _ in range(50):
        assert other.take()
        assert not lock.acquire(time.monotonic() + 0.003)
        other.leave()
        until = time.monotonic() + 5
        while not lock.try_acquire():
            assert time.monotonic() < until
        for _ in range(20):
            assert not other.take(), "the lock was lost to a wait that nobody waits for any more"
            time.sleep(0.0001)
        lock.release()


def test_a_wait_uses_the_wait_that_was_given_up_before(lock: LockFile, other: Other) -> None:
    assert other.take()
    for _ in range(3):
        assert not lock.acquire(time.monotonic() + 0.01)
    assert sum(t.name == "groundplane-flock" for t in threading.enumerate()) == 1
    threading.Timer(0.02, other.leave).start()
    assert lock.acquire(time.monotonic() + 5)
    assert not other.take()
    lock.release()
    assert other.take()


def test_abort_ends_a_wait_at_once_and_for_good(lock: LockFile, other: Other) -> None:
    assert other.take()
    threading.Timer(0.02, lock.abort).start()
    began = time.monotonic()
    assert not lock.acquire(began + 30)
    assert time.monotonic() - began < 5
    other.leave()
    assert not lock.acquire(time.monotonic() + 0.01)


def test_the_holder_is_named_and_nobody_when_it_is_free(lock: LockFile, other: Other) -> None:
    assert lock.holder() == ""
    assert other.take()
    assert lock.holder() == f"process {os.getpid()}"
