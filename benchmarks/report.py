"""Rows, medians and ratios; written as Markdown for people and JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
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


def page(rows: list[Row], sections: list[str], rounds: int, file: Path) -> str:
    """The tables as a page of the documentation, with the command that makes them again."""
    about = {"bus": "of the bus, services and keys", "gateway": "of the gateway"}
    title = about.get(sections[0].partition("_")[0], "on servers") if sections else "on servers"
    head = [
        f"# Benchmarks {title}",
        "",
        "Everything of a table was measured in one run, one after the other, on servers that the kit started on the "
        "same machine. Ratios carry over to other machines, rates do not. ✓ and ✗ say whether a bar of ours is met.",
        "",
        "```",
        f"python -m benchmarks {' '.join([*sections, f'--rounds {rounds}', f'--docs docs/reference/{file.name}'])}",
        "```",
        "",
    ]
    return "\n".join(head) + markdown(rows)


def write(rows: list[Row], folder: Path) -> None:
    """`latest.md` and `latest.json` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.md").write_text(markdown(rows))
    (folder / "latest.json").write_text(
        json.dumps([asdict(row) | {"meets": row.meets} for row in rows], indent=1) + "\n"
    )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A ratio to a peer that is worse than it was; `share` is how much of it is gone, 0 to 1."""

    section: str
    metric: str
    subject: str
    peer: str
    before: float
    now: float

    @property
    def share(self) -> float:
        return 1 - self.now / self.before

    def __str__(self) -> str:
        return (
            f"{self.section}: {self.subject}, {self.metric}: {self.now:.3g} × {self.peer}, was {self.before:.3g} "
            f"({100 * self.share:.0f} % lost)"
        )


def read(file: Path) -> list[Row]:
    """The rows of an earlier run's `latest.json`. `ValueError` says what is wrong with another file."""
    try:
        names = {one.name for one in fields(Row)}
        listed = [
            Row(**{key: value for key, value in one.items() if key in names}) for one in json.loads(file.read_text())
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"baseline: {str(file)!r} is no latest.json of `make bench`: {error}") from error
    return listed


def losses(rows: list[Row], baseline: list[Row], loss: float) -> tuple[list[Loss], int]:
    """Where a ratio to a peer is worse than in the baseline by more than `loss` (0.1: a tenth), and how many were
    compared. Values themselves are not: they tell of the machine. Ratios are turned so that more is better.
    """
    before = _ratios(baseline)
    both = {key: ratio for key, ratio in _ratios(rows).items() if key in before}
    found = [
        Loss(section=key[0], metric=key[1], subject=key[2], peer=key[3], before=before[key], now=ratio)
        for key, ratio in both.items()
    ]
    return [one for one in found if one.share > loss], len(both)


def _ratios(rows: list[Row]) -> dict[tuple[str, str, str, str], float]:
    found = {}
    for row in rows:
        for peer in rows:
            if not row.peer and peer.peer and (peer.section, peer.metric) == (row.section, row.metric):
                ratio = row.value / peer.value if peer.value and row.value else 0.0
                if ratio:
                    key = (row.section, row.metric, row.subject, peer.subject)
                    found[key] = ratio if row.better == "higher" else 1 / ratio
    return found


def _mark(row: Row) -> str:
    return "✓" if row.meets else "✗"


def _ratio(row: Row, rows: list[Row]) -> str:
    if row.peer:
        return ""
    peers = [peer for peer in rows if peer.peer and (peer.section, peer.metric) == (row.section, row.metric)]
    return ", ".join(f"{row.value / peer.value:.3g} × {peer.subject}" for peer in peers if peer.value)
