"""Mutated JSON-RPC against `/mcp`: no fault, nothing told, nothing left behind, and the gateway goes on serving."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from mcp.client.client import Client as McpClient

from fault.record import record
from fuzz.held import held, let_go
from fuzz.rpc import Fuzzer
from served_gateway import VALUE, House, actors, double, echo, eventually, fail, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(0)]

CASES = int(os.environ.get("GROUNDPLANE_TEST_FUZZ_CASES", "2500"))
SECONDS = float(os.environ.get("GROUNDPLANE_TEST_FUZZ_S", "120"))
SEED = int(os.environ.get("GROUNDPLANE_TEST_FUZZ_SEED", "20261122"))
ROUND = 500


@asynccontextmanager
async def fuzzed(state: Path) -> AsyncIterator[House]:
    tools = (tool("double", schema=VALUE), tool("echo"), tool("fail"), tool("tasked", "echo", task="required"))
    async with house(state, *tools) as one, actors(one, {"double": double, "echo": echo, "fail": fail}):
        await one.gateway.loaded()
        yield one


async def golden(one: House) -> None:
    """Both revisions, as a client of good will uses them."""
    for era in ("legacy", "2026-07-28"):
        async with McpClient(f"{one.url}/mcp", mode=era) as mcp:
            assert {found.name for found in (await mcp.list_tools()).tools} == {"double", "echo", "fail", "tasked"}
            result = await mcp.call_tool("double", {"value": 21})
            assert result.structured_content == {"value": 42}


@pytest.mark.req("GATE-15.1")
async def test_mutated_json_rpc_never_meets_a_fault_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with fuzzed(tmp_path) as one, one.http() as http:
        lane = one.gateway._lane._lane
        assert lane is not None
        known = sorted({*lane.server._request_handlers, "ping", "server/discover", "initialize"})
        fuzzer = Fuzzer(http, SEED, known)
        await golden(one)
        await fuzzer.open_sessions()
        await fuzzer.run(50)
        before = held()
        began = time.monotonic()
        while fuzzer.sent < CASES and time.monotonic() - began < SECONDS:
            await fuzzer.run(ROUND)
            await golden(one)
        await eventually(lambda: let_go(before), 30.0)
        jobs = await one.jobs.sweep()
        seconds = time.monotonic() - began
        record(test="fuzz-mcp", cases=fuzzer.sent, reached=fuzzer.reached, seed=SEED, seconds=seconds)
        print(
            f"{fuzzer.sent} cases in {time.monotonic() - began:.1f} s, {fuzzer.reached} reached a handler,"
            f" {dict(fuzzer.statuses)}, {dict(fuzzer.answered)}, {jobs.jobs} jobs"
        )
        assert fuzzer.reached >= 0.3 * fuzzer.sent
        assert [method for method in known if not fuzzer.answered[method]] == []
