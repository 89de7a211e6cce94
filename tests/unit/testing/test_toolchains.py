"""Tool chains as named requirements: found, too old, missing, required."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.testing import toolchain_fixtures
from groundplane.testing.servers.contract import ServerMissing
from groundplane.testing.toolchains import toolchain

pytestmark = pytest.mark.req("KIT-04")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nowhere to look but in a folder with nothing in it but what the test puts there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / name))
    return tmp_path


def _says(folder: Path, name: str, words: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\necho '{words}'\n")
    (folder / name).chmod(0o755)


def test_a_tool_chain_is_found_with_its_version_and_programs(programs: Path) -> None:
    _says(programs, "node", "v22.3.1")
    _says(programs, "npm", "10.1.0")
    found = toolchain("node")
    assert (found.version, found.path, found.programs["npm"]) == ("22.3.1", programs / "node", programs / "npm")


def test_a_missing_program_is_named_with_the_way_to_get_it(programs: Path) -> None:
    _says(programs, "java", 'openjdk version "17.0.15"')
    with pytest.raises(ServerMissing, match="maven: javac and mvn not on PATH; get it: apt-get install openjdk-17"):
        toolchain("maven")


def test_an_old_tool_chain_is_as_good_as_none(programs: Path) -> None:
    _says(programs, "node", "v18.20.0")
    _says(programs, "npm", "10.1.0")
    with pytest.raises(ServerMissing, match=r"node: version '18\.20\.0' is older than 20"):
        toolchain("node")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="toolchain: 'rust' is not one that the kit knows"):
        toolchain("rust")


@pytest.mark.parametrize("required", ["all", "node", "redis, node"])
def test_a_missing_tool_chain_fails_where_it_is_required(
    programs: Path, monkeypatch: pytest.MonkeyPatch, required: str
) -> None:
    monkeypatch.setenv("GROUNDPLANE_REQUIRE_SERVERS", required)
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception)) as ended:
        toolchain_fixtures.required("node")
    assert isinstance(ended.value, pytest.fail.Exception), "it only skipped"
    assert re.search(r"node and npm not on PATH.*GROUNDPLANE_REQUIRE_SERVERS names it", str(ended.value))


def test_a_missing_tool_chain_skips_where_others_are_required(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDPLANE_REQUIRE_SERVERS", "redis")
    with pytest.raises(pytest.skip.Exception, match="node and npm not on PATH"):
        toolchain_fixtures.required("node")
