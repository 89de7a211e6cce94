"""The proxy that a Compose file puts before its gateways: real nginx with the rendered configuration."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from groundplane.deploy.proxy import BODY_MAX, nginx_conf
from groundplane.gateway import GatewaySettings
from integration.server_lab import free_ports
from replicas import block
from served_gateway import Gate, House, actors, echo, eventually, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

TOOLS = (tool("echo"), tool("slow", "gate"))


def _begin(folder: Path, upstreams: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """nginx with the rendered configuration on a free port. A named skip where it is missing."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is missing; `groundplane servers install nginx` brings it")
    folder.mkdir()
    (port,) = free_ports(1)
    text = nginx_conf(upstreams, listen=f"127.0.0.1:{port}", scratch=str(folder), resolver=None)
    user = "user root;\n" if os.geteuid() == 0 else ""  # in its container it is not root, and writes to /tmp
    (folder / "nginx.conf").write_text(user + text)
    command = [program, "-c", str(folder / "nginx.conf"), "-g", "daemon off;", "-e", "stderr"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log), port


@asynccontextmanager
async def _proxy(folder: Path, *gateways: House) -> AsyncIterator[str]:
    """nginx before the gateways; its URL."""
    process, port = _begin(folder, [f"127.0.0.1:{one.served.port}" for one in gateways])

    async def answers() -> bool:
        assert process.poll() is None, f"nginx ended: {(folder / 'log').read_text()}"
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        return False

    try:
        await eventually(answers, 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[House, House]]:
    """Two gateways with keys, as the file has them."""
    settings = {"auth": "keys", "rate": "none", "live_jobs": "none", "allowed_hosts": ("gateway.example.com",)}
    async with (
        house(tmp_path / "state", *TOOLS, **settings) as one,
        house(tmp_path / "state", *TOOLS, upgrade=False, **settings) as other,
    ):
        yield one, other


async def _bearer(one: House) -> dict[str, str]:
    made = await one.security.create_key("admin", ["admin", "tools:*"])
    return {"Authorization": f"Bearer {made.secret.reveal()}"}


async def test_nobody_passes_without_a_key(tmp_path: Path, pair: tuple[House, House]) -> None:
    async with _proxy(tmp_path / "nginx", *pair) as url, httpx2.AsyncClient(base_url=url, timeout=30) as http:
        wrong = {"Authorization": f"Bearer gp_{'a' * 16}_{'b' * 43}"}
        for path in ("/v1/jobs", "/mcp", "/v1/audit"):
            assert (await http.get(path)).status_code == 401, path
            assert (await http.get(path, headers=wrong)).status_code == 401, path
        assert (await http.get("/v1/jobs", headers=await _bearer(pair[0]))).status_code == 200


async def test_a_page_of_another_site_is_refused_and_the_name_of_the_host_is_passed(
    tmp_path: Path, pair: tuple[House, House]
) -> None:
    async with _proxy(tmp_path / "nginx", *pair) as url:
        async with httpx2.AsyncClient(base_url=url, headers=await _bearer(pair[0]), timeout=30) as http:
            started = {"tool": "echo", "arguments": {}}
            foreign = {"Origin": "https://evil.example"}
            assert (await http.post("/v1/jobs", json=started, headers=foreign)).status_code == 403
            own = {"Origin": "https://gateway.example.com", "Host": "gateway.example.com"}
            assert (await http.post("/v1/jobs", json=started, headers=own)).status_code == 202
            assert (await http.get("/v1/jobs", headers={"Host": "other.example.com"})).status_code == 421


async def test_a_stream_comes_through_while_it_is_written(tmp_path: Path, pair: tuple[House, House]) -> None:
    gate = Gate()
    async with (
        actors(pair[0], {"gate": gate}),
        _proxy(tmp_path / "nginx", *pair) as url,
        httpx2.AsyncClient(base_url=url, headers=await _bearer(pair[0]), timeout=30) as http,
    ):
        job = (await http.post("/v1/jobs", json={"tool": "slow", "arguments": {}})).json()
        async with http.stream("GET", f"/v1/jobs/{job['job_id']}/events") as events:
            lines = events.aiter_lines()
            async for line in lines:
                if "waiting" in line:
                    break
            assert not gate.opened.is_set(), "told while the job runs"
            gate.opened.set()
            rest = [line async for line in lines]
        assert any("succeeded" in line for line in rest)


@pytest.mark.req("GATE-11")
async def test_no_request_fails_while_a_gateway_stops_and_after_it(tmp_path: Path, pair: tuple[House, House]) -> None:
    one, other = pair
    codes: list[int] = []

    async def ask(http: httpx2.AsyncClient, enough: asyncio.Event) -> None:
        while not enough.is_set():
            made = await http.post("/v1/jobs", json={"tool": "echo", "arguments": {}})
            codes.append(made.status_code)
            codes.append((await http.get("/v1/jobs", params={"limit": 1})).status_code)

    async def counted(number: int) -> bool:
        return len(codes) >= number

    async with (
        actors(other, {"echo": echo}),
        _proxy(tmp_path / "nginx", one, other) as url,
        httpx2.AsyncClient(base_url=url, headers=await _bearer(one), timeout=60) as http,
        asyncio.TaskGroup() as group,
    ):
        enough = asyncio.Event()
        for _ in range(4):
            group.create_task(ask(http, enough))
        await eventually(lambda: counted(40), 30)
        one.stop.set()
        await one.serving
        after = len(codes)
        await eventually(lambda: counted(after + 40), 30)
        enough.set()
    assert set(codes) == {202, 200}


def test_the_directives_are_those_of_the_page_that_the_tests_of_restarts_run_with() -> None:
    """But for the gateways' addresses, their names being looked up again, and the port."""

    def directives(text: str) -> set[str]:
        found = {re.sub(r"\s+", " ", line.strip()) for line in text.splitlines()}
        return {line for line in found if line and not line.startswith(("server ", "listen "))}

    assert directives(block("nginx")) <= directives(nginx_conf(["gateway-1:8080"], resolver=None))
    assert "server gateway-1:8080 resolve max_fails=0;" in nginx_conf(["gateway-1:8080"])


def test_a_body_of_the_gateways_limit_fits_through_the_proxy() -> None:
    assert f"{GatewaySettings().body_bytes_max // 1024**2}m" == BODY_MAX
