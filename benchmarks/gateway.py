"""The gateway: durable accepts over REST, and a trivial tool over MCP beside the bare SDK with no durability at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from mcp import Client as MCPClient

from benchmarks.plane import family, resident_mib
from benchmarks.report import Row, percentile

SECTION = "Gateway (SQLite, `groundplane dev` with two actors)"
ONE_BY_ONE, AT_ONCE = "POST /v1/jobs, one by one, p50", "POST /v1/jobs, 32 connections"
UNDER_LOAD = "POST /v1/jobs at 80 % of that rate, p99"
STREAMED_JOBS, TICKS, TICK_EVERY_S = 20, 60, 0.5
APP = """
import asyncio
from groundplane import App, Context
app = App("bench")

@app.actor
async def echo(value: int) -> int:
    return value

@app.actor(concurrency=64)
async def tick(times: int, every_s: float, ctx: Context) -> None:
    for number in range(times):
        ctx.progress(100 * number / times, f"tick {number}")
        await asyncio.sleep(every_s)

app.tool("echo", route=[echo])
app.tool("tick", route=[tick])
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
FASTMCP = """
import socket, uvicorn
from fastmcp import FastMCP
mcp = FastMCP("bench")

@mcp.tool
async def echo(value: int) -> int:
    return value

listener = socket.socket(proto=socket.IPPROTO_TCP)
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
config = uvicorn.Config(mcp.http_app(), log_level="warning")
uvicorn.Server(config).run(sockets=[listener])
"""


class Streams(NamedTuple):
    """What became of many streams: how many got every event, KiB for each, events a second to all."""

    whole: float
    kib: float
    events_s: float


def rows(rounds: int, scale: float) -> list[Row]:
    """Accepts, and tools/call beside the bare SDK."""
    return asyncio.run(_rows(rounds, scale))


async def _rows(rounds: int, scale: float) -> list[Row]:
    ours: list[float] = []
    bare: list[float] = []
    fast: list[float] = []
    accepts: list[float] = []
    rates: list[float] = []
    loaded: list[float] = []
    async with dev() as (url, gateway), _served(BARE) as bare_url, _served(FASTMCP) as fast_url:
        for _ in range(rounds):
            bare.append(await _tool_calls(bare_url, int(200 * scale)))
            fast.append(await _tool_calls(fast_url, int(200 * scale)))
            ours.append(await _tool_calls(url, int(200 * scale)))
            accepts.append(await accepts_one_by_one(url, int(200 * scale)))
            await at_rest(url)
            rates.append(await accepts_at_once(url, int(2000 * scale)))
            await at_rest(url)
            loaded.append(await latency_at(url, 0.8 * rates[-1], 10 * scale))
            await at_rest(url)
        streams = await _streams(url, int(2000 * scale), gateway)
    over = [mine - its for mine, its in zip(ours, bare, strict=True)]
    return [
        _row("Groundplane, durable job", "tools/call p50", "ms", ours, better="lower"),
        _row("bare MCP SDK, nothing durable", "tools/call p50", "ms", bare, better="lower", peer=True),
        _row("FastMCP, nothing durable", "tools/call p50", "ms", fast, better="lower", peer=True),
        _row("Groundplane", "tools/call p50 over the bare SDK", "ms", over, better="lower", bar=3.0),
        _row("Groundplane", ONE_BY_ONE, "ms", accepts, better="lower", bar=5.0),
        _row("Groundplane", AT_ONCE, "/s", rates, bar=1000.0),
        _row("Groundplane", UNDER_LOAD, "ms", loaded, better="lower"),
        _row("Groundplane", "live streams at once, each with every event", "", [streams.whole], bar=2000.0),
        _row("Groundplane", "events a second to them", "/s", [streams.events_s]),
        _row("Groundplane", "memory for one such stream", "KiB", [streams.kib], better="lower"),
    ]


def _child_with(word: str, parent: int) -> int:
    """The pid of the only process of that family with `word` in its command line."""
    (found,) = (pid for pid in family(parent) if word in Path(f"/proc/{pid}/cmdline").read_text())
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
    host, port = url.removeprefix("http://").split(":")
    request = _accept_request(host, port)

    async def worker(share: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(share):
            await _exchange(reader, writer, request)
        writer.close()
        await writer.wait_closed()

    begin = time.perf_counter()
    await asyncio.gather(*(worker(count // connections) for _ in range(connections)))
    return count // connections * connections / (time.perf_counter() - begin)


async def _streams(url: str, count: int, gateway: int) -> Streams:
    """`count` streams on jobs that go on telling: open at once, and read to their ends."""
    host, port = url.removeprefix("http://").split(":")
    before = resident_mib(gateway)
    jobs = [await _start_ticks(url) for _ in range(STREAMED_JOBS)]
    begin = time.perf_counter()
    readers = []
    for number in range(count):
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        path = f"/v1/jobs/{jobs[number % len(jobs)]}/events"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        readers.append((reader, writer))
    heads = [await reader.readuntil(b"event: status") for reader, _ in readers]
    assert all(head.startswith(b"HTTP/1.1 200") for head in heads)
    each = (resident_mib(gateway) - before) * 1024 / count
    told = await asyncio.gather(*(_read_to_the_end(reader) for reader, _ in readers))
    spent = time.perf_counter() - begin
    for _, writer in readers:
        writer.close()
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        answers = [await client.get(f"/v1/jobs/{job}/events") for job in jobs]
    wanted = [_ids(answer.content) for answer in answers]
    whole = sum(ids == wanted[number % len(jobs)] for number, ids in enumerate(told))
    return Streams(float(whole), each, sum(map(len, told)) / spent)


async def _start_ticks(url: str) -> str:
    arguments = {"times": TICKS, "every_s": TICK_EVERY_S}
    async with httpx2.AsyncClient(base_url=url) as client:
        job = (await client.post("/v1/jobs", json={"tool": "tick", "arguments": arguments})).json()
    return str(job["job_id"])


async def _read_to_the_end(reader: asyncio.StreamReader) -> list[int]:
    async with asyncio.timeout(300):
        return _ids(await reader.readuntil(b"\r\n0\r\n\r\n"))


def _ids(stream: bytes) -> list[int]:
    """The ids of the updates."""
    return [int(found) for found in re.findall(rb"id: (\d+)\nevent: update", stream)]


async def latency_at(url: str, rate: float, seconds: float, connections: int = 64) -> float:
    """The p99 in ms of accepts that come at a steady rate, whether those before were answered or not. The time is from
    when the request was due: a request that waits for a free connection waits for the gateway.
    """
    host, port = url.removeprefix("http://").split(":")
    request = _accept_request(host, port)
    begin = time.perf_counter() + 0.1
    numbers = iter(range(int(rate * seconds)))
    spent: list[float] = []

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for number in numbers:
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await _exchange(reader, writer, request)
            spent.append((time.perf_counter() - due) * 1000)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(worker() for _ in range(connections)))
    return percentile(spent, 0.99)


def _accept_request(host: str, port: str) -> bytes:
    body = json.dumps({"tool": "echo", "arguments": {"value": 1}}).encode()
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(request)
    headers = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert headers.startswith(b"http/1.1 202"), headers
    length = int(headers.split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)


@contextlib.asynccontextmanager
async def dev(*, app: str = APP, **settings: str) -> AsyncIterator[tuple[str, int]]:
    """A plane of an app: the URL, and the pid of the gateway. Settings are those of `GROUNDPLANE_*`."""
    with tempfile.TemporaryDirectory(prefix="groundplane-bench-") as folder:
        (Path(folder) / "app.py").write_text(app)
        argv = ["-m", "groundplane.cli", "dev", "app:app", "--port", "0", "--state", f"{folder}/state", "--json"]
        environment = {f"GROUNDPLANE_{name.upper()}": value for name, value in settings.items()}
        environment["GROUNDPLANE_LOG_LEVEL"] = "WARNING"
        async with process(argv, folder, environment) as (line, pid):
            yield json.loads(line)["url"], _child_with("gateway_process", pid)


@contextlib.asynccontextmanager
async def _served(program: str) -> AsyncIterator[str]:
    async with process(["-c", program], None, {}) as (line, _):
        yield f"http://127.0.0.1:{int(line)}"


@contextlib.asynccontextmanager
async def process(argv: list[str], folder: str | None, environment: dict[str, str]) -> AsyncIterator[tuple[bytes, int]]:
    """A Python process while the block lasts: the first line that it prints, and its pid."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, *argv, cwd=folder, stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = await child.stdout.readline()
        yield line, child.pid
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        await child.wait()
