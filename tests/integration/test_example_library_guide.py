"""The demo of the library guide, run as `make demo` runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "library_guide"


@pytest.mark.slow
@pytest.mark.req("MESH-12.2", "MESH-13.1", "MESH-17.1", "QUEUE-08.1")
def test_the_demo_kills_a_worker_and_a_sidecar_and_proves_that_nothing_was_lost() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "demo.py")], capture_output=True, text=True, timeout=160, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shown = re.sub(r"\s+", " ", done.stdout)
    assert re.search(r"envelope [0-9a-f-]{36} is at attempt \d+: its worker was killed", shown)
    assert re.search(r"envelope [0-9a-f-]{36} is at attempt \d+: its sidecar was killed", shown)
    assert "nothing lost, nothing indexed twice" in shown
    assert "dead letter" in shown
    assert "invalid syntax (broken.py, line 1)" in shown
    assert "succeeded: {'packages': 2, 'files': 2" in shown
    assert re.search(r"tomllib/_parser.py:\d+", shown)
    assert "did you mean 'question'?" in shown


@pytest.mark.slow
def test_a_small_folder_of_ones_own_with_a_file_that_is_no_python_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "good.py").write_text('def greet(name):\n    """Say hello to somebody."""\n')
    (tmp_path / "mine" / "old.py").write_text("print 'hello'\n")
    argv = [sys.executable, str(EXAMPLE / "demo.py"), "--path", "mine", "say hello"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=80, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "left out, because Python cannot parse them: old.py" in done.stdout
    assert re.search(r"1 packages: done before the \w+ could be killed|its \w+ was killed", done.stdout)
    assert "good.greet(name)" in done.stdout
    assert "good.py:1" in done.stdout


@pytest.mark.slow
def test_a_folder_that_is_none_ends_the_demo_with_what_is_wrong(tmp_path: Path) -> None:
    argv = [sys.executable, str(EXAMPLE / "demo.py"), "--path", str(tmp_path / "missing")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode != 0
    assert "missing" in done.stdout + done.stderr
    assert "is no folder" in done.stderr
