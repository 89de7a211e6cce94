"""`groundplane servers`, as somebody types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.testing.servers import wire
from groundplane.testing.servers.installing import plan
from groundplane.testing.servers.ports import Ports
from groundplane.testing.servers.processes import alive
from leaks import eventually

pytestmark = [pytest.mark.integration]


class Shell:
    """The command line with a temporary folder of its own, so that the user's running servers are not met."""

    def __init__(self, folder: Path) -> None:
        self.env = {**os.environ, "TMPDIR": str(folder), "COLUMNS": "200"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "groundplane.cli", "servers", *words],
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        with self.start(*words) as process:
            output, errors = process.communicate(timeout=100)
        return process.returncode, output, errors

    def json(self, *words: str) -> Any:
        code, output, errors = self.run(*words, "--json")
        assert code == 0, errors
        return json.loads(output)


@pytest.fixture
def shell() -> Iterator[Shell]:
    folder = Path(tempfile.mkdtemp(prefix="gpcli", dir="/tmp"))
    folder.chmod(0o711)
    one = Shell(folder)
    yield one
    one.run("down")
    shutil.rmtree(folder)


@pytest.fixture
def needs_redis() -> None:
    """Skips where Redis, the quickest of the servers, is not there."""
    if plan("redis").installed is None:
        pytest.skip(plan("redis").words)


@pytest.mark.req("KIT-01.1", "KIT-01.6", "KIT-01.7")
@pytest.mark.usefixtures("needs_redis")
def test_servers_come_up_are_listed_named_and_go_down(shell: Shell) -> None:
    holder = Ports()
    port = holder.take()
    holder.release()
    code, output, errors = shell.run("up", "redis", "--port", f"redis={port}")
    assert code == 0, errors
    assert f"redis://127.0.0.1:{port}/0" in output
    assert wire.redis(port, ["PING"]) == b"+PONG"

    rows = {row["name"]: row for row in shell.json("list")["servers"]}
    assert len(rows) >= 16
    redis = rows["redis"]
    assert redis["installed"] is True
    assert (redis["port"], alive(redis["pid"])) == (port, True)
    assert redis["memory_bytes"] > 1_000_000
    assert rows["kafka"]["pid"] is None
    _, output, _ = shell.run("list")
    line = next(one.split() for one in output.splitlines() if one.startswith("redis"))
    assert line[3:6] == ["yes", str(redis["pid"]), str(port)]
    assert line[7] == "MB"

    _, _, errors = shell.run("up", "redis")
    assert "runs already" in errors
    assert shell.json("env")["REDIS_URL"] == f"redis://127.0.0.1:{port}/0"
    _, output, _ = shell.run("env", "redis")
    done = subprocess.run(
        ["sh", "-c", f"{output}\nprintf %s $GROUNDPLANE_TEST_REDIS_URL"], capture_output=True, check=True
    )
    assert done.stdout.decode() == f"redis://127.0.0.1:{port}/0"

    code, output, _ = shell.run("logs", "redis", "--lines", "1")
    assert code == 0
    assert output.count("\n") == 1
    assert "Ready to accept connections" in output

    assert shell.json("down", "redis") == {"ended": ["redis"]}
    assert not alive(redis["pid"])
    assert shell.json("down") == {"ended": []}
    assert shell.json("env") == {}


@pytest.mark.req("KIT-01.5")
@pytest.mark.usefixtures("needs_redis")
def test_a_command_runs_with_the_servers_variables_and_its_exit_code_is_passed_on(shell: Shell) -> None:
    script = "import os, sys; print(os.environ['REDIS_URL'], sys.argv[1:]); sys.exit(7)"
    code, output, errors = shell.run("run", "redis", "--", sys.executable, "-c", script, "--json", "-q", "--", "x")
    assert code == 7, errors
    url, _, words = output.partition(" ")
    assert words.strip() == "['--json', '-q', '--', 'x']"
    port = int(url.rpartition(":")[2].partition("/")[0])
    with pytest.raises(OSError):
        wire.redis(port, ["PING"])


@pytest.mark.req("KIT-01.5")
@pytest.mark.fault
@pytest.mark.usefixtures("needs_redis")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + 15), (signal.SIGKILL, -9)])
def test_a_run_that_is_ended_ends_its_command_and_its_servers(
    shell: Shell, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    script = f'echo "$REDIS_URL $$" > {said}.half; mv {said}.half {said}; exec sleep 600'
    with shell.start("run", "redis", "--", "sh", "-c", script) as process:
        assert eventually(said.exists, 30)
        url, child = said.read_text().split()
        process.send_signal(number)
        process.communicate(timeout=30) if number == signal.SIGTERM else process.wait(30)
        assert process.returncode == code
        port = int(url.rpartition(":")[2].partition("/")[0])
        assert eventually(lambda: not _listens(port), 10)
        assert eventually(lambda: not alive(int(child)), 10)
        if number == signal.SIGKILL:
            process.communicate(timeout=10)


def _listens(port: int) -> bool:
    try:
        return wire.redis(port, ["PING"]) == b"+PONG"
    except OSError:
        return False


@pytest.mark.usefixtures("needs_redis")
def test_what_cannot_be_done_is_said_with_the_exit_code_of_its_kind(shell: Shell) -> None:
    for words, code, said in (
        (("up", "postgress"), 2, "'postgress' is not one that the kit knows"),
        (("up", "redis", "--port", "redis"), 2, "port: 'redis' is not NAME=PORT"),
        (("up", "redis", "--port", "nats=4222"), 2, "port: 'nats' is not among the servers redis"),
        (("up", "redis@3"), 2, "there is no source of version '3'"),
        (("logs", "redis"), 1, "server: 'redis' is not running"),
        (("logs", "redis", "--lines", "0"), 2, "lines: 0 is less than 1"),
        (("down", "redis"), 1, "server: 'redis' is not running"),
        (("run", "redis"), 2, "command: is missing"),
        (("run", "redis", "--", "no-such-program"), 2, "command: 'no-such-program' cannot be run"),
        (("upp",), 2, "command: 'servers upp' does not exist"),
    ):
        got, output, errors = shell.run(*words)
        assert (got, output) == (code, ""), errors
        assert said in errors
    assert not list(Path(shell.env["TMPDIR"]).glob("groundplane-servers-*"))


@pytest.mark.req("KIT-04.1")
def test_a_server_that_is_missing_is_an_error_with_the_way_to_get_it(shell: Shell, tmp_path: Path) -> None:
    shell.env |= {"GROUNDPLANE_SERVERS_DIR": str(tmp_path / "none"), "PATH": "/usr/bin:/bin"}
    code, _, errors = shell.run("up", "nats")
    assert code == 1
    assert "NATS is not installed here; get it:" in errors
    assert not list(Path(shell.env["TMPDIR"]).glob("groundplane-servers-*/guard.pid"))


@pytest.mark.req("KIT-01.1")
def test_install_says_what_it_will_do_and_does_nothing_the_second_time(shell: Shell, tmp_path: Path) -> None:
    shell.env["GROUNDPLANE_SERVERS_DIR"] = str(tmp_path / "cache")
    code, output, errors = shell.run("install", "smtp", "--json")
    if code != 0 and "pip" in errors:
        pytest.skip(f"PyPI does not answer: {errors[-200:]}")
    assert code == 0, errors
    first = json.loads(output)["installed"][0]
    assert first["version"] == "1.4.6"
    assert Path(first["folder"]).is_relative_to(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")}
    assert before
    code, _, errors = shell.run("install", "smtp")
    assert code == 0
    assert "smtp: 1.4.6 is there already (pypi)" in errors
    assert "$ " not in errors
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")} == before
