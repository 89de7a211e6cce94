"""The CI workflow of the how-to is one, and what it runs exists and works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from groundplane.testing.servers.catalog import MODULES, chosen
from groundplane.testing.servers.contract import Running
from groundplane.testing.servers.sources import Go
from groundplane.testing.toolchains import Toolchain

pytestmark = pytest.mark.req("KIT-15")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "ci.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def _workflow() -> dict[Any, Any]:
    (text,) = _blocks("yaml")
    loaded: dict[Any, Any] = yaml.safe_load(text)
    return loaded


def _jobs() -> list[Any]:
    return [pytest.param(job, id=name) for name, job in _workflow()["jobs"].items()]


def _commands(job: dict[str, Any], program: str) -> list[list[str]]:
    words = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    return [one for one in words if one[0] == program]


@pytest.mark.slow
@pytest.mark.integration
def test_the_workflow_passes_actionlint(go_toolchain: Toolchain, tmp_path: Path) -> None:
    package = "github.com/rhysd/actionlint/cmd/actionlint"
    source = Go(
        package, module="github.com/rhysd/actionlint", version="v1.7.12", program="actionlint", shown="1.7.12",
        size_mb=8, seconds=20,
    )  # fmt: skip
    source.install(tmp_path / "actionlint", print)
    (text,) = _blocks("yaml")
    for wrong, code in (
        (text, 0),
        (text.replace("runs-on: ", "run-on: "), 1),
        (text.replace("github.ref", "gitub"), 1),
    ):
        (tmp_path / "tests.yml").write_text(wrong)
        ran = subprocess.run(
            [tmp_path / "actionlint" / "bin" / "actionlint", "-shellcheck=", "-pyflakes=", tmp_path / "tests.yml"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ran.returncode == code, ran.stdout + ran.stderr


def test_pull_requests_and_nights_have_a_job_each() -> None:
    workflow = _workflow()
    events = workflow[True]  # YAML 1.1 reads the key `on` so
    assert {"pull_request", "schedule"} <= set(events)
    assert "pull_request" in workflow["jobs"]["pull-request"]["if"]
    assert "schedule" in workflow["jobs"]["nightly"]["if"]


@pytest.mark.parametrize("job", _jobs())
def test_what_is_required_is_what_is_installed(job: dict[str, Any]) -> None:
    (install,) = [words for words in _commands(job, "groundplane") if words[1:3] == ["servers", "install"]]
    assert set(install[3:]) == set(job["env"]["GROUNDPLANE_REQUIRE_SERVERS"].split(","))
    assert set(install[3:]) <= set(MODULES)


@pytest.mark.parametrize("job", _jobs())
def test_a_job_brings_what_its_servers_are_built_with(job: dict[str, Any]) -> None:
    (install,) = _commands(job, "groundplane")
    origins = {chosen(name)[1][0].origin for name in install[3:]}
    used = " ".join(str(step) for step in job["steps"])
    assert ("setup-go" in used) == ("go" in origins)
    assert ("maven" in used) == ("maven" in origins)


@pytest.mark.parametrize("job", _jobs())
def test_results_are_uploaded_from_where_they_are_written_whatever_happened(job: dict[str, Any]) -> None:
    (tests,) = _commands(job, "pytest")
    (written,) = [word.removeprefix("--junitxml=") for word in tests if word.startswith("--junitxml=")]
    (upload,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact@")]
    assert upload["if"] == "always()"
    assert upload["with"]["path"] == written


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("job", _jobs())
def test_the_tests_of_the_how_to_run_as_the_jobs_run_them(
    job: dict[str, Any], redis_server: Running, tmp_path: Path
) -> None:
    (tests,) = _commands(job, "pytest")
    (code,) = _blocks("python")
    (tmp_path / "test_counter.py").write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GROUNDPLANE_TEST_", "PYTEST_"))}
    ran = subprocess.run(
        [sys.executable, "-m", *tests],
        cwd=tmp_path, env={**kept, "GROUNDPLANE_REQUIRE_SERVERS": "redis"}, capture_output=True, text=True,
        timeout=150, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (written,) = [word.removeprefix("--junitxml=") for word in tests if word.startswith("--junitxml=")]
    suite = ET.parse(tmp_path / written).getroot()[0]
    expected = 1 if "not slow and not fault" in tests else 2
    assert (int(suite.get("tests", 0)), suite.get("skipped"), suite.get("failures")) == (expected, "0", "0")
    assert re.search(r"^redis +7", ran.stdout, re.M), "the table of servers is missing"
