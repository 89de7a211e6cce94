"""The official conformance suite of MCP, in both revisions and with the tasks extension, against actors on a plane."""

from __future__ import annotations

from pathlib import Path

import pytest

import mcp_conformance
from groundplane.testing.toolchains import Toolchain

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.mark.req("GATE-12.1", "GATE-12.2", "GATE-03.1", "GATE-03.2", "GATE-03.3")
def test_every_scenario_of_the_official_suite_passes_without_a_warning_and_the_page_says_so(
    node_toolchain: Toolchain, tmp_path: Path
) -> None:
    found = mcp_conformance.run_all(tmp_path)
    assert mcp_conformance.problems(found) == []
    assert mcp_conformance.page(found) == mcp_conformance.PAGE.read_text(encoding="utf-8")


def test_a_warning_a_skip_without_reason_and_a_missing_scenario_are_problems() -> None:
    ok = mcp_conformance.Scenario(
        revision="2025-11-25", name="ping", required=True, counts={"SUCCESS": 1}, problems=(), skipped=()
    )
    warned = mcp_conformance.Scenario(
        revision="2026-07-28", name="caching", required=True, counts={"SUCCESS": 2, "WARNING": 1},
        problems=("WARNING ttl: is missing",), skipped=("never-heard-of",),
    )  # fmt: skip
    assert ok.passed
    assert not warned.passed
    wrong = "\n".join(mcp_conformance.problems([ok, warned]))
    for part in (
        "2026-07-28 caching: WARNING ttl: is missing",
        "never-heard-of: skipped without a reason",
        "tasks-status-notifications: is not skipped any more",
        "2025-11-25: 1 required scenarios were run, not 30",
    ):
        assert part in wrong
