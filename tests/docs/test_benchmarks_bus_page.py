"""The published benchmarks of the bus, services and keys: what they measured holds the figures that others reported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/benchmarks-bus.md"
ROW = re.compile(r"^\| (?P<what>[^|]+) \| (?P<metric>[^|]+) \| (?P<value>\S+) (?P<unit>\S*) \|", re.M)


def _measured(what: str, metric: str) -> tuple[float, str]:
    rows = ROW.finditer(PAGE.read_text(encoding="utf-8"))
    found = [row for row in rows if (row["what"], row["metric"]) == (what, metric)]
    assert len(found) == 1, f"{what}: {metric}"
    return float(found[0]["value"]), found[0]["unit"]


@pytest.mark.req("BUS-24.1", "KV-05", "BUS-13")
@pytest.mark.parametrize(
    ("metric", "most"),
    [
        ("connected", 5.0),
        ("request, one by one", 20.0),
        ("put, one by one", 1.0),
        ("got, one by one", 1.0),
        ("command to its end", 20.0),
    ],
)
def test_what_was_measured_on_nats_is_within_the_figures_of_the_report(metric: str, most: float) -> None:
    value, unit = _measured("Groundplane on NATS", metric)
    assert unit == "ms"
    assert value <= most
