"""Adds up the reports of several pytest runs and prints one closing line in pytest's form. Exit 1 if nothing passed."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def counts(reports: list[Path]) -> tuple[Counter[str], float]:
    """Tests by outcome, and the seconds of all runs together."""
    total: Counter[str] = Counter()
    seconds = 0.0
    for report in reports:
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            found = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
            total["failed"] += found["failures"]
            total["error"] += found["errors"]
            total["skipped"] += found["skipped"]
            total["passed"] += found["tests"] - found["failures"] - found["errors"] - found["skipped"]
            seconds += float(suite.get("time", "0"))
    return total, seconds


def closing_line(total: Counter[str], seconds: float) -> str:
    words = {name: total[name] for name in ("failed", "passed", "skipped", "error") if total[name]}
    if "error" in words and words["error"] > 1:
        words["errors"] = words.pop("error")
    text = ", ".join(f"{number} {word}" for word, number in words.items()) or "no tests ran"
    return f" {text} in {seconds:.2f}s ".center(80, "=")


if __name__ == "__main__":
    outcome, duration = counts([Path(name) for name in sys.argv[1:]])
    print(closing_line(outcome, duration))
    raise SystemExit(0 if outcome["passed"] else 1)
