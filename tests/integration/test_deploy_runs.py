"""The commands of a rendered Compose file run, on real servers: as containers would, but for the containers.

Each service is a process with its own environment, secrets and files. What is a path or a port of a container of its
own is mapped to one of this machine; nothing else is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import yaml

from deployed import plan
from groundplane.core.secrets import Url
from groundplane.core.settings import Settings
from groundplane.deploy import compose
from groundplane.deploy.plan import ADMIN_PORT, GATEWAY_PORT
from integration.server_lab import free_ports

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.slow]

APP = Path(__file__).resolve().parents[1] / "apps" / "deploy_app.py"
WAIT_S = 60.0
FIRST_KEY = ["groundplane", "keys", "create", "admin", "--scope", "admin", "--scope", "tools:*"]
"""As the command says when it has rendered the file."""


class Composed:
    """The services of a Compose file as processes."""

    def __init__(self, home: Path, document: dict[str, Any], urls: dict[str, str]) -> None:
        self.home = home
        self.document = document
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        gateways = [name for name in document["services"] if name.startswith("gateway")]
        free = iter(free_ports(len(document["services"]) + len(gateways)))
        self.ports = {name: next(free) for name in document["services"]}
        self.gateway_ports = {name: next(free) for name in gateways}
        for name, url in urls.items():
            (home / name).write_text(url)

    def mapped(self, service: str, text: str) -> str:
        """A text of a service with what is its container's own replaced."""
        actor = service.rpartition("-")[0] or service
        places = {
            "/run/groundplane": self.home / f"run-{actor}", "/etc/groundplane": self.home / f"etc-{service}",
            "/run/secrets": self.home, "/tmp/groundplane": self.home / f"state-{service}",
            str(ADMIN_PORT): self.ports[service], str(GATEWAY_PORT): self.gateway_ports.get(service, GATEWAY_PORT),
        }  # fmt: skip
        for inside, outside in places.items():
            text = text.replace(inside, str(outside))
        return text.replace("$$", "$")

    def start(self, service: str) -> subprocess.Popen[bytes]:
        found = self.document["services"][service]
        for config in found.get("configs", []):
            target = Path(self.mapped(service, config["target"]))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.mapped(service, self.document["configs"][config["source"]]["content"]))
        for volume in found.get("volumes", []):
            Path(self.mapped(service, volume.partition(":")[2])).mkdir(exist_ok=True)
        with (self.home / f"{service}.log").open("ab") as log:
            process = subprocess.Popen(
                self._command(service, found["command"]), cwd=self.home, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=self._environment(service),
            )  # fmt: skip
        self.processes[service] = process
        return process

    def healthy(self, service: str) -> bool:
        """Whether the service's own check says so."""
        process = self.processes[service]
        assert process.poll() is None, f"{service} ended with {process.returncode}:\n{self.log(service)}"
        kind, *command = self.document["services"][service]["healthcheck"]["test"]
        assert kind == "CMD"
        words = self._command(service, command)
        done = subprocess.run(words, env=self._environment(service), capture_output=True, check=False, timeout=WAIT_S)
        return done.returncode == 0

    def run(self, service: str, command: list[str]) -> str:
        """What `docker compose exec` does; the output."""
        words, environment = self._command(service, command), self._environment(service)
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=WAIT_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self, service: str) -> str:
        return (self.home / f"{service}.log").read_text(errors="replace")[-4000:]

    def end(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(WAIT_S)

    def _command(self, service: str, command: list[str]) -> list[str]:
        program, *words = [self.mapped(service, word) for word in command]
        return [str(Path(sys.executable).with_name(program)), *words]

    def _environment(self, service: str) -> dict[str, str]:
        given = self.document["services"][service].get("environment", {})
        variables = {name: self.mapped(service, value) for name, value in given.items()}
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.home), **variables}


@pytest.fixture
def composed(tmp_path: Path, rabbitmq_url: str, postgres_url: str, s3_url: str) -> Iterator[Composed]:
    """The App of the golden files on servers of the kit."""
    shutil.copy(APP, tmp_path / "deploy_app.py")
    urls = {"queues_url": rabbitmq_url, "jobs_url": postgres_url, "ledger_url": postgres_url, "blobs_url": s3_url}
    ports = {name.removesuffix("_url"): Url(url) for name, url in urls.items()}
    settings = Settings(name="acme", grace_s=10.0, **ports)  # type: ignore[arg-type]
    text = compose.render(plan(settings, routes={}))["compose.yaml"]
    assert not any(url in text for url in urls.values())
    found = Composed(tmp_path, yaml.safe_load(text), urls)
    yield found
    found.end()


async def _eventually(condition: Callable[[], bool], what: str) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < ends_at, f"not within {WAIT_S:g} s: {what}"
        await asyncio.sleep(0.1)


@pytest.mark.req("CORE-08.1", "CORE-08.2", "MESH-18")
async def test_the_services_of_the_file_do_the_work_and_stop_when_told(composed: Composed) -> None:
    migration = composed.start("migration")
    assert await asyncio.to_thread(migration.wait, WAIT_S) == 0, composed.log("migration")
    services = [name for name in composed.document["services"] if name not in ("migration", "proxy")]
    for service in services:
        composed.start(service)
    for service in services:
        await _eventually(lambda: composed.healthy(service), f"{service} is healthy")  # noqa: B023
    key = await asyncio.to_thread(composed.run, "gateway-1", FIRST_KEY)
    for gateway in composed.gateway_ports:
        await _serves(composed, gateway, key.strip())
    for service in sorted(services, key=lambda name: name.endswith("-runtime")):  # as Compose does: who depends, first
        composed.processes[service].send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(composed.processes[service].wait, WAIT_S) == 0, composed.log(service)


async def _serves(composed: Composed, gateway: str, key: str) -> None:
    base = f"http://127.0.0.1:{composed.gateway_ports[gateway]}"
    async with httpx2.AsyncClient(base_url=base, timeout=WAIT_S) as http:
        body = {"tool": "sums", "arguments": {"values": [1, 2, 3]}}
        assert (await http.post("/v1/jobs", json=body)).status_code == 401
        http.headers["Authorization"] = f"Bearer {key}"
        answer = await http.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        job = await _ended(http, answer.json()["job_id"])
        assert (job["state"], job["result"]) == ("succeeded", 6), job
        depth = await http.get(f"http://127.0.0.1:{composed.ports[gateway]}/depth/split")
        assert depth.json()["depth"] == 0


async def _ended(http: httpx2.AsyncClient, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = {}
    ends_at = time.monotonic() + WAIT_S
    while job.get("state") not in ("succeeded", "failed", "cancelled", "timed_out"):
        assert time.monotonic() < ends_at, msgspec.json.encode(job)
        job = (await http.get(f"/v1/jobs/{job_id}")).json()
        await asyncio.sleep(0.05)
    return job
