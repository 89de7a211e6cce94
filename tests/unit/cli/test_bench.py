"""`groundplane bench`, with a small program in the place of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundplane.cli import bench
from groundplane.core.errors import NotFound

_BENCHMARKS = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("sections", nargs="*", choices=["hops"])
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."))
parser.add_argument("--baseline", type=pathlib.Path)
parser.add_argument("--loss")
options = parser.parse_args()
if options.baseline:
    print(options.baseline.read_text(), options.loss)
    raise SystemExit(1)
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


@pytest.mark.req("KIT-14.1")
def test_a_baseline_is_found_from_where_the_command_was_given_and_its_verdict_is_ours(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "then.json").write_text("then")
    monkeypatch.chdir(folder)
    assert bench.bench("hops", baseline=Path("then.json"), loss="10%") == 1
    assert capfd.readouterr().out == "then 10%\n"
    with pytest.raises(NotFound, match=r"^baseline: 'none.json' does not exist"):
        bench.bench(baseline=Path("none.json"))
