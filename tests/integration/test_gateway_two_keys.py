"""Two callers with an API key each, against one served gateway: what one of them uses up, the other still has."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from groundplane.jobs.port import JobQuery
from served_gateway import House, actors, echo, eventually, house, tool
from wire.test_mcp_lanes import Legacy
from wire.test_mcp_tasks import Caller

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.req("GATE-09.1")]

LANES = ("rest", "2025-11-25", "2026-07-28")
LISTEN = {"notifications": {"toolsListChanged": True}}


class Client:
    """One caller over one lane, by hand: whoever counts requests must know how many there are."""

    def __init__(self, http: httpx2.AsyncClient, lane: str) -> None:
        self.http = http
        self._lane = lane
        self._legacy = Legacy(http)
        self._modern = Caller(http, tasks=False)
        self._ids = itertools.count(2)
        self.spent = 0

    async def open(self) -> Client:
        if self._lane == "2025-11-25":
            await self._legacy.open()
            self.spent = 2
        return self

    async def list_tools(self) -> httpx2.Response:
        return await self._send("GET", "/v1/tools", None, "tools/list", {})

    async def start(self, name: str) -> httpx2.Response:
        """Start a job, and wait for its end where the lane is MCP."""
        body = {"tool": name, "arguments": {"n": 1}}
        return await self._send("POST", "/v1/jobs", body, "tools/call", {"name": name, "arguments": {"n": 1}}, name)

    def stream(self, job_id: str) -> Any:
        """A stream that nothing ends."""
        if self._lane == "rest":
            return self.http.stream("GET", f"/v1/jobs/{job_id}/events")
        if self._lane == "2025-11-25":
            return self.http.stream("GET", "/mcp", headers=self._legacy.headers)
        return self.http.stream("POST", "/mcp", **self._modern.request("subscriptions/listen", LISTEN, None))

    async def _send(
        self, verb: str, path: str, body: Any, method: str, params: dict[str, Any], named: str | None = None
    ) -> httpx2.Response:
        if self._lane == "rest":
            return await self.http.request(verb, path, json=body)
        if self._lane == "2025-11-25":
            return await self._legacy.post(next(self._ids), method, params)
        return await self._modern.send(method, params, named)


@asynccontextmanager
async def two(state: Path, lane: str, **limits: Any) -> AsyncIterator[tuple[House, Client, Client]]:
    """A gateway, a greedy caller and a modest one."""
    async with house(state, tool("echo"), tool("stuck"), auth="keys", **limits) as one, AsyncExitStack() as closing:
        clients = []
        for name in ("greedy", "modest"):
            made = await one.security.create_key(name, ["tools:*"])
            headers = {"Authorization": f"Bearer {made.secret.reveal()}"}
            http = await closing.enter_async_context(httpx2.AsyncClient(base_url=one.url, headers=headers, timeout=60))
            clients.append(await Client(http, lane).open())
        yield one, clients[0], clients[1]


def refused(answer: httpx2.Response, limit: str) -> dict[str, Any]:
    """The details of a 429, which says when to come back."""
    assert answer.status_code == 429, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    details: dict[str, Any] = answer.json()["details"]
    assert details["limit"] == limit
    return details


def result_of(answer: httpx2.Response) -> dict[str, Any]:
    """The result of a tool call over MCP."""
    assert answer.status_code == 200, answer.text
    text = answer.text.rpartition("data: ")[2] if "event-stream" in answer.headers["content-type"] else answer.text
    found: dict[str, Any] = json.loads(text)["result"]
    return found


def is_refused(answer: httpx2.Response, lane: str) -> bool:
    """Whether a job was refused for the caller's live ones: 429, and an error result where the lane has those."""
    if lane == "rest":
        return answer.status_code == 429 and refused(answer, "live_jobs") == {"limit": "live_jobs", "max": 2}
    found = result_of(answer)
    error = found["structuredContent"].get("error", {})
    return bool(found["isError"] and error["details"]["reason"] == "live_jobs")


@pytest.mark.parametrize("lane", LANES)
async def test_who_spends_a_burst_is_429_with_retry_after_and_nobody_else_is(tmp_path: Path, lane: str) -> None:
    burst = 8
    async with two(tmp_path, lane, rate=0.01, burst=burst) as (one, greedy, modest):
        codes = [(await greedy.list_tools()).status_code for _ in range(burst - greedy.spent)]
        assert set(codes) == {200}
        told = refused(await greedy.list_tools(), "rate")
        assert (told["max"], told["burst"]) == (0.01, burst)
        assert 1 < told["retry_after_s"] <= 100

        hammered = 0

        async def hammer() -> None:
            nonlocal hammered
            while True:
                refused(await greedy.list_tools(), "rate")
                hammered += 1

        async with asyncio.TaskGroup() as group:
            hammering = [group.create_task(hammer()) for _ in range(4)]
            codes = [(await modest.list_tools()).status_code for _ in range(burst - modest.spent)]
            assert set(codes) == {200}
            await eventually(lambda: _is(hammered >= burst), 30)
            for task in hammering:
                task.cancel()
        refused(await modest.list_tools(), "rate")
        counted = one.gateway.registry.get_sample_value("groundplane_gateway_refused_total", {"limit": "rate"})
        assert counted is not None
        assert counted >= hammered + 2  # those that were cancelled may have been counted too


async def _is(value: bool) -> bool:
    return value


@pytest.mark.parametrize("lane", LANES)
async def test_who_has_all_live_jobs_starts_no_more_and_everybody_else_does(tmp_path: Path, lane: str) -> None:
    async with two(tmp_path, lane, live_jobs=2) as (one, greedy, modest), actors(one, {"echo": echo}):
        held = [(await greedy.http.post("/v1/jobs", json={"tool": "stuck"})).json()["job_id"] for _ in range(2)]
        assert is_refused(await greedy.start("echo"), lane)
        answers = await asyncio.gather(*(modest.start("echo") for _ in range(2)))
        if lane != "rest":
            assert [result_of(answer)["structuredContent"] for answer in answers] == [{"n": 1}] * 2
        assert {answer.status_code for answer in answers} <= {200, 202}
        assert is_refused(await greedy.start("echo"), lane)
        assert (await greedy.http.post(f"/v1/jobs/{held[0]}/cancel")).status_code == 200
        again = await greedy.start("echo")
        assert again.status_code in (200, 202)
        assert lane == "rest" or result_of(again)["structuredContent"] == {"n": 1}
        await eventually(lambda: _have_ended(one, "modest", 2), 30)


async def _have_ended(one: House, owner: str, count: int) -> bool:
    found = (await one.jobs.list_jobs(JobQuery(owner=owner))).items
    return [job.state.value for job in found] == ["succeeded"] * count


@pytest.mark.parametrize("lane", LANES)
async def test_who_has_all_streams_opens_no_more_on_any_lane_and_everybody_else_does(tmp_path: Path, lane: str) -> None:
    async with two(tmp_path, lane, streams=2) as (_, greedy, modest), AsyncExitStack() as open_ones:
        job_id = (await greedy.http.post("/v1/jobs", json={"tool": "stuck"})).json()["job_id"]
        first = await open_ones.enter_async_context(greedy.stream(job_id))
        second = await open_ones.enter_async_context(greedy.http.stream("GET", f"/v1/jobs/{job_id}/events"))
        assert (first.status_code, second.status_code) == (200, 200)
        for refusal in (greedy.stream(job_id), greedy.http.stream("GET", f"/jobs/{job_id}/stream")):
            async with refusal as answer:
                await answer.aread()
                assert refused(answer, "streams") == {"limit": "streams", "max": 2}
        own_job = (await modest.http.post("/v1/jobs", json={"tool": "stuck"})).json()["job_id"]
        async with modest.stream(own_job) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
        await open_ones.aclose()
        await eventually(lambda: _opens(greedy, job_id), 30)


async def _opens(client: Client, job_id: str) -> bool:
    async with client.stream(job_id) as answer:
        return bool(answer.status_code == 200)
