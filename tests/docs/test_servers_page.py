"""The page of the kit's servers says what their modules say."""

from __future__ import annotations

import pytest

import server_table
from groundplane.testing.servers.catalog import MODULES, server

pytestmark = pytest.mark.req("KIT-01")


def test_the_page_of_servers_is_what_its_tool_writes_from_the_modules() -> None:
    written = server_table.PAGE.read_text(encoding="utf-8")
    again = server_table.page(server_table.measured_before())
    assert written == again, "run `python tools/server_table.py --page`, or without words to measure anew"


@pytest.mark.parametrize("name", MODULES)
def test_every_server_is_measured_with_version_origin_and_date(name: str) -> None:
    row = server_table.measured_before()[name]
    assert row["version"]
    assert row["origin"] in {"environment", *(source.origin for source in server(name).sources())}
    assert row["date"] >= "2026-11-21"
    assert 0 < row["ready_s"] < 60
    assert row["memory_mb"] > 0


def test_the_light_servers_are_up_together_within_fifteen_seconds() -> None:
    assert 0 < server_table.measured_before()["light"]["ready_s"] <= 15
