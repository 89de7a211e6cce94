"""The table at the end of a run: server, version, origin, tests run, skipped, time to ready."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

PROPERTY = "groundplane-server"
"""User property of a test's report: `[server, version, origin, seconds to ready]`; travels from xdist's workers."""


@dataclass
class Line:
    """One row of the table."""

    server: str
    version: str
    origin: str
    ready_s: float
    ran: int = 0
    skipped: int = 0


class Table:
    """Which servers the tests of this run used; a pytest plugin of the process that prints the summary."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], Line] = {}
        self._seen: set[tuple[str, str]] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test counts once for each kind of server that it used: as skipped, or as run."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            for name, value in report.user_properties:
                if name == PROPERTY and isinstance(value, list | tuple):
                    self._count(report, *value)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        lines = self.lines()
        if lines:
            terminalreporter.write_sep("=", "servers")
            for line in lines:
                terminalreporter.write_line(line)

    def lines(self) -> list[str]:
        """The table as text; empty where no test used a server."""
        if not self._rows:
            return []
        cells = [("server", "version", "origin", "tests run", "skipped", "time to ready")]
        for row in sorted(self._rows.values(), key=lambda one: one.server):
            ready = f"{row.ready_s:.1f} s" if row.ready_s else "-"
            cells.append((row.server, row.version or "-", row.origin, str(row.ran), str(row.skipped), ready))
        widths = [max(len(line[n]) for line in cells) for n in range(len(cells[0]))]
        return ["  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in cells]

    def _count(self, report: pytest.TestReport, server: str, version: str, origin: str, ready_s: float) -> None:
        if (report.nodeid, server) in self._seen:
            return
        self._seen.add((report.nodeid, server))
        line = self._rows.setdefault((server, version, origin), Line(server, version, origin, ready_s))
        if report.skipped:
            line.skipped += 1
        else:
            line.ran += 1
