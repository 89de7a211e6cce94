"""The gateway: durable accepts over REST, and a trivial tool over MCP beside the bare SDK with no durability at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client as MCPClient

from benchmarks.report import Row

SECTION = "Gateway (SQLite, `groundplane dev` with one actor)"
APP = """
from groundplane import App
app = App("bench")

@app.actor
async def echo(value: int) -> int:
    return value

app.tool("echo", route=[echo])
"""
BARE = """
import socket, sys, uvicorn
from mcp.server.lowlevel import Server
from mcp import types

async def list_tools(ctx, params):
    schema = {"type": "object", "properties": {"value": {"type": "integer"}}}
    return types.ListToolsResult(tools=[types.Tool(name="echo", input_schema=schema)])

async def call_tool(ctx, params):
    return types.CallToolResult(content=[types.TextContent(type="text", text=str(params.arguments["value"]))])

server = Server("bare", on_list_tools=list_tools, on_call_tool=call_tool)
listener = socket.socket(proto=socket.IPPROTO_TCP)  # asyncio turns Nagle off for sockets that say so
listener.bind(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
config = uvicorn.Config(server.streamable_http_app(), log_level="warning")
uvicorn.Server(config).run(sockets=[listener])
"""


def rows(rounds: int, scale: float) -> list[Row]:
    """Accepts, and tools/call beside the bare SDK."""
    return asyncio.run(_rows(rounds, scale))


async def _rows(rounds: int, scale: float) -> list[Row]:
    ours: list[float] = []
    bare: list[float] = []
    accepts: list[float] = []
    rates: list[float] = []
    async with _dev() as url, _bare() as bare_url:
        for _ in range(rounds):
            bare.append(await _tool_calls(bare_url, int(200 * scale)))
            ours.append(await _tool_calls(url, int(200 * scale)))
            accepts.append(await _accepts_one_by_one(url, int(200 * scale)))
            rates.append(await _accepts_at_once(url, int(2000 * scale)))
    over = [mine - its for mine, its in zip(ours, bare, strict=True)]
    return [
        _row("Groundplane, durable job", "tools/call p50", "ms", ours, better="lower"),
        _row("bare MCP SDK, nothing durable", "tools/call p50", "ms", bare, better="lower", peer=True),
        _row("Groundplane", "tools/call p50 over the bare SDK", "ms", over, better="lower", bar=3.0),
        _row("Groundplane", "POST /v1/jobs, one by one, p50", "ms", accepts, better="lower", bar=5.0),
        _row("Groundplane", "POST /v1/jobs, 32 connections", "/s", rates, bar=1000.0),
    ]


def _row(subject: str, metric: str, unit: str, values: list[float], **more: Any) -> Row:
    value = statistics.median(values)
    return Row(section=SECTION, subject=subject, metric=metric, unit=unit, value=value, rounds=values, **more)


async def _tool_calls(url: str, count: int) -> float:
    spent = []
    async with MCPClient(f"{url}/mcp") as client:
        await client.call_tool("echo", {"value": 1})
        for number in range(count):
            begin = time.perf_counter()
            result = await client.call_tool("echo", {"value": number})
            spent.append((time.perf_counter() - begin) * 1000)
            assert not result.is_error, result
    return statistics.median(spent)


async def _accepts_one_by_one(url: str, count: int) -> float:
    spent = []
    async with httpx2.AsyncClient(base_url=url) as client:
        for number in range(count):
            begin = time.perf_counter()
            response = await client.post("/v1/jobs", json={"tool": "echo", "arguments": {"value": number}})
            spent.append((time.perf_counter() - begin) * 1000)
            assert response.status_code == 202, response.text
    return statistics.median(spent)


async def _accepts_at_once(url: str, count: int, connections: int = 32) -> float:
    """Raw connections that keep alive: the client must not be what is measured."""
    body = json.dumps({"tool": "echo", "arguments": {"value": 1}}).encode()
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def worker(share: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(share):
            writer.write(request)
            headers = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert headers.startswith(b"http/1.1 202"), headers
            length = int(headers.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()
        await writer.wait_closed()

    begin = time.perf_counter()
    await asyncio.gather(*(worker(count // connections) for _ in range(connections)))
    return count // connections * connections / (time.perf_counter() - begin)


@contextlib.asynccontextmanager
async def _dev() -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory(prefix="groundplane-bench-") as folder:
        (Path(folder) / "app.py").write_text(APP)
        argv = ["-m", "groundplane.cli", "dev", "app:app", "--port", "0", "--state", f"{folder}/state", "--json"]
        environment = {"GROUNDPLANE_LOG_LEVEL": "WARNING"}
        async with _process(argv, folder, environment) as line:
            yield json.loads(line)["url"]


@contextlib.asynccontextmanager
async def _bare() -> AsyncIterator[str]:
    async with _process(["-c", BARE], None, {}) as line:
        yield f"http://127.0.0.1:{int(line)}"


@contextlib.asynccontextmanager
async def _process(argv: list[str], folder: str | None, environment: dict[str, str]) -> AsyncIterator[bytes]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, cwd=folder, stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        yield line
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
