"""The examples, run as their READMEs say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integration.dev_plane import groundplane, run_job, serving

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.req("GATE-06", "MESH-21")
@pytest.mark.parametrize(
    ("example", "tool", "words", "expected"),
    [
        ("pipeline", "pipeline", ["value=10"], 25),
        (
            "plain_handler",
            "describe",
            ["numbers=[1, 2, 6]"],
            {"mean": 3.0, "median": 2.0, "spread": 5.0, "stamped_by": "plain handler"},
        ),
    ],
)
def test_an_example_does_what_its_readme_shows(
    repository: Path, tmp_path: Path, example: str, tool: str, words: list[str], expected: Any
) -> None:
    source = repository / "examples" / example
    with serving("dev", source / "app.py", "--port", "0", "--state", "s", "--json", folder=tmp_path):
        called = groundplane("call", tool, *words, "--state", "s", folder=tmp_path)
        assert called.returncode == 0, called.stderr
        assert json.loads(called.stdout) == expected
        assert called.stderr == ""
    readme = (source / "README.md").read_text()
    assert f"groundplane call {tool} {words[0].partition('=')[0]}=" in readme


def test_the_plain_handler_imports_nothing_of_groundplane(repository: Path) -> None:
    tree = ast.parse((repository / "examples" / "plain_handler" / "handlers.py").read_text())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["statistics"]


@pytest.mark.req("GATE-06")
def test_the_roles_of_the_pipeline_work_each_on_its_own(repository: Path, tmp_path: Path) -> None:
    target = repository / "examples" / "pipeline" / "app.py"
    common = ("--state", "s", "--json")
    assert groundplane("db", "upgrade", "--state", "s", folder=tmp_path).returncode == 0
    with (
        serving("run", target, "--role", "gateway", "--port", "0", *common, folder=tmp_path) as gateway,
        serving("run", target, "--role", "actors", "--actor", "double", *common, folder=tmp_path) as double,
        serving("run", target, "--role", "actors", "--actor", "add_five", *common, folder=tmp_path) as add_five,
        serving("run", target, "--role", "ends", *common, folder=tmp_path) as ends,
    ):
        assert set(double.children()) == {"sidecar double", "runtime double"}
        assert set(ends.children()) == {"ends"}
        job = run_job(gateway.url, "pipeline", {"value": 10})
        assert (job["state"], job["result"]) == ("succeeded", 25)
        for role in (gateway, double, add_five, ends):
            assert role.stop() == 0


@pytest.mark.req("MESH-24")
def test_the_runtime_prints_itself(tmp_path: Path) -> None:
    printed = groundplane("runtime", "--print", folder=tmp_path)
    (tmp_path / "runtime.py").write_text(printed.stdout)
    run = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "runtime.py"), "--version"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0
    assert "protocol 1" in run.stdout
