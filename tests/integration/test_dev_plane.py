"""`groundplane dev`: a whole plane from one command, restarted, reloaded, stopped, with nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

import leaks
from integration.dev_plane import PIPELINE, eventually, groundplane, request, run_job, serving

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(PIPELINE)
    return tmp_path


def _dev(*more: str) -> tuple[str, ...]:
    return ("dev", "app:app", "--port", "0", "--state", "state", "--json", *more)


def _alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and leaks.command_line(pid) != "<zombie>"]


def _descendants(pid: int) -> list[int]:
    found = list(leaks.children(pid))
    return found + [grandchild for child in found for grandchild in _descendants(child)]


@pytest.mark.req("GATE-06", "CORE-05.1")
def test_the_ready_line_means_that_work_flows(folder: Path) -> None:
    with serving(*_dev(), folder=folder) as plane:
        job = run_job(plane.url, "pipeline", {"value": 10})
        assert (job["state"], job["result"], job["progress"]) == ("succeeded", 25, 100)
        assert (job["steps_completed"], job["total_steps"]) == (2, 2)
        assert set(plane.children()) == {
            "gateway", "ends", "sidecar double", "sidecar add_five", "runtime double", "runtime add_five",
        }  # fmt: skip


@pytest.mark.req("CORE-03.2", "CORE-03.3")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_plane_exits_with_zero_and_leaves_no_process_and_no_socket(folder: Path, number: int) -> None:
    with serving(*_dev(), folder=folder) as plane:
        run_job(plane.url, "pipeline", {"value": 1})
        everybody = _descendants(plane.process.pid)
        assert len(everybody) >= 8
        assert plane.stop(number) == 0
        assert _alive(everybody) == []
    left = sorted(path.name for path in (folder / "state" / "run").iterdir())
    assert [name for name in left if name.endswith((".sock", ".ready", "gateway.json"))] == []


@pytest.mark.req("CORE-03.3")
def test_ctrl_c_for_the_whole_group_stops_in_stages_too(folder: Path) -> None:
    """A terminal sends SIGINT to every process of the group at once."""
    with serving(*_dev(), folder=folder) as plane:
        everybody = _descendants(plane.process.pid)
        os.killpg(plane.process.pid, signal.SIGINT)
        assert plane.process.wait(28) == 0
        assert _alive(everybody) == []
        assert "starting it again" not in plane.log.read_text()


@pytest.mark.req("CORE-03.3")
@pytest.mark.fault
def test_nothing_outlives_a_dev_that_is_killed(folder: Path) -> None:
    with serving(*_dev(), folder=folder) as plane:
        everybody = _descendants(plane.process.pid)
        plane.process.kill()
        plane.process.wait(10)
        eventually(lambda: _alive(everybody) == [], f"still there: {_alive(everybody)}")


@pytest.mark.fault
@pytest.mark.parametrize("name", ["gateway", "ends", "sidecar double", "runtime double"])
def test_a_process_that_is_killed_serves_again_under_the_same_address(folder: Path, name: str) -> None:
    with serving(*_dev(), folder=folder) as plane:
        before = plane.children()[name]
        os.kill(before, signal.SIGKILL)
        assert plane.event("exited")["process"] == name
        restarted = plane.event("restarted")
        assert restarted["process"] == name
        assert plane.children()[name] == restarted["pid"] != before
        assert run_job(plane.url, "pipeline", {"value": 4})["result"] == 13


def test_a_second_dev_on_the_same_state_folder_names_the_pid_of_the_first(folder: Path) -> None:
    with serving(*_dev(), folder=folder) as plane:
        second = groundplane(*_dev(), folder=folder)
        assert second.returncode == 1
        assert f"pid {plane.process.pid}" in second.stderr
        assert plane.process.poll() is None


def test_a_changed_source_is_served_without_a_restart_of_the_gateway(folder: Path) -> None:
    with serving(*_dev(), folder=folder) as plane:
        gateway = plane.children()["gateway"]
        (folder / "app.py").write_text(PIPELINE.replace("value + 5", "value + 50"))
        plane.event("reloaded")
        assert run_job(plane.url, "pipeline", {"value": 10})["result"] == 70
        assert plane.children()["gateway"] == gateway


def test_a_source_that_does_not_load_leaves_the_version_from_before_at_work(folder: Path) -> None:
    with serving(*_dev(), folder=folder) as plane:
        (folder / "app.py").write_text(PIPELINE.replace("value * 2", "value *"))
        plane.event("reload_failed")
        assert "app.py" in plane.log.read_text()
        assert run_job(plane.url, "pipeline", {"value": 10})["result"] == 25
        (folder / "app.py").write_text(PIPELINE.replace("value + 5", "value + 7"))
        plane.event("reloaded")
        assert run_job(plane.url, "pipeline", {"value": 10})["result"] == 27


def test_a_new_actor_and_a_new_tool_appear_on_the_same_url(folder: Path) -> None:
    more = '\n\n@app.actor\ndef negate(value: int) -> int:\n    return -value\n\n\napp.tool("negate", route=[negate])\n'
    with serving(*_dev(), folder=folder) as plane:
        (folder / "app.py").write_text(PIPELINE + more)
        plane.event("reloaded")
        assert run_job(plane.url, "negate", {"value": 3})["result"] == -3
        (folder / "app.py").write_text(PIPELINE)
        plane.event("reloaded")
        status, problem = request(f"{plane.url}/v1/jobs", {"tool": "negate", "arguments": {"value": 3}})
        assert status == 404, problem
        assert "runtime negate" not in plane.children()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nothing_of_this_name", ["nothing_of_this_name", "app.py:1"]),
        ("x = 1", ["no 'app'", "write app = App"]),
        ("import sys\nsys.exit(3)", ["SystemExit"]),
        ("import os\nos._exit(3)", ["status 3"]),
        ("def f(:", ["app.py:1"]),
        (PIPELINE.replace("[double, add_five]", "[double, 'add_fiv']"), ["add_fiv", "did you mean 'add_five'"]),
    ],
)
def test_an_app_that_cannot_be_loaded_ends_dev_with_a_word_about_it(
    folder: Path, source: str, words: list[str]
) -> None:
    (folder / "app.py").write_text(source)
    began = time.monotonic()
    run = groundplane(*_dev(), folder=folder)
    assert run.returncode in (1, 2)
    assert run.stdout == ""
    for word in words:
        assert word in run.stderr
    assert time.monotonic() - began < 28


@pytest.mark.req("CORE-05.1")
def test_what_the_gateway_would_refuse_ends_dev_at_once_with_one_error(folder: Path) -> None:
    def refused(*more: str) -> str:
        run = groundplane("dev", "app:app", "--state", "s", *more, folder=folder, timeout_s=28)
        assert run.returncode == 1
        assert run.stdout == ""
        assert run.stderr.count("error [") == 1, run.stderr
        assert "Traceback" not in run.stderr
        assert "starting it again" not in run.stderr
        return run.stderr

    assert "host: '0.0.0.0'" in refused("--host", "0.0.0.0", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"port: {port} on 127.0.0.1 cannot be bound" in refused("--port", port)
    (folder / "routes.yaml").write_text("tols: []\n")
    (folder / "groundplane.toml").write_text("[gateway]\nroutes = 'routes.yaml'\n")
    assert "routes.yaml:1" in refused("--port", "0")
    (folder / "groundplane.toml").unlink()
    (folder / "s" / "plane.db").unlink()
    (folder / "s" / "plane.db").write_text("this is no database")
    assert "is not a Groundplane database" in refused("--port", "0")


@pytest.mark.req("CORE-03.3")
def test_the_state_folder_is_its_owners_alone(folder: Path) -> None:
    with serving(*_dev(), folder=folder):
        assert (folder / "state").stat().st_mode & 0o077 == 0
