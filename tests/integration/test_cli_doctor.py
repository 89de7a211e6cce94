"""`groundplane doctor` finds each defect that is seeded here, and says what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.settings import Settings
from groundplane.plane import Plane
from integration.dev_plane import environment, groundplane

pytestmark = pytest.mark.integration


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with an empty plane in it."""
    folder = tmp_path / "state"
    made = groundplane("db", "upgrade", "--state", folder, folder=tmp_path)
    assert made.returncode == 0, made.stderr
    return folder


@contextlib.contextmanager
def _mounted(folder: Path, size: str) -> Iterator[None]:
    """A small file system on the folder. A named skip where that cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system (tmpfs)")
    folder.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system (tmpfs) cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _examined(tmp_path: Path, *arguments: str | Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and what is no longer well, by reason."""
    run = groundplane("doctor", "--json", "--port", "0", *arguments, folder=tmp_path)
    report = json.loads(run.stdout)
    assert report["ok"] is (run.returncode == 0)
    found = {one["reason"]: one for one in report["findings"] if one["severity"] != "ok"}
    assert all(one["remedy"] for one in found.values())
    return run.returncode, found


def test_a_healthy_plane_has_no_findings(tmp_path: Path, state: Path) -> None:
    assert _examined(tmp_path, "--state", state) == (0, {})


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert _examined(tmp_path, "--state", tmp_path / "none") == (0, {})
    assert not (tmp_path / "none").exists()


def test_an_unwritable_state_folder_is_found(tmp_path: Path) -> None:
    """A read-only mount, which binds root too."""
    folder = tmp_path / "state"
    with _mounted(folder, "128m"):
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        code, found = _examined(tmp_path, "--state", folder)
    assert code == 1
    assert list(found) == ["read_only"]
    assert str(folder) in found["read_only"]["message"]


def test_a_foreign_file_as_the_database_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    (folder / "plane.db").write_text("my diary, volume three\n" * 50)
    code, found = _examined(tmp_path, "--state", folder)
    assert (code, list(found)) == (1, ["foreign_database"])
    assert (folder / "plane.db").read_text().startswith("my diary")


def test_another_programs_database_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(folder / "plane.db")) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
        other.commit()
    code, found = _examined(tmp_path, "--state", folder)
    assert (code, list(found)) == (1, ["foreign_database"])


def test_a_newer_schema_is_found_by_name(tmp_path: Path, state: Path) -> None:
    _execute(state, "INSERT INTO groundplane_schema VALUES ('jobs', 99, 'from_the_future', 'x', 0)")
    code, found = _examined(tmp_path, "--state", state)
    assert (code, list(found)) == (1, ["schema_newer"])
    assert "'jobs'" in found["schema_newer"]["message"]
    assert "99" in found["schema_newer"]["message"]


def test_a_taken_port_is_found(tmp_path: Path, state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        run = groundplane("doctor", "--state", state, "--port", str(port), folder=tmp_path)
    assert run.returncode == 1
    assert f"port {port}" in run.stdout
    assert "choose another --port" in run.stdout


def test_an_address_beyond_loopback_is_found(tmp_path: Path, state: Path) -> None:
    code, found = _examined(tmp_path, "--state", state, "--host", "0.0.0.0")
    assert (code, list(found)) == (1, ["auth_required"])
    assert "'0.0.0.0'" in found["auth_required"]["message"]


def test_a_full_disk_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with _mounted(folder, "1m"):
        with contextlib.suppress(OSError):
            (folder / "filler").write_bytes(b"x" * (2 * 1024 * 1024))
        code, found = _examined(tmp_path, "--state", folder)
    assert (code, list(found)) == (1, ["disk_full"])
    assert "Free space" in found["disk_full"]["remedy"]


def test_a_clock_behind_what_is_stored_is_found(tmp_path: Path, state: Path) -> None:
    asyncio.run(_create_job(state))
    assert _examined(tmp_path, "--state", state) == (0, {})
    _execute(state, "UPDATE jobs SET updated_at = updated_at + 3600000")
    code, found = _examined(tmp_path, "--state", state)
    assert (code, list(found)) == (1, ["clock_behind"])


def test_a_state_folder_that_others_can_read_is_a_warning(tmp_path: Path, state: Path) -> None:
    state.chmod(0o755)
    code, found = _examined(tmp_path, "--state", state)
    assert (code, list(found)) == (0, ["permissions"])


async def _create_job(state: Path) -> None:
    from groundplane.jobs import NewJob

    async with Plane.open(Settings(state=state), ports=("jobs",)) as plane:
        await plane.jobs.create(NewJob(job_id="j1", tool="t", route=["a"], arguments={}, arguments_hash="h"))


def _execute(state: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(state / "plane.db")) as database:
        database.execute(sql)
        database.commit()


@pytest.mark.req("HEALTH-03.1", "HEALTH-03.2")
def test_a_limit_of_files_below_what_the_gateway_may_take_is_a_warning_that_says_how_many(
    tmp_path: Path, state: Path
) -> None:
    words = ["bash", "-c", 'ulimit -n 300; exec "$@"', "bash", sys.executable, "-m", "groundplane.cli"]
    words += ["doctor", "--json", "--port", "0", "--state", str(state)]
    run = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    (found,) = (one for one in json.loads(run.stdout)["findings"] if one["check"] == "limits")
    assert (run.returncode, found["severity"], found["reason"]) == (0, "warning", "limit_files")
    assert "300 files" in found["message"]
    assert "ulimit -n 4608" in found["remedy"]


@pytest.mark.req("HEALTH-03.1", "HEALTH-03.2")
def test_every_kind_of_check_is_made_and_said(tmp_path: Path, state: Path) -> None:
    run = groundplane("doctor", "--json", "--port", "0", "--state", state, folder=tmp_path)
    made = {one["check"] for one in json.loads(run.stdout)["findings"]}
    assert {"versions", "state", "disk", "data", "clock", "limits", "port"} <= made
