"""Supervised processes, with small programs in their place."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

import leaks
from groundplane.cli.dev import use_pidfd
from groundplane.cli.processes import Child, Program, Supervisor

pytestmark = [pytest.mark.anyio, pytest.mark.req("CORE-03.2")]

_READY = """
import json, os, signal, sys, time
path, wait_for, on_term = sys.argv[1:4]
log = open(path + ".log", "a")
def term(number, frame):
    if on_term == "exit":
        log.write(f"{os.path.basename(path)} stopped {time.monotonic()}\\n"); log.flush()
        sys.exit(0)
signal.signal(signal.SIGTERM, term)
while wait_for and not os.path.exists(wait_for):
    time.sleep(0.01)
with open(path + ".tmp", "w") as file:
    json.dump({"pid": os.getpid(), "stdin": sys.stdin.read()}, file)
os.replace(path + ".tmp", path)
while True:
    time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
async def _children_by_descriptor() -> AsyncIterator[None]:
    use_pidfd()
    yield
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(None)


class Heard:
    """What the listener was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.something = asyncio.Event()

    def __call__(self, what: str, child: Child) -> None:
        self.events.append((what, child.program.name))
        self.something.set()

    async def wait(self, what: str, name: str, times: int = 1) -> None:
        async with asyncio.timeout(20):
            while self.events.count((what, name)) < times:
                self.something.clear()
                await self.something.wait()


def _program(
    folder: Path, name: str, *, stage: int = 0, wait_for: str = "", on_term: str = "exit", fed: bytes | None = None
) -> Program:
    async def feed() -> bytes:
        return fed or b""

    return Program(
        name=name,
        argv=[sys.executable, "-c", _READY, str(folder / name), wait_for, on_term],
        ready_file=folder / name,
        stage=stage,
        feed=feed if fed is not None else None,
    )


@pytest.fixture
def heard() -> Heard:
    return Heard()


async def test_a_child_is_ready_when_its_file_says_so_and_not_before(tmp_path: Path, heard: Heard) -> None:
    supervisor = Supervisor(heard, grace_s=10)
    supervisor.start([_program(tmp_path, "one"), _program(tmp_path, "two", wait_for=str(tmp_path / "go"))])
    await heard.wait("ready", "one")
    everybody = asyncio.create_task(supervisor.all_ready())
    await asyncio.sleep(0.1)
    assert not everybody.done()
    assert not supervisor.children["two"].ready.is_set()
    (tmp_path / "go").touch()
    await everybody
    assert await supervisor.stop()


async def test_the_ready_file_of_a_process_from_before_is_not_believed(tmp_path: Path, heard: Heard) -> None:
    (tmp_path / "one").write_text(json.dumps({"pid": 1}))
    supervisor = Supervisor(heard, grace_s=10)
    supervisor.start([_program(tmp_path, "one", wait_for=str(tmp_path / "go"))])
    await heard.wait("started", "one")
    (tmp_path / "one").write_text(json.dumps({"pid": 1}))
    await asyncio.sleep(0.1)
    assert not supervisor.children["one"].ready.is_set()
    (tmp_path / "go").touch()
    await heard.wait("ready", "one")
    assert supervisor.children["one"].details["pid"] == supervisor.children["one"].pid
    await supervisor.stop()


async def test_a_child_that_dies_is_told_of_and_started_again(tmp_path: Path, heard: Heard) -> None:
    supervisor = Supervisor(heard, grace_s=10)
    supervisor.start([_program(tmp_path, "one")])
    await heard.wait("ready", "one")
    child = supervisor.children["one"]
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await heard.wait("ready", "one", times=2)
    assert (child.starts, child.pid != first) == (2, True)
    assert heard.events.count(("exited", "one")) == 1
    await supervisor.stop()


async def test_stages_stop_one_after_the_other(tmp_path: Path, heard: Heard) -> None:
    supervisor = Supervisor(heard, grace_s=10)
    supervisor.start(
        [_program(tmp_path, "last", stage=2), _program(tmp_path, "first"), _program(tmp_path, "mid", stage=1)]
    )
    await supervisor.all_ready()
    assert await supervisor.stop()
    stopped = {}
    for name in ("first", "mid", "last"):
        stopped[name] = float((tmp_path / f"{name}.log").read_text().split()[-1])
    assert stopped["first"] < stopped["mid"] < stopped["last"]


async def test_what_does_not_stop_within_the_grace_is_killed_and_the_stop_is_not_clean(
    tmp_path: Path, heard: Heard
) -> None:
    supervisor = Supervisor(heard, grace_s=0.2)
    supervisor.start([_program(tmp_path, "deaf", on_term="ignore")])
    await supervisor.all_ready()
    child = supervisor.children["deaf"]
    assert not await supervisor.stop()
    assert child.exit_meaning == "SIGKILL"
    assert not [line for line in leaks.children().values() if "deaf" in line]


async def test_a_child_reads_what_it_is_fed(tmp_path: Path, heard: Heard) -> None:
    supervisor = Supervisor(heard, grace_s=10)
    supervisor.start([_program(tmp_path, "one", fed=b"x" * 300_000)])
    await heard.wait("ready", "one")
    assert supervisor.children["one"].details["stdin"] == "x" * 300_000
    await supervisor.stop()


async def test_a_program_that_cannot_serve_is_tried_again_with_growing_pauses(tmp_path: Path, heard: Heard) -> None:
    supervisor = Supervisor(heard, grace_s=1)
    program = Program(name="bad", argv=[sys.executable, "-c", "raise SystemExit(3)"], exits={3: "no_luck"})
    supervisor.start([program])
    await heard.wait("exited", "bad", times=3)
    child = supervisor.children["bad"]
    assert child.exit_meaning in ("exit 3 (no_luck)", "")
    await supervisor.stop()
    count = child.starts
    await asyncio.sleep(0.3)
    assert child.starts == count


async def test_a_program_has_the_priority_that_it_asks_for(tmp_path: Path, heard: Heard) -> None:
    supervisor = Supervisor(heard, grace_s=10)
    supervisor.start([_program(tmp_path, "plain"), msgspec.structs.replace(_program(tmp_path, "modest"), nice=5)])
    await heard.wait("ready", "plain")
    await heard.wait("ready", "modest")
    found = {name: os.getpriority(os.PRIO_PROCESS, child.pid or 0) for name, child in supervisor.children.items()}
    await supervisor.stop()
    assert found["modest"] == min(found["plain"] + 5, 19)
