"""Limits per caller against a served gateway: 429 that names the limit and tells when to come back."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pytest
from mcp.client.client import Client as McpClient

from groundplane.jobs.port import JobQuery
from served_gateway import actors, echo, eventually, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PROBLEM = "application/problem+json"
ERAS = ("legacy", "2026-07-28")


@pytest.mark.req("GATE-09.1")
async def test_requests_over_the_rate_are_429_with_the_limit_and_pass_after_retry_after(tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo"), rate=0.02, burst=3) as one, one.http() as http:
        codes = [(await http.get("/v1/tools")).status_code for _ in range(3)]
        assert codes == [200, 200, 200]
        refused = await http.get("/v1/tools")
        assert (refused.status_code, refused.headers["content-type"]) == (429, PROBLEM)
        body = refused.json()
        assert (body["reason"], body["code"]) == ("rate_exceeded", "resource_exhausted")
        assert (body["details"]["limit"], body["details"]["max"], body["details"]["burst"]) == ("rate", 0.02, 3)
        wait_s = body["details"]["retry_after_s"]
        assert 20 < wait_s <= 50
        assert refused.headers["retry-after"] == str(math.ceil(wait_s))
        refused_again = await http.get("/v1/tools")
        assert (refused_again.status_code, 0 < refused_again.json()["details"]["retry_after_s"] < wait_s) == (429, True)
        one.gateway._services.limiter._clock = lambda: time.monotonic() + wait_s
        assert (await http.get("/v1/tools")).status_code == 200
        assert (await http.get("/v1/tools")).status_code == 429
        metrics = one.gateway.registry.get_sample_value("groundplane_gateway_refused_total", {"limit": "rate"})
        assert metrics == 3


@pytest.mark.req("GATE-09.1")
async def test_probes_and_reports_of_actors_are_not_limited(tmp_path: Path) -> None:
    async with house(tmp_path, tool("stuck"), rate=0.02, burst=2) as one, one.http() as http:
        job_id = (await http.post("/v1/jobs", json={"tool": "stuck"})).json()["job_id"]
        token = {"x-groundplane-job-token": await one.token_of(job_id, "stuck")}
        for _ in range(5):
            assert (await http.get("/livez")).status_code == 200
            beat = await http.post(f"/jobs/{job_id}/heartbeat", json={"status": "processing"}, headers=token)
            assert beat.status_code == 200
        assert (await http.get("/v1/tools")).status_code == 200
        assert (await http.get("/v1/tools")).status_code == 429


@pytest.mark.req("GATE-09.1")
async def test_an_mcp_request_over_the_rate_is_429(tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo"), rate=0.02, burst=1) as one, one.http() as http:
        answers = [await http.post("/mcp", json={"jsonrpc": "2.0", "id": n, "method": "ping"}) for n in range(2)]
        assert answers[1].status_code == 429
        assert answers[1].json()["details"]["limit"] == "rate"
        assert 20 < int(answers[1].headers["retry-after"]) <= 50


@pytest.mark.req("GATE-09.1")
async def test_a_job_over_the_live_ones_is_429_until_one_ends_and_repeats_are_answered(tmp_path: Path) -> None:
    async with house(tmp_path, tool("stuck"), live_jobs=2) as one, one.http() as http:
        key = {"Idempotency-Key": "order 1"}
        first = (await http.post("/v1/jobs", json={"tool": "stuck"}, headers=key)).json()["job_id"]
        assert (await http.post("/tools/call", json={"name": "stuck"})).status_code == 200
        for path, body in (("/v1/jobs", {"tool": "stuck"}), ("/tools/call", {"name": "stuck"})):
            refused = await http.post(path, json=body)
            assert (refused.status_code, refused.json()["reason"]) == (429, "live_jobs")
            assert refused.json()["details"] == {"limit": "live_jobs", "max": 2}
            assert refused.headers["retry-after"] == "1"
        again = await http.post("/v1/jobs", json={"tool": "stuck"}, headers=key)
        assert (again.status_code, again.json()["job_id"]) == (202, first)
        await http.post(f"/v1/jobs/{first}/cancel")
        assert (await http.post("/v1/jobs", json={"tool": "stuck"})).status_code == 202


@pytest.mark.req("GATE-09.1")
async def test_replicas_on_one_store_never_hold_more_live_jobs_together_than_allowed(tmp_path: Path) -> None:
    async with (
        house(tmp_path, tool("stuck"), live_jobs=5) as one,
        house(tmp_path, tool("stuck"), live_jobs=5, upgrade=False) as other,
        one.http() as first,
        other.http() as second,
    ):
        asked = [http.post("/v1/jobs", json={"tool": "stuck"}) for _ in range(10) for http in (first, second)]
        codes = [answer.status_code for answer in await asyncio.gather(*asked)]
        assert sorted(codes) == [202] * 5 + [429] * 15
        assert len((await one.jobs.list_jobs(JobQuery())).items) == 5


@pytest.mark.req("GATE-09.1")
@pytest.mark.parametrize("era", ERAS)
async def test_an_mcp_call_over_the_live_jobs_is_an_error_result_that_names_the_limit(tmp_path: Path, era: str) -> None:
    async with house(tmp_path, tool("echo"), tool("stuck"), live_jobs=1) as one, one.http() as http:
        held = (await http.post("/v1/jobs", json={"tool": "stuck"})).json()["job_id"]
        async with actors(one, {"echo": echo}), McpClient(f"{one.url}/mcp", mode=era) as mcp:
            refused = await mcp.call_tool("echo", {"n": 1})
            assert refused.is_error
            error: dict[str, Any] = (refused.structured_content or {})["error"]
            assert (error["code"], error["details"]["reason"]) == ("resource_exhausted", "live_jobs")
            await one.jobs.cancel(held)
            assert (await mcp.call_tool("echo", {"n": 1})).structured_content == {"n": 1}


@pytest.mark.req("GATE-09.1")
async def test_a_stream_over_the_open_ones_is_429_and_one_that_ended_makes_room(tmp_path: Path) -> None:
    async with house(tmp_path, tool("stuck"), streams=2) as one, one.http() as http:
        job_id = (await http.post("/v1/jobs", json={"tool": "stuck"})).json()["job_id"]
        path = f"/v1/jobs/{job_id}/events"
        async with http.stream("GET", path) as first, http.stream("GET", f"/jobs/{job_id}/stream") as second:
            assert (first.status_code, second.status_code) == (200, 200)
            for _ in range(2):
                refused = await http.get(path)
                assert (refused.status_code, refused.json()["reason"]) == (429, "too_many_streams")
                assert refused.json()["details"] == {"limit": "streams", "max": 2}
            assert (await http.head(path)).status_code == 429
        await eventually(lambda: _none_open(one))
        assert (await http.head(path)).status_code == 200
        await eventually(lambda: _none_open(one))


async def _none_open(one: Any) -> bool:
    return "0 streams" in repr(one.gateway._services.limiter)


@pytest.mark.req("GATE-09.1")
async def test_the_standing_stream_of_an_mcp_session_counts(tmp_path: Path) -> None:
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    initialize = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    async with house(tmp_path, tool("echo"), streams=1) as one, one.http() as http:
        answer = await http.post("/mcp", json=initialize, headers=headers)
        session = {**headers, "mcp-session-id": answer.headers["mcp-session-id"]}
        async with http.stream("GET", "/mcp", headers=session) as standing:
            assert standing.status_code == 200
            job_id = (await http.post("/v1/jobs", json={"tool": "echo"})).json()["job_id"]
            refused = await http.get(f"/v1/jobs/{job_id}/events")
            assert refused.status_code == 429
        await eventually(lambda: _none_open(one))


@pytest.mark.req("GATE-09.1")
async def test_without_authentication_and_settings_nothing_is_limited(tmp_path: Path) -> None:
    async with house(tmp_path, tool("stuck")) as one, one.http() as http:
        answers = await asyncio.gather(*(http.post("/v1/jobs", json={"tool": "stuck"}) for _ in range(120)))
        assert {answer.status_code for answer in answers} == {202}
