"""`groundplane bus`: requests, events and commands from the shell, and looking on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from groundplane.cli.program import run

CHILD = Path(__file__).parents[1] / "bus_child.py"
pytestmark = pytest.mark.integration


@contextmanager
def child(state: Path, role: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(CHILD), str(state), role, "c0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == {"ready": True}
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)


def bus(state: Path, *words: str) -> int:
    return run(["bus", *words, "--state", str(state), "--name", "test"])


def test_a_request_prints_its_result_or_says_why_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with child(tmp_path, "serve"):
        assert bus(tmp_path, "request", "people.who") == 0
        assert capsys.readouterr().out.strip().strip('"') == "c0"
        assert bus(tmp_path, "request", "people.nothing") == 1
        assert "no_responder" in capsys.readouterr().err
        assert bus(tmp_path, "request", "people") == 2


def test_an_event_is_published_and_handled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with child(tmp_path, "listen") as process:
        assert bus(tmp_path, "publish", "orders.created", "id:=7", "city=Zürich", "--id", "e1") == 0
        assert capsys.readouterr().out == "e1\n"
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"event": {"id": 7, "city": "Zürich"}, "attempt": 1}


def test_a_command_is_followed_or_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with child(tmp_path, "handle"):
        assert bus(tmp_path, "send", "sums.double", "value:=4") == 0
        shown = capsys.readouterr()
        assert shown.out == "8\n"
        assert [line.split()[0] for line in shown.err.splitlines()] == ["0.0", "50.0", "100.0"]
        assert bus(tmp_path, "send", "sums.double", "value:=4", "--detach", "--json") == 0
        assert json.loads(capsys.readouterr().out)["command"] == "double"


def test_what_passes_is_printed(tmp_path: Path) -> None:
    with child(tmp_path, "listen"):
        words = ["bus", "tail", "events.>", "--count", "1", "--json", "--state", str(tmp_path), "--name", "test"]
        code = f"import sys; from groundplane.cli.program import run; sys.exit(run({words!r}))"
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as tail:
            for _ in range(100):
                assert bus(tmp_path, "publish", "orders.created", "id:=7") == 0
                try:
                    out, _ = tail.communicate(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    continue
            else:
                tail.kill()
                tail.wait()
                pytest.fail("nothing was printed")
        assert tail.returncode == 0
        found = json.loads(out)
        assert (found["subject"], found["message"]["payload"]) == ("events.orders.created", {"id": 7})


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bus(tmp_path / "none", "publish", "a.b") != 0
    assert not (tmp_path / "none").exists()
