"""Rows, medians and ratios; written as Markdown for people and JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement, the median over rounds. `bar` is the limit that the project sets itself."""

    section: str
    subject: str
    metric: str
    value: float
    unit: str
    rounds: list[float] = field(default_factory=list)
    bar: float | None = None
    better: str = "higher"
    peer: bool = False

    @property
    def meets(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar


def median_row(
    section: str, subject: str, metric: str, unit: str, measure: Callable[[], float], rounds: int = 3, **more: object
) -> Row:
    """The row of `rounds` runs of `measure`."""
    values = [measure() for _ in range(rounds)]
    return Row(
        section=section,
        subject=subject,
        metric=metric,
        unit=unit,
        value=statistics.median(values),
        rounds=values,
        **more,  # type: ignore[arg-type]
    )


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def quantile(buckets: dict[float, float], share: float) -> float:
    """The same of a histogram, cumulative counts by upper bound; linear inside a bucket, as Prometheus does it."""
    bounds = sorted(buckets)
    wanted = share * buckets[bounds[-1]]
    below, count = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted and buckets[bound] > count:
            return below + (bound - below) * (wanted - count) / (buckets[bound] - count)
        below, count = bound, buckets[bound]
    return below


def markdown(rows: list[Row]) -> str:
    """A table a section; the last column is the ratio to the first peer that has the same metric."""
    lines = [f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}; medians.", ""]
    for section in dict.fromkeys(row.section for row in rows):
        lines += [f"## {section}", "", "| | metric | median | bar | to the peer |", "|---|---|---|---|---|"]
        for row in (row for row in rows if row.section == section):
            bar = "" if row.bar is None else f"{'≥' if row.better == 'higher' else '≤'} {row.bar:g} {_mark(row)}"
            lines.append(
                f"| {row.subject} | {row.metric} | {row.value:,.3g} {row.unit} | {bar} | {_ratio(row, rows)} |"
            )
        lines.append("")
    return "\n".join(lines)


def write(rows: list[Row], folder: Path) -> None:
    """`latest.md` and `latest.json` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.md").write_text(markdown(rows))
    (folder / "latest.json").write_text(
        json.dumps([asdict(row) | {"meets": row.meets} for row in rows], indent=1) + "\n"
    )


def _mark(row: Row) -> str:
    return "✓" if row.meets else "✗"


def _ratio(row: Row, rows: list[Row]) -> str:
    if row.peer:
        return ""
    peers = [peer for peer in rows if peer.peer and (peer.section, peer.metric) == (row.section, row.metric)]
    return ", ".join(f"{row.value / peer.value:.3g} × {peer.subject}" for peer in peers if peer.value)
