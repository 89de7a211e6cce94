"""The checkers of states, order, queues, leaks and memory notice what they are for, and pass what is good."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

import groundplane.testing as kit
from groundplane.testing import (
    BrokenPromise,
    History,
    Memory,
    NoSmallDisk,
    Snapshot,
    States,
    check_nothing_leaked,
    check_queues_empty,
    small_disk,
)

pytestmark = pytest.mark.req("KIT-06.3")


class Depth(msgspec.Struct):
    ready: int = 0
    in_flight: int = 0
    delayed: int = 0


def test_order_is_checked_within_each_group_where_only_that_is_promised() -> None:
    history = History()
    history.sent("a1", "b1", "a2", "b2")
    history.done("b1", "b2", "a1", "a2")
    history.check_order(of=lambda one: one[0])
    with pytest.raises(BrokenPromise, match=r"^out of order: a1$"):
        history.check_order()
    history.done("b1")
    with pytest.raises(BrokenPromise, match=r"^out of order: b1$"):
        history.check_order(of=lambda one: one[0])


def test_a_terminal_state_that_changes_is_named_with_both_states() -> None:
    states = States()
    for state in ("pending", "running", "succeeded", "succeeded"):
        states.saw("good", state)
    states.check_terminal_states_never_change()
    states.check_all_ended()
    for state in ("timed_out", "succeeded"):
        states.saw("bad", state)
    with pytest.raises(BrokenPromise, match=r"bad \(timed_out → succeeded\)$"):
        states.check_terminal_states_never_change()
    states.saw("open", "running")
    with pytest.raises(BrokenPromise, match=r"^not ended: open \(running\)$"):
        states.check_all_ended()


@pytest.mark.parametrize("left", [Depth(ready=1), Depth(in_flight=1), Depth(delayed=1)])
def test_a_queue_that_is_not_empty_is_named(left: Depth) -> None:
    check_queues_empty({"a": Depth()})
    with pytest.raises(BrokenPromise, match=r"^queues not empty: q \(") as caught:
        check_queues_empty({"a": Depth(), "q": left})
    assert len(caught.value.ids) == 1


@pytest.mark.leaks("leaks on purpose")
def test_what_is_left_behind_is_named_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundplane.testing.leaks.GRACE_S", 0.1)
    before = Snapshot()
    check_nothing_leaked(before)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()
    listener = socket.create_server(("127.0.0.1", 0))
    file = (tmp_path / "left").open("w")
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        with pytest.raises(BrokenPromise) as caught:
            check_nothing_leaked(before)
        left = "\n".join(caught.value.ids)
        for expected in ("thread 'forgotten'", "socket:", "left", f"child process {child.pid}"):
            assert expected in left
    finally:
        stop.set()
        thread.join()
        listener.close()
        file.close()
        child.communicate()
    check_nothing_leaked(before)


def test_the_runtime_of_obstore_is_no_leak_whatever_numbers_it_gets_and_another_eventfd_is_one() -> None:
    code = """
import os, select
import obstore
from obstore.store import MemoryStore
from groundplane.testing import leaks

leaks.GRACE_S = 0.1
number_in_use = select.epoll()
before = leaks.Snapshot()
number_in_use.close()
obstore.put(MemoryStore(), "a", b"x")
print(before.leaked(), len(leaks._runtime))
other = os.eventfd(0)
print([one.split(" -> ")[1] for one in before.leaked()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["[] 3", "['anon_inode:[eventfd]']"], done.stderr


def test_memory_that_grows_past_its_bound_is_said() -> None:
    memory = Memory(os.getpid())
    kept = bytearray(b"x") * (64 << 20)
    with pytest.raises(BrokenPromise, match="memory grew: by"):
        memory.check_growth(32 << 20)
    memory.check_growth(len(kept) + (16 << 20))


@pytest.mark.req("KIT-06.2")
def test_a_small_disk_is_filled_and_freed(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "disk", size_bytes=4 << 20) as disk:
            disk.fill(leave_bytes=1 << 20)
            assert 0 < disk.free_bytes() <= 1 << 20
            (disk.path / "fits").write_bytes(bytes(100_000))
            disk.fill()
            with pytest.raises(OSError, match="No space left"):
                (disk.path / "more").write_bytes(bytes(100_000))
            disk.free()
            (disk.path / "more").write_bytes(bytes(100_000))
    except NoSmallDisk as error:
        pytest.skip(str(error))
    assert list((tmp_path / "disk").iterdir()) == []


def test_without_root_there_is_no_small_disk_and_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoSmallDisk, match="needs root"), small_disk(tmp_path):
        pass


@pytest.mark.parametrize("name", kit.__all__)
def test_every_public_name_of_the_kit_is_there(name: str) -> None:
    assert getattr(kit, name).__name__ == name
