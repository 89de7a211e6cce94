"""A running plane, scraped by a real Prometheus: every role, every panel of the dashboard, every rule; its health."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.cli.metric_table import metric_rows
from groundplane.deploy.dashboard import queries
from groundplane.telemetry.default_rules import default_rules
from groundplane.telemetry.prometheus import Prometheus
from groundplane.telemetry.rules import rule_file
from integration.dev_plane import PIPELINE, Running, groundplane, run_job, serving
from integration.server_lab import private
from leaks import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.anyio]
_WAIT_S = 60.0


class Plane:
    """A plane of `dev`, and what it said when it was ready."""

    def __init__(self, running: Running, folder: Path, admin: str) -> None:
        self.running, self.folder, self.admin = running, folder, admin

    def pages(self) -> dict[str, str]:
        """The address of each process's admin server, by what its ready file is named after."""
        found = {}
        for file in sorted((self.folder / "state" / "run").iterdir()):
            try:
                facts = json.loads(file.read_bytes())
            except (ValueError, OSError):
                continue
            if isinstance(facts, dict) and facts.get("admin_port"):
                found[file.stem] = f"127.0.0.1:{facts['admin_port']}"
            elif isinstance(facts, dict) and str(facts.get("admin", "")).startswith("http") and "plane" not in facts:
                found[file.stem] = str(facts["admin"]).removeprefix("http://")
        return found


def _get(url: str, timeout_s: float = 20.0) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    folder = tmp_path_factory.mktemp("plane")
    (folder / "app.py").write_text(PIPELINE)
    with serving("dev", "app:app", "--port", "0", "--state", "state", "--json", folder=folder, ready=False) as running:
        ready = running.event("ready")
        running.url = str(ready["url"])
        yield Plane(running, folder, str(ready["admin"]))


def _shows(url: str, *lines: str) -> None:
    """The page of metrics has these: what the job left under way is counted a moment later, and a process may stall."""
    shown = ""

    def all_there() -> bool:
        nonlocal shown
        shown = _get(url)[1]
        return all(line in shown for line in lines)

    assert eventually(all_there, _WAIT_S), [line for line in lines if line not in shown]


def _health(plane: Plane) -> dict[str, Any]:
    found = json.loads(_get(f"{plane.admin}/healthz", 30)[1])
    assert isinstance(found, dict)
    return found


@pytest.mark.prometheus
@pytest.mark.req("TEL-01.1", "TEL-01.4", "ALERT-04")
async def test_prometheus_scrapes_every_role_and_every_panel_of_the_dashboard_shows_something(plane: Plane) -> None:
    targets = sorted(plane.pages().values())
    assert len(targets) == 4, plane.pages()  # gateway, ends, two sidecars
    rules = rule_file(default_rules())
    with private("prometheus", targets=targets, rules=rules) as server:
        prometheus = Prometheus(server.url)

        def scraped() -> bool:
            found = json.loads(_get(f"{server.url}/api/v1/query?query=count(up%20==%201)")[1])["data"]["result"]
            return bool(found) and float(found[0]["value"][1]) == 4

        assert eventually(scraped, _WAIT_S)
        async with asyncio.timeout(_WAIT_S):  # a rate needs two scrapes of a series
            while True:
                run_job(plane.running.url, "pipeline", {"value": 1})
                empty = [one for one in queries() if not await prometheus.query(one)]
                if not empty:
                    break
        roles = await prometheus.query("count by (role) (groundplane_build_info)")
        assert {dict(labels)["role"]: value for labels, value in roles.items()} == {
            "gateway": 1, "sidecar": 2, "ends": 1,
        }  # fmt: skip
        groups = json.loads(_get(f"{server.url}/api/v1/rules")[1])["data"]["groups"]
        health = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in groups[0]["rules"]}
        assert set(health) == {one.name for one in default_rules()}
        assert {name: told for name, told in health.items() if told[0] == "err"} == {}


@pytest.mark.req("TEL-01.2")
def test_no_metric_of_a_plane_has_more_than_a_thousand_series_and_all_are_in_the_table(plane: Plane) -> None:
    run_job(plane.running.url, "pipeline", {"value": 1})
    processes = ("dev", "gateway", "ends", "sidecar double", "sidecar add_five")
    _shows(f"{plane.admin}/metrics", *(f'up{{process="{process}"}} 1.0' for process in processes))
    known = {name for row in metric_rows() for name in row.samples()} | {"up"}
    series: dict[str, int] = {}
    for line in _get(f"{plane.admin}/metrics")[1].splitlines():
        if line and not line.startswith("#"):
            name = line.partition("{")[0].partition(" ")[0]
            series[name] = series.get(name, 0) + 1
    assert {name: count for name, count in series.items() if count > 1000} == {}
    assert {name for name in series if not name.endswith("_created")} - known == set()
    units = ("_seconds", "_bytes", "_total", "_ratio", "_info")
    timed = [name for name in known if any(word in name for word in ("latency", "duration", "_ms", "_mb", "_kb"))]
    assert (timed, any(name.endswith(units) for name in series)) == ([], True)


@pytest.mark.req("TEL-04")
def test_system_metrics_are_in_range(plane: Plane) -> None:
    address = plane.pages()["gateway"]
    values: dict[str, float] = {}
    for line in _get(f"http://{address}/metrics")[1].splitlines():
        if line.startswith(("groundplane_system_", "process_")):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    memory = {kind: values[f'groundplane_system_memory_bytes{{kind="{kind}"}}'] for kind in ("total", "available")}
    disk = {kind: values[f'groundplane_system_disk_bytes{{kind="{kind}"}}'] for kind in ("total", "free")}
    assert 0 < memory["available"] < memory["total"]
    assert memory["total"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < disk["free"] < disk["total"]
    assert 1 <= values["groundplane_system_cpus"] <= (os.cpu_count() or 1)
    assert values['groundplane_system_cpu_seconds_total{mode="user"}'] > 0
    assert values['groundplane_system_network_bytes_total{direction="received"}'] >= 0
    assert 5e6 < values["process_resident_memory_bytes"] < memory["total"]
    assert values["process_cpu_seconds_total"] > 0.05


@pytest.mark.req("TEL-07.1", "TEL-07.3")
def test_a_gateway_tells_of_pools_queues_outbox_and_calls(plane: Plane) -> None:
    run_job(plane.running.url, "pipeline", {"value": 1})
    _shows(
        f"http://{plane.pages()['gateway']}/metrics",
        'groundplane_pool_connections{backend="sqlite",state="idle"}',
        'groundplane_pool_waiting{backend="sqlite"} 0.0',
        'groundplane_pool_connections_max{backend="sqlite"} 1.0',
        "groundplane_outbox_messages 0.0",
        "groundplane_outbox_oldest_seconds 0.0",
        'groundplane_jobs_stored{kind="jobs"}',
        'groundplane_queue_messages{queue="double",state="ready"} 0.0',
        'groundplane_port_calls_total{operation="create",outcome="ok",port="jobs"}',
    )


@pytest.mark.req("TEL-01.3")
def test_admin_servers_listen_on_the_loopback_alone(plane: Plane) -> None:
    ports = {int(address.rpartition(":")[2]) for address in (*plane.pages().values(), plane.admin)}
    listening: dict[int, set[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A":
                host, port = local.split(":")
                listening.setdefault(int(port, 16), set()).add(host)
    assert {port: listening[port] for port in ports} == {port: {"0100007F"} for port in ports}


@pytest.mark.req("HEALTH-01.1", "HEALTH-01.2")
def test_dev_shows_the_health_of_the_whole_plane_and_the_command_prints_it(plane: Plane) -> None:
    assert eventually(lambda: _health(plane)["status"] == "ok", _WAIT_S), _health(plane)
    assert eventually(lambda: {one["status"] for one in _health(plane)["checks"].values()} == {"ok"}, _WAIT_S)
    assert set(_health(plane)["checks"]) == set(plane.running.children())
    for address in plane.pages().values():
        status, body = _get(f"http://{address}/healthz?stored")
        one = json.loads(body)
        assert (status, one["started"]) == (200, True)
        assert eventually(lambda address=address: _quick(address), _WAIT_S), one
        assert _get(f"http://{address}/startupz") == (200, "ok\n")
    told = groundplane("health", "--state", "state", "--json", folder=plane.folder)
    assert (told.returncode, json.loads(told.stdout)["role"]) == (0, "plane")


def _quick(address: str) -> bool:
    """Every check is answered within a second, asked now: one that a stall fell into is asked again."""
    checks = json.loads(_get(f"http://{address}/healthz")[1])["checks"]
    return all(check["latency_ms"] < 1000 for check in checks.values())


def test_a_process_that_stands_still_turns_the_plane_red_and_it_heals(plane: Plane) -> None:
    pid = plane.running.children()["sidecar double"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert eventually(lambda: _health(plane)["checks"]["sidecar double"]["status"] == "failed", _WAIT_S)
        assert _get(f"{plane.admin}/readyz", 30)[0] == 503
        told = groundplane("health", "--state", "state", folder=plane.folder)
        assert (told.returncode, " not answer" in told.stdout) == (1, True)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert eventually(lambda: _health(plane)["status"] == "ok", _WAIT_S)


def test_a_process_that_was_killed_is_counted_as_started_again(plane: Plane) -> None:
    os.kill(plane.running.children()["ends"], signal.SIGKILL)

    def counted() -> bool:
        return 'groundplane_process_restarts_total{name="ends",process="dev"} 1.0' in _get(f"{plane.admin}/metrics")[1]

    assert eventually(counted, _WAIT_S)
    assert eventually(lambda: _health(plane)["status"] == "ok", _WAIT_S)
