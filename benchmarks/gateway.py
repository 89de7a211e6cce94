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

from benchmarks.plane import family, resident_mib
from benchmarks.report import Row

SECTION = "Gateway (SQLite, `groundplane dev` with two actors)"
ONE_BY_ONE, AT_ONCE = "POST /v1/jobs, one by one, p50", "POST /v1/jobs, 32 connections"
APP = """
import asyncio
from groundplane import App
app = App("bench")

@app.actor
async def echo(value: int) -> int:
    return value

@app.actor
async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)

app.tool("echo", route=[echo])
app.tool("wait", route=[wait], timeout=7200)
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
listener.listen()
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
    async with dev() as (url, gateway), _bare() as bare_url:
        for _ in range(rounds):
            bare.append(await _tool_calls(bare_url, int(200 * scale)))
            ours.append(await _tool_calls(url, int(200 * scale)))
            accepts.append(await accepts_one_by_one(url, int(200 * scale)))
            await at_rest(url)
            rates.append(await accepts_at_once(url, int(2000 * scale)))
            await at_rest(url)
        streams, stream_kib = await _streams(url, int(2000 * scale), gateway)
    over = [mine - its for mine, its in zip(ours, bare, strict=True)]
    return [
        _row("Groundplane, durable job", "tools/call p50", "ms", ours, better="lower"),
        _row("bare MCP SDK, nothing durable", "tools/call p50", "ms", bare, better="lower", peer=True),
        _row("Groundplane", "tools/call p50 over the bare SDK", "ms", over, better="lower", bar=3.0),
        _row("Groundplane", ONE_BY_ONE, "ms", accepts, better="lower", bar=5.0),
        _row("Groundplane", AT_ONCE, "/s", rates, bar=1000.0),
        _row("Groundplane", "streams of events open at once, each with all events", "", [streams], bar=2000.0),
        _row("Groundplane", "memory for one such stream", "KiB", [stream_kib], better="lower"),
    ]


def _child_with(word: str) -> int:
    """The pid of the only process of this family with `word` in its command line."""
    (found,) = (pid for pid in family(os.getpid()) if word in Path(f"/proc/{pid}/cmdline").read_text())
    return found


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


async def accepts_one_by_one(url: str, count: int) -> float:
    """The p50 of `count` accepts, one after another, in ms."""
    spent = []
    async with httpx2.AsyncClient(base_url=url) as client:
        for number in range(count):
            begin = time.perf_counter()
            response = await client.post("/v1/jobs", json={"tool": "echo", "arguments": {"value": number}})
            spent.append((time.perf_counter() - begin) * 1000)
            assert response.status_code == 202, response.text
    return statistics.median(spent)


async def at_rest(url: str) -> None:
    """Wait until every job has ended: what was accepted before must not run during what is measured next."""
    async with httpx2.AsyncClient(base_url=url) as client:
        for state in ("pending", "running"):
            while (await client.get("/v1/jobs", params={"state": state, "limit": 1})).json()["jobs"]:  # noqa: ASYNC110 - over HTTP there is nothing else to wait for
                await asyncio.sleep(0.1)


async def accepts_at_once(url: str, count: int, connections: int = 32) -> float:
    """Accepts a second. Raw connections that keep alive: the client must not be what is measured."""
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


async def _streams(url: str, count: int, gateway: int) -> tuple[float, float]:
    """How many of `count` streams on one job were open at once and got every event to the last, and KiB for each."""
    host, port = url.removeprefix("http://").split(":")
    before = resident_mib(gateway)
    async with httpx2.AsyncClient(base_url=url) as client:
        job = (await client.post("/v1/jobs", json={"tool": "wait", "arguments": {"seconds": 3600}})).json()
        path = f"/v1/jobs/{job['job_id']}/events"
        request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
        open_ = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"event: status")
            open_.append((reader, writer))
        each = (resident_mib(gateway) - before) * 1024 / count
        await client.post(f"/v1/jobs/{job['job_id']}/cancel")

        async def ended(reader: asyncio.StreamReader) -> bool:
            return b'"state":"cancelled"' in await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 60)

        whole = await asyncio.gather(*(ended(reader) for reader, _ in open_))
    for _, writer in open_:
        writer.close()
    return float(sum(whole)), each


@contextlib.asynccontextmanager
async def dev(**settings: str) -> AsyncIterator[tuple[str, int]]:
    """A plane of the two actors: the URL, and the pid of the gateway. Settings are those of `GROUNDPLANE_*`."""
    with tempfile.TemporaryDirectory(prefix="groundplane-bench-") as folder:
        (Path(folder) / "app.py").write_text(APP)
        argv = ["-m", "groundplane.cli", "dev", "app:app", "--port", "0", "--state", f"{folder}/state", "--json"]
        environment = {f"GROUNDPLANE_{name.upper()}": value for name, value in settings.items()}
        environment["GROUNDPLANE_LOG_LEVEL"] = "WARNING"
        async with process(argv, folder, environment) as line:
            yield json.loads(line)["url"], _child_with("gateway_process")


@contextlib.asynccontextmanager
async def _bare() -> AsyncIterator[str]:
    async with process(["-c", BARE], None, {}) as line:
        yield f"http://127.0.0.1:{int(line)}"


@contextlib.asynccontextmanager
async def process(argv: list[str], folder: str | None, environment: dict[str, str]) -> AsyncIterator[bytes]:
    """A Python process while the block lasts: the first line that it prints."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, *argv, cwd=folder, stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = await child.stdout.readline()
        yield line
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        await child.wait()
