"""`groundplane bench`, with a small program in the place of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundplane.cli import bench

_BENCHMARKS = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("sections", nargs="*", choices=["hops"])
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."))
options = parser.parse_args()
(options.out / "latest.json").write_text('{"rows": []}')
print("| a table |", *options.sections)
"""


@pytest.fixture(autouse=True)
def _benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "benchmarks" / "__main__.py"
    program.parent.mkdir()
    program.write_text(_BENCHMARKS)
    monkeypatch.setattr(bench, "find", lambda path, what: program)


def test_the_table_is_for_people_and_the_numbers_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    assert bench.bench("hops") == 0
    assert capfd.readouterr().out == "| a table | hops\n"
    assert bench.bench("hops", json=True) == 0
    printed = capfd.readouterr()
    assert printed.out == '{"rows":[]}\n'
    assert "a table" in printed.err


def test_a_section_that_is_not_there_is_a_wrong_use(capfd: pytest.CaptureFixture[str]) -> None:
    assert bench.bench("nope", json=True) == 2
    assert capfd.readouterr().out == ""
