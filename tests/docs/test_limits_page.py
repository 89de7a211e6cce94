"""The page about limits says what the settings are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from groundplane.core.options import OPTIONS
from groundplane.core.reasons import REASONS
from groundplane.core.settings import Settings
from groundplane.gateway.limits import Limits
from groundplane.gateway.settings import WAIT_S_MAX, GatewaySettings

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "limits.md"
UNITS = {"MiB": 1024**2, "KiB": 1024, "s": 1, "": 1}


@pytest.mark.req("GATE-09.1", "GATE-09.2")
def test_every_bound_of_the_table_is_the_default_and_every_setting_is_in_it() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    found: dict[str, float] = {}
    for bound, default, setting, _ in rows:
        amount = re.match(r" (\d+) ?(MiB|KiB|s)?", default)
        assert amount is not None, bound
        name = re.search(r"`(\w+)`", setting)
        found[name[1] if name else "wait"] = int(amount[1]) * UNITS[amount[2] or ""]
    own, usual = GatewaySettings(), Limits()
    expected: dict[str, float] = {
        "rate": usual.rate or 0,
        "burst": usual.burst,
        "live_jobs": usual.live_jobs or 0,
        "streams": usual.streams or 0,
        "connections": Settings().connections,
        "wait": WAIT_S_MAX,
    }
    fixed = ("body_bytes_max", "header_bytes_max", "target_bytes_max", "head_s", "body_s", "idle_s", "stall_s")
    assert found == {**expected, **{name: getattr(own, name) for name in fixed}}
    assert Settings().connections == own.connections_max


def test_the_names_on_the_page_exist() -> None:
    text = PAGE.read_text()
    variables = {option.variable for option in OPTIONS}
    assert set(re.findall(r"GROUNDPLANE_[A-Z_]+", text)) <= variables
    assert {"rate_exceeded", "live_jobs", "too_many_streams", "too_many_connections", "too_slow"} <= set(REASONS)
