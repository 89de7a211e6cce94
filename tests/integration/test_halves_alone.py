"""Sidecar and runtime as in two containers of a pod: folders of their own, bare environments, a socket between them.

The sidecar is the installed command. The runtime is the one file that `groundplane runtime --print` prints, run by the
system's Python, which knows no groundplane.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import groundplane
from deployed import plan
from groundplane.core.envelope import Envelope
from groundplane.deploy import roles
from groundplane.mesh.spec import ActorSpec
from groundplane.mesh.start import queue_specs
from groundplane.queues import Queues
from groundplane.queues.port import OutgoingMessage
from groundplane.telemetry.admin import serve_admin
from groundplane.telemetry.health import Health
from groundplane.telemetry.metrics import new_registry
from groundplane.testing.servers.ports import Ports

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

WAIT_S = 20.0
GROUNDPLANE = [sys.executable, "-m", "groundplane.cli"]
SOURCES = Path(groundplane.__file__).parents[1]
SYSTEM_PYTHON = next((path for path in (Path("/usr/bin/python3"),) if path.exists()), Path(sys.executable))
HANDLERS = """
import os, time

def double(payload):
    return payload * 2

def slow(payload):
    with open("begun", "a") as file:
        file.write("x")
    while not os.path.exists("go"):
        time.sleep(0.01)
    return "finished"
"""


@dataclass
class Pod:
    """Two folders, what they share, and the processes in them."""

    home: Path
    url: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: Ports = field(default_factory=Ports)

    @property
    def socket(self) -> Path:
        return self.home / "shared" / "actor.sock"

    def begin(self, name: str, command: list[str | Path], **variables: str | Path) -> subprocess.Popen[bytes]:
        """Start a process in a folder of its own, knowing these variables and nothing else."""
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={key: str(value) for key, value in variables.items()},
            )  # fmt: skip
        self.processes[name] = process
        return process

    def sidecar(self, *flags: str | Path, **variables: str | Path) -> subprocess.Popen[bytes]:
        given: dict[str, str | Path] = {
            "GROUNDPLANE_QUEUE_NAME": "double", "GROUNDPLANE_SOCKET_PATH": self.socket,
            "GROUNDPLANE_QUEUES_URL_FILE": self.home / "queues_url", "GROUNDPLANE_ACTOR_ADMIN_PORT": str(self.port),
            "GROUNDPLANE_ACTOR_READY_FILE": self.ready_file("sidecar"), **variables,
        }  # fmt: skip
        without = ["--jobs", "", "--blobs", "", "--ledger", ""]
        chosen = {key: value for key, value in given.items() if value != ""}
        chosen["PYTHONPATH"] = SOURCES
        return self.begin("sidecar", [*GROUNDPLANE, "sidecar", *without, *flags], **chosen)

    def runtime(self, *flags: str, handler: str = "handlers:double") -> subprocess.Popen[bytes]:
        folder = self.home / "runtime"
        folder.mkdir(exist_ok=True)
        (folder / "handlers.py").write_text(HANDLERS)
        return self.begin(
            "runtime", [SYSTEM_PYTHON, "-I", self.printed(), *flags],
            GROUNDPLANE_HANDLER=handler, GROUNDPLANE_SOCKET_PATH=self.socket, PYTHONPATH=folder,
            GROUNDPLANE_READY_FILE=self.ready_file("runtime"),
        )  # fmt: skip

    def printed(self) -> Path:
        file = self.home / "runtime.py"
        if not file.exists():
            done = subprocess.run([*GROUNDPLANE, "runtime", "--print"], capture_output=True, check=True)
            file.write_bytes(done.stdout)
        return file

    def probe(self) -> int:
        """The exit code of the runtime's probe, asked by the printed file."""
        command = [SYSTEM_PYTHON, "-I", self.printed(), "--probe", "--socket", self.socket]
        return subprocess.run(command, capture_output=True, env={}, check=False, timeout=WAIT_S).returncode

    def workers(self) -> list[int]:
        """The processes that the runtime has forked."""
        pid = self.processes["runtime"].pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def ready_file(self, name: str) -> Path:
        return self.home / "shared" / f"{name}.ready"

    @property
    def port(self) -> int:
        """A port that was free when it was first asked for; the servers of the kit take no other's."""
        found = self.home / "port"
        if not found.exists():
            found.write_text(str(self.ports.take()))
        return int(found.read_text())

    def log(self, name: str) -> str:
        return (self.home / name / "log").read_text(errors="replace")

    def end(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(WAIT_S)
        self.ports.release()


@pytest.fixture(params=["embedded", "rabbitmq"])
def pod(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pod]:
    """A pod on queues of each driver."""
    url = f"embedded://{tmp_path}/state" if request.param == "embedded" else request.getfixturevalue("rabbitmq_url")
    (tmp_path / "shared").mkdir()
    (tmp_path / "queues_url").write_text(f"{url}\n")
    found = Pod(tmp_path, url)
    yield found
    found.end()


@pytest.fixture
async def queues(pod: Pod) -> AsyncIterator[Queues]:
    async with Queues.open(pod.url, state=pod.home / "state", upgrade=True) as opened:
        yield opened


async def _eventually(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> None:
    ends_at = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < ends_at, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.02)


async def _declare(queues: Queues) -> None:
    await queues.declare(*queue_specs([ActorSpec(name="double", handler="")]))


async def _result(queues: Queues, payload: Any) -> Envelope:
    """Send an envelope to the actor; what reaches the happy end."""
    await _send(queues, payload)
    return await _arrived(queues)


async def _send(queues: Queues, payload: Any) -> None:
    envelope = Envelope.new(["double"], payload)
    await queues.send(OutgoingMessage(queue="double", payload=envelope.to_bytes(), id=envelope.id))


async def _arrived(queues: Queues) -> Envelope:
    async with queues.consume("happy-end", max_in_flight=1) as consumer:
        (delivery,) = await consumer.receive(1, WAIT_S)
        await consumer.ack(delivery)
        return Envelope.from_bytes(delivery.payload)


def _get(port: int, path: str, timeout_s: float = 5.0) -> tuple[int, str]:
    """Status and text; status 0 for no answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout_s) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


async def _ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, WAIT_S)


@pytest.mark.req("MESH-25.1", "MESH-24.1", "MESH-23.1")
@pytest.mark.parametrize("order", ["runtime sidecar queue", "sidecar queue runtime", "queue runtime sidecar"])
async def test_the_halves_and_their_queue_start_in_any_order(pod: Pod, queues: Queues, order: str) -> None:
    for part in order.split():
        if part == "queue":
            await _declare(queues)
        else:
            getattr(pod, part)()
    await _eventually(pod.ready_file("sidecar").exists, "the sidecar is ready")
    assert (await _result(queues, 21)).payload == 42
    facts = json.loads(pod.ready_file("sidecar").read_bytes())
    assert facts == {"pid": pod.processes["sidecar"].pid, "admin_port": pod.port, "actor": "double"}
    assert json.loads(pod.ready_file("runtime").read_bytes())["pid"] == pod.processes["runtime"].pid


@pytest.mark.req("MESH-25.2")
async def test_a_sidecar_that_waits_is_alive_and_not_ready(pod: Pod, queues: Queues) -> None:
    pod.sidecar()
    await _eventually(lambda: _get(pod.port, "/livez")[0] == 200, "the sidecar lives")
    assert _get(pod.port, "/readyz") == (503, "start: waits for queue and runtime\n")
    assert not pod.ready_file("sidecar").exists()
    await _declare(queues)
    assert pod.probe() == 1, "no runtime serves yet"
    pod.runtime()
    await _eventually(lambda: _get(pod.port, "/readyz") == (200, "ok\n"), "it is ready")
    assert pod.probe() == 0


@pytest.mark.req("MESH-18", "MESH-25.3")
async def test_told_to_stop_both_drain_and_exit_0(pod: Pod, queues: Queues) -> None:
    await _declare(queues)
    runtime, sidecar = pod.runtime(), pod.sidecar()
    assert (await _result(queues, 1)).payload == 2
    for process, name in ((sidecar, "sidecar"), (runtime, "runtime")):
        process.send_signal(signal.SIGTERM)
        assert await _ended(process) == 0, pod.log(name)
        assert not pod.ready_file(name).exists()
    assert not pod.socket.exists()


@pytest.mark.req("MESH-18")
async def test_both_told_at_once_the_runtime_outlives_the_sidecars_drain(pod: Pod, queues: Queues) -> None:
    """A pod stops all containers at once: the hook before the runtime's stop waits until the sidecar has drained."""
    await _declare(queues)
    runtime, sidecar = pod.runtime(handler="handlers:slow"), pod.sidecar()
    await _send(queues, None)
    await _eventually((pod.home / "runtime" / "begun").exists, "the call has begun")
    hook = [part.replace(str(9090), str(pod.port)) for part in roles.await_sidecar(plan())]
    before_stop = pod.begin("hook", [SYSTEM_PYTHON, *hook[1:]], GROUNDPLANE_ACTOR_ADMIN_HOST="127.0.0.1")
    sidecar.send_signal(signal.SIGTERM)
    await _eventually(lambda: "was told to stop" in _get(pod.port, "/readyz")[1], "the sidecar drains")
    assert before_stop.poll() is None, "the hook holds the runtime while the sidecar drains"
    (pod.home / "runtime" / "go").touch()
    assert await _ended(sidecar) == 0, pod.log("sidecar")
    assert await _ended(before_stop) == 0, pod.log("hook")
    runtime.send_signal(signal.SIGTERM)
    assert await _ended(runtime) == 0, pod.log("runtime")
    assert (await _arrived(queues)).payload == "finished"
    assert (pod.home / "runtime" / "begun").read_text() == "x", "it was called once"


@pytest.mark.req("MESH-23.1", "MESH-25.3")
@pytest.mark.parametrize(
    "flags, variables, declared, code, said",
    [
        (["--timeout", "soon"], {}, True, 2, "--timeout: 'soon'"),
        (["--config", '{"actr": {}}'], {}, True, 2, "'actr' is no setting of a sidecar"),
        ([], {"GROUNDPLANE_QUEUE_NAME": ""}, True, 2, "name: is missing; give --queue"),
        ([], {"GROUNDPLANE_SOCKET_PATH": ""}, True, 2, "socket: is missing; give --socket"),
        ([], {"GROUNDPLANE_QUEUES_URL_FILE": "/nowhere/url"}, True, 2, "GROUNDPLANE_QUEUES_URL_FILE: '/nowhere/url'"),
        ([], {"GROUNDPLANE_QUEUES_URL": "embedded://"}, True, 2, "GROUNDPLANE_QUEUES_URL: is set beside"),
        (["--start-timeout", "300ms"], {}, True, 3, "runtime_not_ready"),
        (["--start-timeout", "1200ms"], {}, False, 4, "queue_not_ready"),
    ],
)
async def test_a_sidecar_that_cannot_start_ends_with_a_code_and_says_why(
    pod: Pod, queues: Queues, flags: list[str], variables: dict[str, str], declared: bool, code: int, said: str
) -> None:
    if declared:
        await _declare(queues)
    else:
        pod.runtime()
        await _eventually(pod.ready_file("runtime").exists, "the runtime serves")
    assert await _ended(pod.sidecar(*flags, **variables)) == code, pod.log("sidecar")
    assert said in pod.log("sidecar")
    assert "Traceback" not in pod.log("sidecar")


@pytest.mark.req("MESH-25.3")
@pytest.mark.parametrize("pod", ["embedded"], indirect=True)
@pytest.mark.parametrize(
    "store, url",
    [
        ("jobs", "postgresql://nobody:canary-77@127.0.0.1:1/acme"),
        ("ledger", "postgresql://nobody:canary-77@127.0.0.1:1/acme"),
        ("blobs", "s3://nobody:canary-77@bucket?endpoint=http://127.0.0.1:1&connect_timeout=1"),
    ],
)
async def test_a_store_that_is_away_ends_a_sidecar_with_code_5_and_says_which(
    pod: Pod, queues: Queues, store: str, url: str
) -> None:
    await _declare(queues)
    pod.runtime()
    await _eventually(pod.ready_file("runtime").exists, "the runtime serves")
    assert await _ended(pod.sidecar(f"--{store}", url, "--start-timeout", "1s")) == 5, pod.log("sidecar")
    assert f"{store}: was not there within 1 s" in pod.log("sidecar")
    assert "canary-77" not in pod.log("sidecar")


@pytest.mark.req("MESH-25.1", "MESH-25.2")
@pytest.mark.slow
async def test_a_broker_that_starts_last_is_waited_for(tmp_path: Path, own_server: Any) -> None:
    broker = await asyncio.to_thread(own_server, "rabbitmq")
    (tmp_path / "shared").mkdir()
    (tmp_path / "queues_url").write_text(broker.url)
    found = Pod(tmp_path, broker.url)
    async with Queues.open(broker.url, state=tmp_path / "state") as queues:
        await _declare(queues)
    await asyncio.to_thread(broker.stop)
    try:
        found.runtime()
        sidecar = found.sidecar("--start-timeout", "60s")
        await _eventually(lambda: _get(found.port, "/readyz")[0] == 503, "the sidecar lives and is not ready")
        await _eventually(lambda: found.probe() == 0, "the runtime serves")
        assert sidecar.poll() is None
        await asyncio.to_thread(broker.start)
        await _eventually(lambda: _get(found.port, "/readyz") == (200, "ok\n"), "it is ready", 60.0)
        async with Queues.open(broker.url, state=tmp_path / "state") as queues:
            assert (await _result(queues, 3)).payload == 6
    finally:
        found.end()


async def test_a_taken_admin_port_ends_a_sidecar_with_code_1_and_says_so(pod: Pod) -> None:
    with socket.create_server(("127.0.0.1", pod.port)):
        assert await _ended(pod.sidecar()) == 1
    assert f"admin_port: {pod.port} on 127.0.0.1 cannot be bound" in pod.log("sidecar")


@pytest.mark.req("MESH-23.1")
@pytest.mark.parametrize(
    "flags, handler, code, said",
    [
        (["--workers", "none"], "handlers:double", 2, "--workers"),
        ([], "handlers:nothing", 3, "handler_import_failed"),
        ([], "nowhere:nothing", 3, "handler_import_failed"),
    ],
)
def test_a_runtime_that_cannot_start_ends_with_a_code_and_says_why(
    tmp_path: Path, flags: list[str], handler: str, code: int, said: str
) -> None:
    (tmp_path / "shared").mkdir()
    found = Pod(tmp_path, "")
    try:
        assert found.runtime(*flags, handler=handler).wait(WAIT_S) == code, found.log("runtime")
        assert said in found.log("runtime")
    finally:
        found.end()


@pytest.mark.req("MESH-07.1")
async def test_a_killed_worker_ends_neither_half(pod: Pod, queues: Queues) -> None:
    await _declare(queues)
    runtime, sidecar = pod.runtime(handler="handlers:slow"), pod.sidecar()
    await _send(queues, None)
    await _eventually((pod.home / "runtime" / "begun").exists, "the call has begun")
    for child in pod.workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    (pod.home / "runtime" / "go").touch()
    assert (await _arrived(queues)).payload == "finished"
    assert (pod.home / "runtime" / "begun").read_text() == "xx", "it was called again"
    assert "ended while busy: signal 9" in pod.log("runtime")
    assert (runtime.poll(), sidecar.poll()) == (None, None)


async def test_a_killed_runtime_turns_readiness_red_and_a_new_one_green(pod: Pod, queues: Queues) -> None:
    await _declare(queues)
    runtime = pod.runtime()
    pod.sidecar()
    await _eventually(lambda: _get(pod.port, "/readyz")[0] == 200, "it is ready")
    runtime.kill()
    await _ended(runtime)
    await _eventually(lambda: "no connection to the runtime" in _get(pod.port, "/readyz")[1], "it is red")
    assert _get(pod.port, "/livez")[0] == 200
    assert pod.probe() == 1
    pod.runtime()
    assert (await _result(queues, 4)).payload == 8
    await _eventually(lambda: _get(pod.port, "/readyz")[0] == 200, "it is ready again")


@pytest.mark.parametrize("pod", ["embedded"], indirect=True)
async def test_a_process_that_stands_still_fails_its_probe_of_life(pod: Pod, queues: Queues) -> None:
    await _declare(queues)
    runtime, sidecar = pod.runtime(), pod.sidecar()
    await _eventually(lambda: _get(pod.port, "/readyz")[0] == 200, "it is ready")
    sidecar.send_signal(signal.SIGSTOP)
    runtime.send_signal(signal.SIGSTOP)
    assert await asyncio.to_thread(_get, pod.port, "/livez", 0.5) == (0, "timed out")
    assert await asyncio.to_thread(pod.probe) == 1
    for process in (sidecar, runtime):
        process.send_signal(signal.SIGCONT)
    await _eventually(lambda: _get(pod.port, "/livez")[0] == 200, "it lives again")
    await _eventually(lambda: pod.probe() == 0, "the runtime serves again")


async def test_a_loop_that_is_stuck_does_not_say_that_it_lives() -> None:
    answers: list[tuple[int, str]] = []
    async with serve_admin("127.0.0.1", 0, new_registry(), Health("test")) as port:
        asking = threading.Thread(target=lambda: answers.append(_get(port, "/livez", 0.2)))
        asking.start()
        asking.join()  # the loop stands still here, as under a handler that blocks it
        assert answers == [(0, "timed out")]
        assert await asyncio.to_thread(_get, port, "/livez") == (200, "ok\n")
