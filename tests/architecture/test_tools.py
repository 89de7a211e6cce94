"""The tools that judge the tests are tested themselves, on small projects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from architecture.modules import ROOT

PYPROJECT = '[tool.pytest.ini_options]\ntestpaths = ["tests"]\nmarkers = ["req"]\n'
REQUIREMENTS = """
[ONE-01]
source = "one"
applies = "now"
origin = ["new"]
clauses = ["a single thing"]
[TWO-01]
source = "two"
applies = "now"
origin = ["new"]
clauses = ["the first thing", "the second thing", "the third thing"]
later = [3]
"""
TESTS = """
import pytest
class Suite:
    @pytest.mark.req("TWO-01.1")
    def test_inherited(self): pass
class TestMine(Suite): pass
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.req("ONE-01")
def test_single(n): pass
@pytest.mark.req("TWO-01")
def test_whole(): pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for folder in ("docs", "tests", "src/product", "tools"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (tmp_path / "docs/requirements.toml").write_text(REQUIREMENTS, encoding="utf-8")
    return tmp_path


def _run(tool: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / tool), "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_requirements_are_listed_clause_by_clause_with_the_tests_that_prove_them(project: Path) -> None:
    (project / "tests/test_it.py").write_text(TESTS, encoding="utf-8")
    run = _run("requirements.py", project, "--verbose")
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [" ".join(line.split()) for line in run.stdout.splitlines()]
    assert "ONE-01.1 1 tests a single thing" in lines
    assert "tests/test_it.py::TestMine::test_inherited" in lines
    assert "as a whole: tests/test_it.py::test_whole" in lines
    assert "TWO-01.2 NO TEST the second thing" in lines
    assert lines[-1].endswith("have no test (1): TWO-01.2"), lines
    page = (project / "docs/reference/requirements.md").read_text(encoding="utf-8")
    assert "* `TWO-01.2` the second thing — **no test**" in page


def test_a_clause_without_a_test_fails_the_strict_report(project: Path) -> None:
    (project / "tests/test_it.py").write_text(TESTS, encoding="utf-8")
    assert _run("requirements.py", project, "--strict").returncode == 1
    proved = TESTS + '@pytest.mark.req("TWO-01.2")\ndef test_second(): pass\n'
    (project / "tests/test_it.py").write_text(proved, encoding="utf-8")
    assert _run("requirements.py", project, "--strict").returncode == 0


@pytest.mark.parametrize("unknown", ["NOPE-01", "TWO-01.4", "ONE-1"])
def test_a_test_with_an_unknown_requirement_id_fails_the_report(project: Path, unknown: str) -> None:
    text = f'import pytest\n@pytest.mark.req("{unknown}")\ndef test_it(): pass\n'
    (project / "tests/test_it.py").write_text(text, encoding="utf-8")
    run = _run("requirements.py", project)
    assert run.returncode == 1
    assert unknown in run.stdout


def test_tests_that_cannot_be_collected_fail_the_report(project: Path) -> None:
    (project / "tests/test_it.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    run = _run("requirements.py", project)
    assert run.returncode == 1
    assert "nothing_of_that_name" in run.stdout


def _mutant(project: Path, **changes: str) -> None:
    (project / "src/product/__init__.py").write_text("def double(x):\n    return x * 2\n", encoding="utf-8")
    (project / "tests/test_it.py").write_text(
        "import product\n"
        "def test_double(): assert product.double(3) == 6\n"
        "def test_blind(): assert product.double(2) == 4\n",
        encoding="utf-8",
    )
    fields = {
        "name": "adds instead",
        "file": "src/product/__init__.py",
        "find": "x * 2",
        "replace": "x + 2",
        "test": "tests/test_it.py::test_double",
    } | changes
    test = fields.pop("test")
    lines = [f"{key} = '''{value}'''" for key, value in fields.items()] + [f"tests = ['{test}']"]
    (project / "tools/mutants.toml").write_text("[[mutant]]\n" + "\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "state", "code"),
    [
        pytest.param({}, "killed", 0, id="a mutant that the test notices is killed"),
        pytest.param(
            {"test": "tests/test_it.py::test_blind"}, "survived", 1, id="one that it does not notice survived"
        ),
        pytest.param({"find": "x * 3"}, "stale", 1, id="a text that is gone is stale"),
        pytest.param({"find": "x", "replace": "y"}, "stale", 1, id="a text that stands twice is stale"),
        pytest.param({"replace": "x *"}, "invalid", 1, id="a mutant that does not even import proves nothing"),
    ],
)
def test_mutants_are_judged(project: Path, changes: dict[str, str], state: str, code: int) -> None:
    _mutant(project, **changes)
    run = _run("mutants.py", project, "--jobs", "1")
    assert run.stdout.split()[0] == state, run.stdout + run.stderr
    assert run.returncode == code
    assert "x * 2" in (project / "src/product/__init__.py").read_text(encoding="utf-8")


def test_a_mutant_that_hangs_is_killed_with_its_processes(project: Path) -> None:
    _mutant(project, replace="x if __import__('time').sleep(60) else x")
    text = (project / "tools/mutants.toml").read_text(encoding="utf-8")
    (project / "tools/mutants.toml").write_text(f"{text}\ntimeout_s = 3.0\n", encoding="utf-8")
    run = _run("mutants.py", project, "--jobs", "1")
    assert "killed (hung)" in run.stdout
    assert run.returncode == 0


def test_tests_that_fail_without_a_mutant_prove_nothing(project: Path) -> None:
    _mutant(project, test="tests/test_it.py::test_none_of_that_name")
    run = _run("mutants.py", project)
    assert run.returncode == 1
    assert "prove nothing" in run.stdout


def test_stale_mutants_are_found_without_running_anything(project: Path) -> None:
    _mutant(project)
    assert _run("mutants.py", project, "--stale").returncode == 0
    _mutant(project, find="x * 3")
    assert _run("mutants.py", project, "--stale").returncode == 1
