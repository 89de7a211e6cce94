"""What is shipped for monitoring: the rules that promtool accepts, the dashboard, a run-book for each alert."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from groundplane.cli.metric_table import metric_rows
from groundplane.core.settings import Settings
from groundplane.deploy.dashboard import dashboard, queries
from groundplane.telemetry.alerting import rules_of
from groundplane.telemetry.default_rules import default_rules
from groundplane.telemetry.rules import rule_file
from integration.dev_plane import groundplane

ROOT = Path(__file__).resolve().parents[2]
_METRIC = re.compile(r"\b(?:groundplane|process)_[a-z_]+\b")
_SHIPPED = ROOT / "deploy" / "alerts" / "groundplane.rules.yml"


def _names() -> set[str]:
    return {name for row in metric_rows() for name in row.samples()} | {"up"}


def _promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program is not None, "promtool comes with Prometheus"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_the_files_are_what_the_tool_would_write() -> None:
    spec = importlib.util.spec_from_file_location("monitoring", ROOT / "tools" / "monitoring.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert {path: path.read_text() for path in tool.files()} == tool.files()


@pytest.mark.req("ALERT-04")
def test_every_metric_that_the_dashboard_and_the_rules_name_exists() -> None:
    named = {name for query in queries() for name in _METRIC.findall(query)}
    assert len(named) > 20
    assert named - _names() == set()
    ours = {name for rule in default_rules() for name in rule.expression.names()}
    assert ours - _names() == set()


@pytest.mark.req("ALERT-04")
def test_the_dashboard_is_what_grafana_imports() -> None:
    found = json.loads((ROOT / "deploy" / "dashboards" / "groundplane.json").read_text())
    assert found == json.loads(json.dumps(dashboard()))
    ids = [panel["id"] for panel in found["panels"]]
    assert len(ids) == len(set(ids)) > 20
    assert found["__inputs"][0]["name"] == "DS_PROMETHEUS"
    for panel in found["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
        assert panel["type"] == "row" or all(one["expr"] for one in panel["targets"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in found["panels"]]
    assert len(places) == len(set(places))


@pytest.mark.req("ALERT-04")
def test_every_alert_links_to_its_run_book_and_every_run_book_has_its_alert() -> None:
    linked = {rule.runbook for rule in default_rules()}
    books = {str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "howto" / "runbooks").glob("*.md")}
    assert linked == books
    for rule in default_rules():
        text = (ROOT / rule.runbook).read_text()
        assert text.startswith(f"# {rule.name}\n")
        assert "## What to do" in text
        unknown = {one for one in re.findall(r"`[^`]*`", text) for name in _METRIC.findall(one) if not _is_known(name)}
        assert unknown == set()


def _is_known(name: str) -> bool:
    return name in _names() or name in {row.name for row in metric_rows()}


@pytest.mark.prometheus
@pytest.mark.req("ALERT-01.3")
def test_promtool_accepts_the_rules_as_shipped_and_as_printed(tmp_path: Path) -> None:
    shipped = _promtool("check", "rules", "--lint=all", "--lint-fatal", _SHIPPED)
    assert (shipped.returncode, f"{len(default_rules())} rules found" in shipped.stdout) == (0, True), shipped.stderr
    own = tmp_path / "own.toml"
    own.write_text(
        '[[rule]]\nname = "mine"\nseverity = "info"\nthreshold = 2.5\ncompare = "below"\n'
        '[rule.expression]\nkind = "quantile"\nmetric = "t_seconds"\nq = 0.9\nwindow_s = 60\n'
        'where = { a = "!b\\\\.c\\"d" }\n'
    )
    printed = groundplane("alerts", "rules", "--out", "all.yml", folder=tmp_path, GROUNDPLANE_ALERTS_RULES=str(own))
    assert printed.returncode == 0, printed.stderr
    checked = _promtool("check", "rules", tmp_path / "all.yml")
    assert (checked.returncode, f"{len(default_rules()) + 1} rules found" in checked.stdout) == (0, True), checked
    settings = Settings(alerts_rules=own)
    assert yaml.safe_load((tmp_path / "all.yml").read_text()) == rule_file(rules_of(settings))


@pytest.mark.prometheus
@pytest.mark.req("ALERT-01.1", "ALERT-01.2", "ALERT-01.3")
def test_the_exported_rules_fire_in_prometheus_as_they_do_in_process(tmp_path: Path) -> None:
    """The engine of Prometheus itself evaluates them, by promtool: 10 failures of 15, and requests of 1.5 s."""
    actor = "groundplane_actor_messages"
    latency = 'groundplane_gateway_request_seconds_bucket{route="/v1/jobs", le="%s"}'
    tests: dict[str, Any] = {
        "rule_files": [str(_SHIPPED)],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": f'{actor}_failed_total{{actor="double", reason="x"}}', "values": "0x5 10"},
                    {"series": f'{actor}_received_total{{actor="double"}}', "values": "0x5 15"},
                    {"series": latency % "1.0", "values": "0x6"},
                    {"series": latency % "2.0", "values": "0x5 20"},
                    {"series": latency % "+Inf", "values": "0x5 20"},
                    {"series": 'up{job="groundplane", instance="ends"}', "values": "1x4 0 0"},
                ],
                "alert_rule_test": [
                    _expected("high_error_rate", 5),
                    _expected("high_error_rate", 6, severity="warning", actor="double"),
                    _expected("high_latency", 5),
                    _expected("high_latency", 6, severity="critical", route="/v1/jobs"),
                    _expected("replica_down", 5),
                    _expected("replica_down", 6, severity="critical", instance="ends"),
                    _expected("gateway_errors", 6),
                ],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump(tests))
    found = _promtool("test", "rules", file)
    assert found.returncode == 0, found.stdout + found.stderr


def _expected(name: str, minute: int, **labels: str) -> dict[str, Any]:
    """What promtool is to find after so many minutes: this alert with these labels, or none."""
    (rule,) = (one for one in default_rules() if one.name == name)
    values = {"high_error_rate": "666.7m", "high_latency": "1.95", "replica_down": "0"}
    annotations = {
        "summary": rule.summary, "description": f"The value is {values.get(name)}.", "runbook_url": rule.runbook,
    }  # fmt: skip
    alerts = [{"exp_labels": labels, "exp_annotations": annotations}] if labels else []
    return {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": alerts}
