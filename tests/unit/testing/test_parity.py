"""The page of what each driver does: from reports, and honest about what failed or was not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import parity

pytestmark = pytest.mark.req("KIT-09")

REQUIREMENTS = {"A-01": {"clauses": ["sends", "a | b"]}, "A-02": {"clauses": ["x" * 200]}}


def report(*outcomes: tuple[str, str], **more: Any) -> dict[str, Any]:
    tests = [{"name": f"t{n}", "requirements": [name], "outcome": one} for n, (name, one) in enumerate(outcomes)]
    passed = sum(one == "passed" for _, one in outcomes)
    return {
        "tests": tests,
        "passed": not any(one == "failed" for _, one in outcomes),
        "counts": {"passed": passed},
        "seconds": 2.0,
        "groundplane": "1",
        "begun_at": "2026-01-31T00:00:00.000Z",
        **more,
    }


def test_each_requirement_has_a_row_and_each_driver_a_column() -> None:
    good = report(("A-01.1", "passed"), ("A-01.2", "passed"), ("A-02", "passed"), capabilities={"FAST": True})
    bad = report(("A-01.1", "passed"), ("A-01.2", "failed"), ("A-02", "skipped"), capabilities={"FAST": False})
    rows = parity.page({"queues": {"embedded": good, "other": bad}}, REQUIREMENTS).splitlines()
    assert "| | embedded | other |" in rows
    assert "| A-01 sends · a ∣ b | ✓ 2 | **1 failed** of 2 |" in rows
    assert any(row.startswith("| A-02 xxx") and row.endswith("| ✓ 1 | not run |") for row in rows)
    assert "| capability `FAST` | yes | no |" in rows
    assert "| all tests | 3 of 3, 2 s | 1 of 3, 2 s |" in rows


def test_a_requirement_that_was_proved_in_part_says_so() -> None:
    half = report(("A-01.1", "passed"), ("A-01.2", "skipped"))
    assert "| A-01 sends · a ∣ b | ✓ 1 of 2 |" in parity.page({"jobs": {"embedded": half}}, REQUIREMENTS)


def test_reports_that_are_there_are_put_together_and_a_broken_promise_is_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for port, drivers in parity.DRIVERS.items():
        for server in drivers.values():
            outcome = "failed" if (port, server) == ("jobs", "postgres") else "passed"
            file = tmp_path / f"{port}-{server or 'embedded'}.json"
            file.write_text(json.dumps(report(("BLOB-03.1", outcome), capabilities={})))
    assert parity.main(["--reports", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "## Ledger" in printed.out
    assert printed.err == "jobs on PostgreSQL: broken promises\n"


def test_the_published_page_names_every_driver_of_every_port(repository: Path) -> None:
    text = (repository / "docs" / "reference" / "parity.md").read_text()
    for port, drivers in parity.DRIVERS.items():
        section = text.partition(f"## {port.capitalize()}")[2].partition("\n## ")[0]
        assert f"| | {' | '.join(drivers)} |" in section
        assert " failed** " not in section
