"""Programs from npm: what is asked of it, and what is said when it or Node is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groundplane.testing.servers.npm import Npm
from groundplane.testing.servers.sources import InstallFailed

pytestmark = pytest.mark.req("KIT-01")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with Node and an npm that brings the package, and nothing else."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / name))
    _is(folder, "node", "echo v22.1.0")
    said = "node_modules/thing/package.json"
    _is(folder, "npm", f'echo "$@" > asked; mkdir -p node_modules/thing; echo \'{{"version": "1.2.3"}}\' > {said}')
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Npm:
    lock = tmp_path / "lock"
    lock.mkdir()
    (lock / "package.json").write_text(json.dumps({"dependencies": {"thing": "1.2.3"}}))
    (lock / "package-lock.json").write_text("{}")
    return Npm("thing", lock=lock, size_mb=1, seconds=1)


def _is(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    (folder / name).chmod(0o755)


def test_npm_is_asked_for_exactly_what_the_lock_file_pins(programs: Path, source: Npm, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    assert source.version == "1.2.3"
    assert source.find(folder) is None
    source.install(folder, print)
    assert (folder / "asked").read_text().split() == ["ci", "--no-audit", "--no-fund"]
    found = source.find(folder)
    assert found is not None
    assert (found.origin, found.version, found.programs) == ("npm", "1.2.3", {"modules": folder / "node_modules"})


def test_what_another_lock_file_brought_is_not_taken(programs: Path, source: Npm, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    source.install(folder, print)
    (tmp_path / "lock" / "package-lock.json").write_text('{"lockfileVersion": 3}')
    assert source.find(folder) is None


def test_without_node_or_with_an_old_one_the_obstacle_says_what_to_get(
    programs: Path, source: Npm, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    source.install(folder, print)
    _is(programs, "node", "echo v18.20.4")
    assert source.find(folder) is None
    assert "18.20.4' is older than 20" in str(source.obstacle())
    (programs / "node").unlink()
    assert "node not on PATH; get it: https://nodejs.org" in str(source.obstacle())


def test_what_npm_says_when_it_fails_is_in_the_error(programs: Path, source: Npm, tmp_path: Path) -> None:
    _is(programs, "npm", "echo 'EINTEGRITY sha512 of thing differs'; exit 1")
    with pytest.raises(InstallFailed, match="EINTEGRITY"):
        source.install(tmp_path, print)
