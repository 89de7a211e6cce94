"""Several real processes on one file: nothing acknowledged is lost, nobody is starved, everybody is woken."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from groundplane.backends.sqlite import Database, Options
from groundplane.core.errors import Unavailable
from groundplane.testing.checkers import History
from groundplane.testing.concurrency import eventually

sys.path.insert(0, str(Path(__file__).parent))
from engine_child import ROWS, stamp

CHILD = Path(__file__).with_name("engine_child.py")


class Child:
    """A process of the test, and the lines that it has said."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                if line.endswith("\n"):
                    self.lines.append(line.rstrip())
                self._changed.notify_all()

    def expect(self, count: int, timeout_s: float = 20) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.lines) >= count, timeout_s):
                raise TimeoutError(f"{self.lines[-3:]} {self.process.poll()}")

    def tell(self, text: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.finish()

    def finish(self, timeout_s: float = 30) -> tuple[int, str]:
        try:
            status = self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self._reader.join()
            for stream in (self.process.stdin, self.process.stdout):
                assert stream is not None
                stream.close()
        assert self.process.stderr is not None
        with self.process.stderr as errors:
            return status, errors.read()


@contextmanager
def children(*argument_lists: tuple[object, ...]) -> Iterator[list[Child]]:
    started: list[Child] = []
    try:
        for arguments in argument_lists:
            started.append(Child(*arguments))
        yield started
    finally:
        for child in started:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGCONT)
            if not child.process.stdout or not child.process.stdout.closed:
                child.kill()


def rows(path: Path) -> list[str]:
    raw = sqlite3.connect(path)
    try:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [f"{writer} {n}" for writer, n in raw.execute("SELECT writer, n FROM row")]
    finally:
        raw.close()


@pytest.mark.req("CORE-06.1")
def test_ten_processes_that_open_a_new_file_at_once_all_succeed(tmp_path: Path) -> None:
    path = tmp_path / "plane.db"
    with children(*[("open", path)] * 10) as opened:
        for child in opened:
            child.expect(1)
        for child in opened:
            child.tell()
        for child in opened:
            assert child.finish() == (0, "")
    assert len(rows(path)) == 10


@pytest.mark.req("QUEUE-13")
def test_writers_of_several_processes_lose_nothing_and_share_fairly(tmp_path: Path) -> None:
    path = tmp_path / "plane.db"
    modes = ["thread", "inline", "thread", "inline"]
    with children(*[("write", path, f"w{i}", 3, mode) for i, mode in enumerate(modes)]) as writers:
        for child in writers:
            assert child.finish(60) == (0, "")
        acknowledged = [{line for line in child.lines if line.startswith("w") and line[1] != "a"} for child in writers]
    history = History()
    history.sent(*set().union(*acknowledged))
    history.done(*rows(path))
    history.check_nothing_lost()
    history.check_nothing_invented()
    slowest, fastest = min(map(len, acknowledged)), max(map(len, acknowledged))
    assert slowest > fastest * 0.1, f"a writer was starved: {slowest} of {fastest}"


@pytest.mark.req("QUEUE-13")
def test_sigkill_in_the_midst_of_writing_loses_no_acknowledged_row(tmp_path: Path) -> None:
    path = tmp_path / "plane.db"
    chance = random.Random(7)
    acknowledged: set[str] = set()
    for round_ in range(4):
        arguments = [("write", path, f"r{round_}c{i}", 60, ("thread", "inline")[i % 2]) for i in range(3)]
        with children(*arguments) as writers:
            for child in writers:
                child.expect(50)
            for child in chance.sample(writers, len(writers)):
                child.expect(len(child.lines) + chance.randrange(1, 40))
                child.kill()
            for child in writers:
                acknowledged |= {line for line in child.lines if line.startswith(f"r{round_}c")}
        survived = rows(path)
        history = History()
        history.sent(*acknowledged)
        history.done(*survived)
        history.check_nothing_lost()
        history.check_no_effect_twice()
        assert len(survived) - len(acknowledged) < (round_ + 1) * 3 * 8 + 1, "rows that nobody asked for"
    assert len(acknowledged) > 600


@pytest.mark.anyio
async def test_a_listener_in_another_process_is_woken_by_its_bell(tmp_path: Path) -> None:
    path = tmp_path / "plane.db"
    with children(("listen", path, 50, 3600)) as (listener,):
        async with Database.open(path, [ROWS]) as db:
            listener.expect(1)
            for i in range(50):
                await db.write(stamp)
                listener.expect(i + 2, 10)
            await eventually(lambda: db.statistics().rings_sent == 50, "the last is counted after it has rung")
        assert listener.finish() == (0, "")
    late = sorted(int(line.split()[1]) / 1e6 for line in listener.lines[1:])
    assert len(late) == 50
    assert late[25] < 50, f"the median was {late[25]:.1f} ms: that is no bell"


@pytest.mark.anyio
async def test_a_writer_killed_before_it_could_ring_is_noticed_by_the_poll(tmp_path: Path) -> None:
    """A commit without a ring, as a SIGKILL between commit and ring leaves it behind."""
    path = tmp_path / "plane.db"
    with children(("listen", path, 3, 0.1)) as (listener,):
        listener.expect(1)
        for i in range(3):
            raw = sqlite3.connect(path)
            with raw:
                raw.execute("INSERT INTO stamp (sent_ns) VALUES (?)", (time.monotonic_ns(),))
            raw.close()
            listener.expect(i + 2, 10)
        assert listener.finish() == (0, "")


@pytest.mark.anyio
async def test_a_listener_that_was_killed_leaves_a_bell_which_the_next_writer_removes(tmp_path: Path) -> None:
    path = tmp_path / "plane.db"
    with children(("listen", path, 50, 3600)) as (listener,):
        listener.expect(1)
        listener.kill()
    assert len(os.listdir(tmp_path / "wake")) == 1
    async with Database.open(path, [ROWS]) as db:
        await db.write(stamp)
    assert os.listdir(tmp_path / "wake") == []


@pytest.mark.anyio
@pytest.mark.parametrize("inline", [False, True], ids=["thread", "inline"])
async def test_a_stopped_process_that_holds_the_lock_is_an_error_which_names_it_not_a_hang(
    tmp_path: Path, inline: bool
) -> None:
    path = tmp_path / "plane.db"
    async with Database.open(path, [ROWS], options=Options(busy_timeout_s=0.3), inline=inline) as db:
        with children(("hold", path)) as (holder,):
            holder.expect(1)
            os.kill(holder.process.pid, signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                await db.write(stamp)
            assert time.monotonic() - began < 5
            assert caught.value.reason == "database_busy"
            assert f"process {holder.process.pid} (stopped)" in str(caught.value)
            assert await db.read(lambda tx: tx.execute("SELECT count(*) FROM stamp")) == [(0,)]
            waiting = asyncio.create_task(db.write(stamp))
            holder.kill()
            await waiting
        await db.write(stamp)


@pytest.mark.anyio
async def test_a_killed_holder_frees_the_lock_at_once(tmp_path: Path) -> None:
    path = tmp_path / "plane.db"
    async with Database.open(path, [ROWS], options=Options(busy_timeout_s=20)) as db:
        with children(("hold", path)) as (holder,):
            holder.expect(1)
            waiting = asyncio.create_task(db.write(stamp))
            done, _ = await asyncio.wait({waiting}, timeout=0.1)
            assert not done
            holder.kill()
            await asyncio.wait_for(waiting, 5)
