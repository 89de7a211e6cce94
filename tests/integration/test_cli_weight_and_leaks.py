"""What the package weighs, what is missing is named, and what is closed is gone."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

import leaks
from groundplane.core.settings import Settings
from groundplane.plane import Plane
from integration.dev_plane import PIPELINE, environment, groundplane

pytestmark = pytest.mark.integration

_WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from groundplane.cli import main
sys.exit(main({argv!r}))
"""


def _without(absent: set[str], argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT.format(absent=absent, argv=argv)],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip


@pytest.mark.req("CORE-04.2")
@pytest.mark.parametrize(
    ("argv", "extra"),
    [
        (["run", "app:app", "--role", "gateway", "--port", "0"], "gateway"),
        (["call", "t", "--url", "http://127.0.0.1:1"], "client"),
        (["mcp"], "gateway"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path: Path, argv: list[str], extra: str) -> None:
    (tmp_path / "app.py").write_text(PIPELINE)
    run = _without({"mcp", "starlette", "uvicorn", "httpx2"}, argv, tmp_path)
    assert run.returncode == 1, run.stderr
    assert f"groundplane[{extra}]" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.req("CORE-04.2")
def test_commands_that_need_no_gateway_work_without_its_packages(tmp_path: Path) -> None:
    absent = {"mcp", "starlette", "uvicorn", "httpx2", "jsonschema", "yaml", "pydantic"}
    for argv in (["db", "upgrade"], ["jobs", "list"], ["config", "show"], ["dead", "list"], ["--help"]):
        run = _without(absent, argv, tmp_path)
        assert run.returncode == 0, run.stderr


@pytest.mark.req("CORE-03.3")
def test_a_plane_that_was_opened_and_closed_many_times_leaves_nothing(tmp_path: Path) -> None:
    async def once() -> None:
        async with Plane.open(Settings(state=tmp_path / "s")) as plane:
            await plane.check()

    asyncio.run(once())
    gc.collect()
    before = leaks.Snapshot()
    for _ in range(5):
        asyncio.run(once())
    assert before.leaked() == []


@pytest.mark.req("CORE-06.1")
def test_ten_processes_may_upgrade_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "groundplane.cli", "db", "upgrade", "--state", "s", "--json"]
    started = [
        subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(10)
    ]
    outcomes = [process.communicate(timeout=50) for process in started]
    assert [process.returncode for process in started] == [0] * 10, outcomes
    assert groundplane("db", "check", "--state", "s", folder=tmp_path).returncode == 0


@pytest.mark.req("GATE-02")
def test_mcp_over_standard_input_and_output_lists_the_tools_and_writes_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PIPELINE)
    client = {"name": "test", "version": "0"}
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize",
         "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
    ]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "groundplane.cli", "mcp", "app:app", "--state", "s"],
        cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(2)]
        rest, errors = process.communicate(timeout=20)
    assert [tool["name"] for tool in answers[1]["result"]["tools"]] == ["pipeline"]
    assert (rest, process.returncode) == (b"", 0), errors
