"""MCP tasks (SEP-2663) beside FastMCP's, in memory and on Redis: one client, the same requests, the same polling.

The handlers say when they began on the monotonic clock, which all processes of a machine share. FastMCP in memory keeps
nothing; on Redis (append-only file, one sync a second, its default of durability) and here what was accepted survives
the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2

from benchmarks.gateway import dev, process
from benchmarks.report import Row
from groundplane.testing.servers.instance import Instance

SECTION = "MCP tasks (SEP-2663) beside FastMCP"
REVISION = "2026-07-28"
TASKS = "io.modelcontextprotocol/tasks"
POLL_S = 0.005
"""How often the client looks for the outcome: at each server alike, far below what they advise."""
AT_ONCE = 16
APP = """
import time
from groundplane import App
app = App("bench")

@app.actor
async def began(value: int) -> int:
    return time.monotonic_ns()

app.tool("began", route=[began], task_after=0)  # a handle at once, as the others give one
"""
FASTMCP = """
import socket, sys, time, uvicorn
from fastmcp import FastMCP
from fastmcp_tasks import TasksExtension
mcp = FastMCP("bench")
mcp.add_extension(TasksExtension(url=sys.argv[1], name="bench"))

@mcp.tool(task=True)
async def began(value: int) -> int:
    return time.monotonic_ns()

listener = socket.socket(proto=socket.IPPROTO_TCP)
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
config = uvicorn.Config(mcp.http_app(), log_level="warning")
uvicorn.Server(config).run(sockets=[listener])
"""


class Times:
    """What was measured of one server, in ms; one value for each round."""

    def __init__(self) -> None:
        self.handle: list[float] = []
        self.pickup: list[float] = []
        self.done: list[float] = []
        self.rate: list[float] = []
        self.call: list[float] = []


def rows(rounds: int, scale: float) -> list[Row]:
    """Handle, pickup, completion one by one, and tasks a second; a synchronous call of the same tool."""
    return asyncio.run(_rows(rounds, scale))


async def _rows(rounds: int, scale: float) -> list[Row]:
    with Instance.open("redis") as redis:
        async with dev(app=APP) as (ours, _), _fastmcp("memory://") as memory, _fastmcp(redis.url) as durable:
            urls = {"Groundplane": ours, "FastMCP, memory": memory, "FastMCP, Redis": durable}
            times = {name: Times() for name in urls}
            for _ in range(rounds):
                for name, url in urls.items():  # in turn, so that a noisy minute is everybody's
                    await _round(url, times[name], scale)
    return [row for name, one in times.items() for row in _rows_of(name, one)]


async def _round(url: str, times: Times, scale: float) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
        handles, pickups, dones, calls = [], [], [], []
        for _ in range(max(5, int(60 * scale))):
            handle, pickup, done = await _one_task(http)
            handles.append(handle)
            pickups.append(pickup)
            dones.append(done)
            begin = time.perf_counter()
            await _ask(http, "tools/call", {"name": "began", "arguments": {"value": 1}})
            calls.append((time.perf_counter() - begin) * 1000)
        count = max(AT_ONCE, int(320 * scale))
        begin = time.perf_counter()
        await _many(lambda: _one_task(http), count)
        times.rate.append(count / (time.perf_counter() - begin))
    for kept, found in ((times.handle, handles), (times.pickup, pickups), (times.done, dones), (times.call, calls)):
        kept.append(statistics.median(found))


async def _many(work: Callable[[], Awaitable[Any]], count: int) -> None:
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await work()

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def _one_task(http: httpx2.AsyncClient) -> tuple[float, float, float]:
    """Milliseconds from the request to its handle, to the handler, and to the outcome in the client's hands."""
    begin = time.monotonic_ns()
    task = await _ask(http, "tools/call", {"name": "began", "arguments": {"value": 1}}, tasks=True)
    assert task["resultType"] == "task", task
    handle = time.monotonic_ns()
    while True:
        found = await _ask(http, "tasks/get", {"taskId": task["taskId"]}, tasks=True, name=task["taskId"])
        if found["status"] == "completed":
            break
        assert found["status"] == "working", found
        await asyncio.sleep(POLL_S)
    done = time.monotonic_ns()
    started = int(found["result"]["structuredContent"]["result"])
    return (handle - begin) / 1e6, (started - begin) / 1e6, (done - begin) / 1e6


async def _ask(
    http: httpx2.AsyncClient, method: str, params: dict[str, Any], *, tasks: bool = False, name: str = ""
) -> dict[str, Any]:
    """The result of one request of the newer revision."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": REVISION,
        "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {TASKS: {}}} if tasks else {},
    }
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": REVISION,
        "Mcp-Method": method,
        "Mcp-Name": name or str(params.get("name", "")),
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    response = await http.post("/mcp", json=body, headers=headers)
    assert response.status_code == 200, response.text
    text = response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        text = [line for line in text.splitlines() if line.startswith("data:")][-1].removeprefix("data:")
    answer = json.loads(text)
    assert "result" in answer, answer
    result: dict[str, Any] = answer["result"]
    return result


def _rows_of(name: str, times: Times) -> list[Row]:
    ours = name == "Groundplane"
    measured: list[tuple[str, str, list[float], dict[str, Any]]] = [
        ("tools/call to the durable handle, p50", "ms", times.handle, {"better": "lower"}),
        ("tools/call to the handler (pickup), p50", "ms", times.pickup, {"better": "lower"}),
        ("tools/call to the outcome, p50", "ms", times.done, {"better": "lower"}),
        (f"tasks from call to outcome, {AT_ONCE} at once", "/s", times.rate, {}),
        ("tools/call without a task, p50", "ms", times.call, {"better": "lower"}),
    ]
    if ours:
        measured[1][3]["bar"] = 250.0
    return [
        Row(
            section=SECTION, subject=name, metric=metric, unit=unit, value=statistics.median(values), rounds=values,
            peer=not ours, **more,
        )
        for metric, unit, values, more in measured
    ]  # fmt: skip


@contextlib.asynccontextmanager
async def _fastmcp(url: str) -> AsyncIterator[str]:
    async with process(["-c", FASTMCP, url], None, {}) as (line, _):
        yield f"http://127.0.0.1:{int(line)}"
