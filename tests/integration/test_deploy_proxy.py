"""The proxy that the manifests put before a gateway: real nginx with the rendered configuration."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from groundplane.deploy.proxy import BODY_MAX, nginx_conf
from served_gateway import Gate, House, actors, echo, eventually, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

USER = ("acme", "open sesame")


def _begin(folder: Path, upstream: str) -> tuple[subprocess.Popen[bytes], int]:
    """nginx with the rendered configuration on a free port. A named skip where it is missing."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is missing; `groundplane servers install nginx` brings it")
    folder.mkdir()
    passwords = folder / "htpasswd"
    passwords.write_text(f"{USER[0]}:{{PLAIN}}{USER[1]}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listen = f"127.0.0.1:{port}"
    text = nginx_conf(listen=listen, upstream=upstream, passwords=str(passwords), scratch=str(folder))
    user = "user root;\n" if os.geteuid() == 0 else ""  # in its container it is not root, and writes to /tmp
    (folder / "nginx.conf").write_text(user + text)
    command = [program, "-c", str(folder / "nginx.conf"), "-g", "daemon off;", "-e", "stderr"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log), port


@asynccontextmanager
async def _proxy(folder: Path, one: House) -> AsyncIterator[str]:
    """nginx before the gateway; its URL."""
    process, port = _begin(folder, f"127.0.0.1:{one.served.port}")

    async def answers() -> bool:
        assert process.poll() is None, f"nginx ended; see {folder / 'log'}"
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        return False

    try:
        await eventually(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)


async def test_nobody_passes_without_a_password(tmp_path: Path) -> None:
    async with house(tmp_path / "state", tool("echo")) as one, _proxy(tmp_path / "nginx", one) as url:
        async with httpx2.AsyncClient(base_url=url) as http:
            for path in ("/v1/jobs", "/mcp", "/livez", "/openapi.json"):
                assert (await http.get(path)).status_code == 401, path
                assert (await http.get(path, auth=("acme", "wrong"))).status_code == 401, path
            assert (await http.get("/v1/jobs", auth=USER)).status_code == 200


async def test_a_page_of_another_site_is_refused_though_the_browser_knows_the_password(tmp_path: Path) -> None:
    async with (
        house(tmp_path / "state", tool("echo"), allowed_hosts=("gateway.example.com",)) as one,
        _proxy(tmp_path / "nginx", one) as url,
        httpx2.AsyncClient(base_url=url, auth=USER) as http,
    ):
        started = {"tool": "echo", "arguments": {}}
        foreign = {"Origin": "https://evil.example"}
        assert (await http.post("/v1/jobs", json=started, headers=foreign)).status_code == 403
        own = {"Origin": "https://gateway.example.com", "Host": "gateway.example.com"}
        assert (await http.post("/v1/jobs", json=started, headers=own)).status_code == 202


async def test_a_stream_comes_through_while_it_is_written(tmp_path: Path) -> None:
    gate = Gate()
    async with (
        house(tmp_path / "state", tool("slow", "gate"), tool("echo")) as one,
        actors(one, {"gate": gate, "echo": echo}),
        _proxy(tmp_path / "nginx", one) as url,
        httpx2.AsyncClient(base_url=url, auth=USER, timeout=10) as http,
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


async def test_a_body_of_the_gateways_limit_fits_through_the_proxy() -> None:
    from groundplane.gateway import GatewaySettings

    assert f"{GatewaySettings().body_bytes_max // 1024**2}m" == BODY_MAX
