"""The table of tools: lookup, duplicates, reload as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.gateway.tools import Reloaded, ToolTable
from groundplane.mesh.spec import ToolSpec

pytestmark = pytest.mark.req("GATE-01")

APP_TOOL = ToolSpec(name="pipeline", route=["double", "add-five"], origin="app.py:12")


def test_tools_come_from_the_app_and_from_files(tmp_path: Path) -> None:
    (tmp_path / "routes.yaml").write_text("tools: [{name: echo, route: [echo, other]}]")
    table = ToolTable([APP_TOOL], files=[tmp_path / "routes.yaml"])
    assert [tool.spec.name for tool in table] == ["pipeline", "echo"]
    assert table.actors() == {"double", "add-five", "echo", "other"}


def test_an_unknown_tool_is_not_found_with_the_nearest_name() -> None:
    with pytest.raises(NotFound) as caught:
        ToolTable([APP_TOOL]).get("pipelin")
    assert caught.value.reason == "tool_not_found"
    assert "did you mean 'pipeline'?" in caught.value.message


def test_a_name_may_not_come_from_both(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text("tools: [{name: pipeline, route: [x]}]")
    with pytest.raises(InvalidArgument) as caught:
        ToolTable([APP_TOOL], files=[path])
    assert f"{path}:1" in caught.value.message
    assert "app.py:12" in caught.value.message


def test_a_reload_replaces_all_tools_and_tells_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text("tools: [{name: a, route: [x]}, {name: b, route: [x]}, {name: c, route: [x]}]")
    table, told = ToolTable([APP_TOOL], files=[path]), list[Reloaded]()
    table.on_change(told.append)
    path.write_text("tools:\n - {name: a, route: [x]}\n - {name: b, route: [y]}\n - {name: d, route: [x]}")
    assert table.reload() == Reloaded(added=["d"], removed=["c"], changed=["b"])
    assert told == [Reloaded(added=["d"], removed=["c"], changed=["b"])]
    assert table.get("b").spec.route == ["y"]
    assert "c" not in table


def test_a_reload_with_problems_leaves_the_tools_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text("tools: [{name: a, route: [x]}]")
    table = ToolTable(files=[path])
    before = table.get("a")
    path.write_text("tools: [{name: a, route: []}]")
    with pytest.raises(InvalidArgument):
        table.reload()
    assert table.get("a") is before


def test_a_reload_without_a_change_tells_nobody(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text("tools: [{name: a, route: [x]}]")
    table, told = ToolTable(files=[path]), list[Reloaded]()
    table.on_change(told.append)
    path.write_text("\n# a comment\ntools: [{name: a, route: [x]}]")
    assert not table.reload()
    assert told == []


@pytest.mark.parametrize(
    "spec",
    [
        ToolSpec(name="a b", route=["x"]),
        ToolSpec(name="a", route=[]),
        ToolSpec(name="a", route=["x"], timeout_s=0),
        ToolSpec(name="a", route=["x"], input_schema={"type": "nonsense"}),
    ],
)
def test_a_bad_spec_is_refused(spec: ToolSpec) -> None:
    with pytest.raises(InvalidArgument):
        ToolTable([spec])
