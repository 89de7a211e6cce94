"""The role services on a NATS that is not there when it starts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from groundplane.testing import eventually, unique
from groundplane.testing.servers.contract import Running

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

APP = """
from groundplane import App

app = App("desk")
feed = app.single_active("desk")

@app.rpc("desk.lead")
@feed
async def lead() -> int:
    return feed.fence().term
"""


async def started(folder: Path, url: str, name: str) -> asyncio.subprocess.Process:
    own = {key: value for key, value in os.environ.items() if not key.startswith("GROUNDPLANE_")}
    given = {"GROUNDPLANE_KV_URL": url, "GROUNDPLANE_BUS_URL": url, "GROUNDPLANE_LOG_FORMAT": "json"}
    words = ("run", "app:app", "--role", "services", "--state", str(folder / name), "--name", name, "--json")
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "groundplane.cli", *words, env={**own, **given}, cwd=folder,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def waiting(process: asyncio.subprocess.Process) -> int:
    """Its admin port, once it says that it waits for a server."""
    assert process.stderr is not None
    async with asyncio.timeout(60):
        async for line in process.stderr:
            if b'"waits_for_a_server"' in line:
                return int(json.loads(line[line.index(b"{") :])["admin_port"])
    raise AssertionError("it ended before it waited")


async def ended(process: asyncio.subprocess.Process) -> int | None:
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        await process.communicate()
    return process.returncode


@pytest.mark.req("SVC-06", "SVC-02.2")
async def test_it_waits_for_its_server_says_why_and_serves_when_that_comes(
    own_server: Callable[[str], Running], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    server = own_server("nats")
    await asyncio.to_thread(server.kill)
    url = f"{server.url}?request_timeout=2&reconnect_wait_max=0.2"
    processes = [await started(tmp_path, url, unique("role")) for _ in range(2)]
    try:
        ports = [await waiting(process) for process in processes]
        async with httpx2.AsyncClient() as http:
            for port in ports:
                answer = await http.get(f"http://127.0.0.1:{port}/readyz")
                assert answer.status_code == 503
                assert "waits for the bus: nats" in answer.text
            assert await ended(processes[1]) == 0
            await asyncio.to_thread(server.start)
            stdout = processes[0].stdout
            assert stdout is not None
            async with asyncio.timeout(60):
                assert b'"ready"' in await stdout.readline()

            async def is_ready() -> bool:
                return (await http.get(f"http://127.0.0.1:{ports[0]}/readyz")).status_code == 200

            await eventually(is_ready, timeout_s=30)
        assert await ended(processes[0]) == 0
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
