"""Reports of a conformance run: what each test found, as JSON, Markdown and JUnit."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import msgspec

from groundplane._version import __version__
from groundplane.core.clock import iso_z


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """One test of the suite: its sentence, the requirements that it proves, what came out, and why where it did not
    pass.
    """

    name: str
    requirements: list[str]
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    why: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the suite of a port. The URL is without secrets; `begun_at` in Unix ms."""

    port: str
    url: str
    driver: str
    begun_at: int
    seconds: float
    tests: list[Test]

    @property
    def passed(self) -> bool:
        """No test failed."""
        return not any(one.outcome == "failed" for one in self.tests)

    def counts(self) -> dict[str, int]:
        """How many passed, failed, were skipped."""
        found = Counter(one.outcome for one in self.tests)
        return {outcome: found[outcome] for outcome in ("passed", "failed", "skipped")}


def read(results: Path) -> list[Test]:
    """The lines that the run wrote, one a test."""
    if not results.exists():
        return []
    decoder = msgspec.json.Decoder(Test)
    return [decoder.decode(line) for line in results.read_bytes().splitlines()]


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON has it, with versions and counts."""
    return {
        "groundplane": __version__,
        "python": platform.python_version(),
        **msgspec.to_builtins(report),
        "begun_at": iso_z(report.begun_at),
        "counts": report.counts(),
        "passed": report.passed,
    }


def summary(report: Report) -> str:
    """One line for people, and one for each test that failed."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.counts().items() if count)
    failed = [f"  failed: {one.name}: {one.why}" for one in report.tests if one.outcome == "failed"]
    return "\n".join([f"{report.port} on {report.url}: {counts} in {report.seconds:g} s", *failed])


def markdown(report: Report) -> str:
    """A table of the tests."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.counts().items())
    lines = [
        f"# Conformance of {report.port}: {report.driver}",
        "",
        f"`{report.url}`, Groundplane {__version__}, Python {platform.python_version()}, {iso_z(report.begun_at)}, "
        f"{report.seconds:g} s: {counts}.",
        "",
        "| test | requirements | outcome | s |",
        "|---|---|---|---|",
    ]
    for one in report.tests:
        why = f": {one.why}" if one.why else ""
        cells = (one.name.removeprefix("test_").replace("_", " "), ", ".join(one.requirements), f"{one.outcome}{why}")
        lines.append(f"| {' | '.join(cell.replace('|', '∣') for cell in cells)} | {one.seconds:.2f} |")
    return "\n".join(lines) + "\n"


def write(report: Report, folder: Path, junit: Path) -> None:
    """`conformance-<port>-<driver>.json`, `.md` and `.xml` in the folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"conformance-{report.port}-{report.driver}"
    stem.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(as_json(report)), indent=1) + b"\n")
    stem.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    shutil.copyfile(junit, stem.with_suffix(".xml"))
