"""`groundplane conformance`: a suite from the command line, on a driver of ours, of a stranger, and of a broken one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.req("KIT-05.2")]

_FORGETFUL = """
from groundplane.mesh.ledger.drivers.embedded import EmbeddedLedger
async def _again(self, *_, **__):
    return type(await _begin(self, "x"))("new")
_begin = EmbeddedLedger.once_begin
EmbeddedLedger.once_begin = _again
"""


def conformance(*words: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    command = [sys.executable, "-m", "groundplane.cli", "conformance", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=55, check=False)


def test_a_suite_is_run_and_its_report_written_in_three_forms(tmp_path: Path) -> None:
    done = conformance("ledger", "embedded://", "--out", "reports", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ledger on embedded://: ")
    found = json.loads((tmp_path / "reports" / "conformance-ledger-embedded.json").read_text())
    assert found["passed"]
    assert found["counts"]["failed"] == 0
    assert found["counts"]["passed"] == len(found["tests"]) > 10
    assert any("MESH-13" in one["requirements"] for one in found["tests"])
    cases = ElementTree.parse(tmp_path / "reports" / "conformance-ledger-embedded.xml").getroot().iter("testcase")
    assert {case.get("name") for case in cases} == {one["name"] for one in found["tests"]}
    table = (tmp_path / "reports" / "conformance-ledger-embedded.md").read_text()
    assert table.count("| passed |") == len(found["tests"])
    assert not (tmp_path / ".groundplane").exists()


def test_a_driver_that_breaks_a_promise_fails_the_run_by_name(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_FORGETFUL)
    done = conformance("ledger", "embedded://", "--select", "effect", "--json", cwd=tmp_path, path=tmp_path)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["passed"]
    failed = {one["name"]: one["why"] for one in found["tests"] if one["outcome"] == "failed"}
    assert "assert" in failed["test_an_effect_is_new_once_then_begun_then_done_with_its_first_value"]


def test_a_server_is_tested_by_its_url_and_secrets_are_not_shown(tmp_path: Path, s3_url: str) -> None:
    done = conformance("blobs", s3_url, "--select", "labels or missing or version", "--out", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + "".join(file.read_text() for file in tmp_path.iterdir())
    assert ":***@" in shown
    assert s3_url.partition("endpoint=")[2].partition("@")[0].rpartition(":")[2] not in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("qeues", "embedded://"), "did you mean 'queues'"),
        (("queues", "no url"), "url: "),
        (("ledger", "embedded://", "--select", "nothing_like_this"), "no test that match"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = conformance(*words, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert said in done.stderr


@pytest.mark.parametrize(
    ("port", "url", "said"),
    [
        ("queues", "amqp://guest:canary@127.0.0.1:1/x", "cannot be reached"),
        ("jobs", "amqp://guest:canary@127.0.0.1:1/x", "no driver of jobs for 'amqp'"),
        ("blobs", "s3://bucket?endpoint=http://key:canary@127.0.0.1:1", "takes no connection"),
    ],
)
def test_what_every_test_would_fail_with_is_said_once(tmp_path: Path, port: str, url: str, said: str) -> None:
    done = conformance(port, url, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr.count(said) == 1
    assert "passed" not in done.stdout + done.stderr
    assert "canary" not in done.stdout + done.stderr
