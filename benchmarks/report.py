"""Rows, medians and ratios; written as Markdown for people and JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

_BEGIN, _END = "<!-- benchmarks:begin", "<!-- benchmarks:end -->"
_MORE = (
    "`make bench` measures all of it side by side; what stands behind the numbers: "
    "[performance](docs/explanation/performance.md)."
)


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


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> str:
    """What it was measured on, with two numbers that tell one machine, or one hour of a shared one, from another."""
    begin = time.perf_counter()
    sum(number for number in range(5_000_000))
    adding = time.perf_counter() - begin
    with tempfile.TemporaryFile() as file:
        syncs = [_sync_s(file) for _ in range(200)]
    return (
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}; medians. "
        f"Here 5,000,000 additions took {adding:.2f} s and fdatasync of 8 KiB {statistics.median(syncs) * 1000:.2f} ms."
    )


def _sync_s(file: IO[bytes]) -> float:
    file.write(bytes(8192))
    file.flush()
    begin = time.perf_counter()
    os.fdatasync(file.fileno())
    return time.perf_counter() - begin


def publish(rows: list[Row], readme: Path) -> None:
    """The rows that have a bar or a peer, into the README between its two marks."""
    text = readme.read_text()
    before, rest = text.split(_BEGIN)
    intro, _, after = rest.partition(_END)
    head = intro.split("\n")[0]
    shown = [row for row in rows if not row.peer and (row.bar is not None or _ratio(row, rows))]
    table = ["| | median | our bar | beside |", "|---|---|---|---|"]
    for row in shown:
        bar = "" if row.bar is None else f"{'≥' if row.better == 'higher' else '≤'} {row.bar:g} {_mark(row)}"
        table.append(f"| {row.subject}: {row.metric} | {row.value:,.3g} {row.unit} | {bar} | {_ratio(row, rows)} |")
    body = "\n".join([head, "", "## Speed and weight", "", machine(), "", *table, "", _MORE, ""])
    readme.write_text(f"{before}{_BEGIN}{body}{_END}{after}")


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
    lines = [machine(), ""]
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
