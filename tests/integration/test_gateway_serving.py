"""The gateway as a server: ports, reload, drain, relay, readiness, and its own client."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from groundplane.blobs import Blobs
from groundplane.core.errors import (
    FailedPrecondition,
    Unavailable,
)
from groundplane.gateway import Gateway, GatewaySettings, ToolTable
from groundplane.gateway.client import Client
from groundplane.gateway.server import Served
from groundplane.jobs import Jobs
from groundplane.queues import Queues
from groundplane.queues.port import QueueSpec
from served_gateway import House, connection, eventually, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, tool("echo"), tool("slow", "gate"), tool("stuck"), tool("fail")) as opened:
        yield opened


async def test_port_0_takes_a_free_one_and_says_which(one: House) -> None:
    assert one.served.port > 0
    assert one.served.url == f"http://127.0.0.1:{one.served.port}"
    async with one.http() as http:
        assert (await http.get("/livez")).status_code == 200


async def test_a_gateway_on_every_address_says_one_that_it_answers(tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo"), host="0.0.0.0", auth="keys") as one:
        assert one.url == f"http://127.0.0.1:{one.served.port}"
        key = (await one.security.create_key("ci", ["tools:*"])).secret.reveal()
        async with Client(one.url, key=key) as client:
            assert (await client.list_jobs())["jobs"] == []
        async with one.http() as http:
            refused = await http.get("/livez", headers={"Host": f"0.0.0.0:{one.served.port}"})
            assert (refused.status_code, "allowed_hosts" in refused.json()["detail"]) == (421, True)


async def test_a_port_that_is_taken_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=f"port: {port} on 127.0.0.1 cannot be bound: Address already"):
            async with house(tmp_path, port=port):
                pass


async def test_the_admin_server_shows_metrics_and_readiness(tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo"), admin_port=0) as one:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{one.served.admin_port}") as http:
            assert "groundplane_gateway_streams_open 0.0" in (await http.get("/metrics")).text
            assert (await http.get("/readyz")).status_code == 200


async def test_requests_are_counted_by_the_pattern_of_their_route(tmp_path: Path) -> None:
    asked = [
        ("GET", "/v1/jobs", "/v1/jobs", 200),
        ("GET", "/v1/jobs/nobody", "/v1/jobs/{job_id}", 404),
        ("PATCH", "/v1/jobs", "/v1/jobs", 405),
        ("GET", "/openapi.json", "/openapi.json", 200),
        ("POST", "/mcp", "/mcp", 415),
        ("GET", "/a/b/c", "unmatched", 404),
    ]
    async with house(tmp_path, tool("echo"), admin_port=0) as one, one.http() as http:
        for method, path, _, status in asked:
            assert (await http.request(method, path)).status_code == status
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{one.served.admin_port}") as admin:
            shown = (await admin.get("/metrics")).text
    for method, _, route, status in asked:
        labels = f'method="{method}",route="{route}",status="{status}"'
        assert f"groundplane_gateway_requests_total{{{labels}}} 1.0" in shown


async def test_readiness_turns_red_when_the_store_does_not_answer(one: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(*_: Any) -> Any:
        raise Unavailable("database: does not answer")

    monkeypatch.setattr(one.jobs, "list_jobs", down)
    async with one.http() as http:
        response = await http.get("/readyz")
        assert (response.status_code, (await http.get("/livez")).status_code) == (503, 200)
        assert response.json()["details"]["checks"]["jobs"] == "the job store: database: does not answer"


async def test_an_answer_is_sent_at_once_and_not_held_back_for_an_acknowledgement(one: House) -> None:
    """Nagle's algorithm costs 40 ms for every answer once the client delays its acknowledgements, as it does after a
    while on one connection.
    """
    took = []
    async with connection(one) as (reader, writer):
        for _ in range(60):
            began = time.perf_counter()
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b'{"status":"ok"}')
            took.append(time.perf_counter() - began)
    assert min(took[-20:]) < 0.03


@pytest.mark.req("GATE-01")
async def test_sighup_reloads_the_tools_and_sigterm_drains(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text("tools: [{name: first, route: [echo]}]")
    async with _with_signals(tmp_path, ToolTable(files=[path])) as (gateway, served, serving):
        async with httpx2.AsyncClient(base_url=served.url) as http:

            async def names() -> list[str]:
                return [found["name"] for found in (await http.get("/v1/tools")).json()["tools"]]

            async def are(*expected: str) -> bool:
                return await names() == list(expected)

            assert await names() == ["first"]
            path.write_text("tools: [{name: first, route: [echo]}, {name: second, route: [echo, brand-new]}]")
            os.kill(os.getpid(), signal.SIGHUP)
            await eventually(lambda: are("first", "second"))
            path.write_text("tools: [{name: third, route: []}]")
            assert gateway.reload() is None
            assert await names() == ["first", "second"]
            started = await http.post("/v1/jobs", json={"tool": "second"})
            assert started.status_code == 202
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 10)


@pytest.mark.req("GATE-01")
async def test_a_reload_while_the_broker_is_away_leaves_the_gateway_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, tool("sum")) as one, one.http() as http:
        asked = asyncio.Event()

        async def away() -> list[QueueSpec]:
            asked.set()
            raise Unavailable("queues: does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(one.queues, "queues", away)
            assert one.gateway.reload() is not None
            declaring = [task for task in asyncio.all_tasks() if "declare_queues" in task.get_name()]
            async with asyncio.timeout(20):
                await asked.wait()
                await asyncio.wait(declaring)
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")


@asynccontextmanager
async def _with_signals(state: Path, table: ToolTable) -> AsyncIterator[tuple[Gateway, Served, asyncio.Task[None]]]:
    async with (
        Jobs.open(state=state, upgrade=True) as jobs,
        Queues.open(state=state, upgrade=True) as queues,
        Blobs.open("embedded://", state=state) as blobs,
        Gateway.open(
            jobs=jobs, queues=queues, blobs=blobs, tools=table, settings=GatewaySettings(port=0, grace_s=3)
        ) as gateway,
    ):
        ready: asyncio.Future[Served] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(gateway.serve(on_ready=ready.set_result, signals=True))
        try:
            yield gateway, await ready, serving
        finally:
            if not serving.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await serving


@pytest.mark.req("GATE-13")
async def test_a_drain_ends_waiting_results_streams_and_the_lifespan_long_before_the_grace(tmp_path: Path) -> None:
    async with house(tmp_path, tool("stuck"), grace_s=30) as one, one.http() as http:
        job_id = (await http.post("/v1/jobs", json={"tool": "stuck"})).json()["job_id"]
        waiting = asyncio.create_task(http.get(f"/v1/jobs/{job_id}/result", params={"wait": 60}))
        streaming = asyncio.create_task(http.get(f"/v1/jobs/{job_id}/events"))
        await eventually(lambda: _subscriptions(one, 2))
        began = time.perf_counter()
        one.stop.set()
        answer, streamed = await waiting, await streaming
        await one.serving
        assert time.perf_counter() - began < 15
        assert (answer.status_code, answer.json()["state"]) == (202, "pending")
        assert streamed.text.rstrip().endswith(": the gateway shuts down; the job goes on")
        assert not one.gateway._lane.serving  # the lifespan's shutdown ran
        assert (await one.jobs.get(job_id)).state == "pending"


async def _subscriptions(one: House, count: int) -> bool:
    return f"{count} subscriptions" in repr(one.gateway._services.feed)


@pytest.mark.req("JOB-02")
async def test_an_accepted_job_is_relayed_also_to_a_queue_that_was_not_there(one: House) -> None:
    async with one.http() as http:
        job = (await http.post("/v1/jobs", json={"tool": "stuck"})).json()
        depth = await eventually(lambda: _ready(one, "stuck"))
        assert (depth, job["state"]) == (1, "pending")


async def _ready(one: House, queue: str) -> int:
    return (await one.queues.depth(queue)).ready


@pytest.mark.req("JOB-04")
async def test_two_replicas_relay_and_sweep_one_store_without_doubling(one: House, tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo"), tool("short", "stuck", timeout_s=0.3), upgrade=False) as other:
        async with one.http() as first, other.http() as second:
            for n in range(20):
                http = (first, second)[n % 2]
                await http.post("/v1/jobs", json={"tool": "echo", "arguments": {"n": n}})
            late = (await second.post("/v1/jobs", json={"tool": "short"})).json()["job_id"]
            assert (await one.jobs.wait_finished(late, 10)) is not None
            await eventually(lambda: _all_sent(one))
            assert (await one.queues.depth("echo")).ready == 20


async def _all_sent(one: House) -> bool:
    return (await one.queues.depth("echo")).ready == 20 and (await one.jobs.sweep()).outbox_head is None
