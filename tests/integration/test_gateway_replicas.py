"""Three gateways behind nginx on RabbitMQ and PostgreSQL: the gateway's scenarios once more, streams and sessions that
move, kills, and rolling restarts under load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from mcp.client.client import Client as McpClient

from groundplane.core.envelope import Envelope
from groundplane.gateway import Client
from groundplane.queues import Queues
from integration.test_gateway_scenarios import (  # collected here too, on this module's plane
    APP,
    followed,
    test_a_pipeline_of_10_gives_25_with_updates_from_both_steps,
    test_a_sleep_of_60_seconds_against_10_has_failed_by_15,
    test_an_error_fails_the_job_with_its_text_and_progress_below_100,
    test_concurrent_jobs_each_get_their_own_result,
    test_echo,
    test_echo_by_the_older_call_and_by_mcp_in_both_revisions,
    test_progress_is_told_live_and_never_falls,
    test_progress_is_visible_by_get_while_the_job_runs,
    test_the_status_is_there_right_after_creation,
)
from leaks import eventually
from pace import at_most
from replicas import COUNT, Replicas, block, in_thread, replicas
from stacks import own_namespaces

__all__ = [
    "test_a_pipeline_of_10_gives_25_with_updates_from_both_steps",
    "test_a_sleep_of_60_seconds_against_10_has_failed_by_15",
    "test_an_error_fails_the_job_with_its_text_and_progress_below_100",
    "test_concurrent_jobs_each_get_their_own_result",
    "test_echo",
    "test_echo_by_the_older_call_and_by_mcp_in_both_revisions",
    "test_progress_is_told_live_and_never_falls",
    "test_progress_is_visible_by_get_while_the_job_runs",
    "test_the_status_is_there_right_after_creation",
]
pytestmark = [pytest.mark.anyio, pytest.mark.integration]

ROUTES = """
tools:
  - {{name: foreign, route: [foreign]}}
  - {{name: {name}, route: [echo], parameters: {{message: {{type: string}}}}}}
  - {{name: walk, route: [stepwise], timeout: 150, parameters: {{steps: {{type: integer}}, pause_s: {{type: number}}}}}}
"""
ERAS = ("legacy", "2026-07-28")


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """One for the module: what a test stops it starts again."""
    folder = tmp_path_factory.mktemp("replicas")
    routes = ROUTES.format(name="first")
    with (
        own_namespaces(request, folder / "state") as stack,
        replicas(folder / "plane", APP, stack, routes=routes) as found,
    ):
        yield found


@pytest.fixture
def three(lab: Replicas) -> Replicas:
    """All three, whatever the test before did."""
    lab.whole()
    return lab


@pytest.fixture
def plane(three: Replicas) -> str:
    """The URL that the scenarios are played on: the proxy's."""
    return three.url


@pytest.mark.req("GATE-05.2", "GATE-05.3", "GATE-11")
async def test_a_stream_resumes_on_every_replica_within_100_ms_and_two_clients_both_get_everything(
    three: Replicas,
) -> None:
    async with Client(three.url) as client, Client(three.url) as second:
        job = await client.start("progress", {"steps": 20, "pause_s": 0.05})
        following = [asyncio.create_task(_updates(one, job["job_id"])) for one in (client, second)]
        waits, seen = [], 0
        async with httpx2.AsyncClient(timeout=30) as http:
            for number in range(COUNT):
                url = f"{three.direct(number)}/v1/jobs/{job['job_id']}/events"
                async with http.stream("GET", url, headers={"Last-Event-ID": str(seen)} if seen else {}) as response:
                    seen = await _next_id(response, seen)
            first, other = await asyncio.gather(*following)
            for number in range(2 * COUNT):  # what is there already; the fastest counts, the machine may be busy
                url = f"{three.direct(number % COUNT)}/v1/jobs/{job['job_id']}/events"
                began = time.perf_counter()
                async with http.stream("GET", url, headers={"Last-Event-ID": str(seen)}) as response:
                    assert await _next_id(response, seen) == first[first.index(seen) + 1]
                    waits.append(time.perf_counter() - began)
    assert first == other
    assert min(waits) < at_most(0.1)


async def _next_id(response: httpx2.Response, seen: int) -> int:
    """The id of the first event after that one."""
    async for line in response.aiter_lines():
        if line.startswith("id: ") and int(line.removeprefix("id: ")) > seen:
            return int(line.removeprefix("id: "))
    raise AssertionError("the stream ended")


async def _updates(client: Client, job_id: str) -> list[int]:
    async with aclosing(client.follow(job_id)) as events:
        return [event.id async for event in events if event.kind == "update"]


@pytest.mark.req("GATE-04.1", "GATE-04.2", "GATE-04.3", "GATE-04.4", "GATE-11")
async def test_rest_is_one_whichever_replica_answers(three: Replicas) -> None:
    async with httpx2.AsyncClient(base_url=three.url, timeout=60) as http:
        created = await http.post("/v1/jobs", json={"tool": "foreign", "arguments": {}})
        assert created.status_code == 202
        where = created.headers["location"]
        for action, state in (("pause", "paused"), ("resume", "pending"), ("cancel", "cancelled")):
            assert (await http.post(f"{where}/{action}", json={})).json()["state"] == state
            assert {(await http.get(where)).json()["state"] for _ in range(COUNT)} == {state}
        assert {(await http.post(f"{where}/cancel", json={})).status_code for _ in range(COUNT)} == {409}
        assert {(await http.get("/v1/jobs/none")).status_code for _ in range(COUNT)} == {404}
        for body, status in (({"tool": "nothing"}, 404), ({"tool": "echo", "arguments": {}}, 422)):
            assert {(await http.post("/v1/jobs", json=body)).status_code for _ in range(COUNT)} == {status}
        keyed = {"Idempotency-Key": str(uuid4())}
        body = {"tool": "echo", "arguments": {"message": "once"}}
        jobs = [(await http.post("/v1/jobs", json=body, headers=keyed)).json()["job_id"] for _ in range(COUNT)]
        assert len(set(jobs)) == 1
        done = await http.get(f"/v1/jobs/{jobs[0]}/result", params={"wait": 30})
        assert (done.status_code, done.json()["result"]) == (200, {"echoed": "once"})
        assert jobs[0] in {one["job_id"] for one in (await http.get("/v1/jobs")).json()["jobs"]}


@pytest.mark.req("GATE-07", "GATE-11")
async def test_callbacks_of_actors_reach_any_replica(three: Replicas) -> None:
    async with httpx2.AsyncClient(base_url=three.url, timeout=60) as http:
        job_id = (await http.post("/v1/jobs", json={"tool": "foreign", "arguments": {}})).json()["job_id"]
        headers = {"x-groundplane-job-token": await _token(three, job_id)}
        assert (await http.get(f"/jobs/{job_id}/active")).status_code == 200
        for status, progress in (("picked_up", 10), ("processing", 50), ("completed", 50)):  # 100 is for success
            answer = await http.post(f"/jobs/{job_id}/heartbeat", json={"status": status}, headers=headers)
            assert answer.status_code == 200
            async with asyncio.timeout(30):  # progress alone is durable a moment later
                while (await http.get(f"/v1/jobs/{job_id}")).json()["progress"] != progress:
                    await asyncio.sleep(0.01)
        beat = {"status": "asleep"}
        assert (await http.post(f"/jobs/{job_id}/heartbeat", json=beat, headers=headers)).status_code == 400
        assert (await http.post(f"/jobs/{job_id}/heartbeat", json=beat)).status_code == 401
        failed = {"status": "error", "message": "out of paper"}
        assert (await http.post(f"/jobs/{job_id}/heartbeat", json=failed, headers=headers)).status_code == 200
        gone = {(await http.get(f"/jobs/{job_id}/active")).status_code for _ in range(COUNT)}
        job = (await http.get(f"/v1/jobs/{job_id}")).json()
    assert (gone, job["state"], job["error"]["message"]) == ({410}, "failed", "out of paper")


async def _token(three: Replicas, job_id: str) -> str:
    async with (
        Queues.open(three.stack.urls["queues"], namespace="replicas", state=three.folder / "state") as queues,
        queues.consume("foreign", max_in_flight=1) as consumer,
    ):
        while True:
            (delivery,) = await consumer.receive(1, 30.0)
            await consumer.ack(delivery)
            envelope = Envelope.from_bytes(delivery.payload)
            if envelope.job_id == job_id:
                return str(envelope.headers["groundplane-job-token"])


@pytest.mark.req("GATE-01", "GATE-11")
async def test_each_replica_reads_its_tools_again_on_sighup(three: Replicas) -> None:
    (three.folder / "routes.yaml").write_text(ROUTES.format(name="second"))
    three.hang_up()

    def listed(number: int) -> bool:
        names = {tool["name"] for tool in httpx2.get(f"{three.direct(number)}/v1/tools").json()["tools"]}
        return {"second", "echo"} <= names and "first" not in names

    for number in range(COUNT):
        assert await in_thread(eventually, lambda number=number: listed(number), 30.0)
    async with McpClient(f"{three.url}/mcp", mode="legacy") as mcp:
        assert (await mcp.call_tool("second", {"message": "read"})).structured_content == {"echoed": "read"}


@pytest.mark.req("GATE-02", "GATE-11")
@pytest.mark.parametrize("era", ERAS)
async def test_calls_of_one_client_go_to_all_replicas_and_get_their_own_results(three: Replicas, era: str) -> None:
    async with McpClient(f"{three.url}/mcp", mode=era) as mcp:
        assert "echo" in {tool.name for tool in (await mcp.list_tools()).tools}
        results = await asyncio.gather(*(mcp.call_tool("echo", {"message": str(n)}) for n in range(12)))
    assert [result.structured_content for result in results] == [{"echoed": str(n)} for n in range(12)]


@pytest.mark.leaks("a gateway that is started again belongs to the module")
@pytest.mark.req("GATE-11", "GATE-05.3")
@pytest.mark.parametrize("number", range(COUNT))
async def test_killing_any_one_replica_loses_nothing(three: Replicas, number: int) -> None:
    """A REST stream, a waiting result and calls of both revisions are under way, on whichever replica they are."""
    progress: list[float] = []

    async def told(value: float, total: float | None, message: str | None) -> None:
        progress.append(value)

    steps = {"steps": 6, "pause_s": 0.2}
    async with (
        Client(three.url) as client,
        McpClient(f"{three.url}/mcp", mode="legacy") as old,
        McpClient(f"{three.url}/mcp", mode="2026-07-28") as new,
    ):
        await old.list_tools()
        await new.list_tools()
        work = [
            asyncio.create_task(followed(client, "walk", steps)),
            asyncio.create_task(old.call_tool("walk", steps, progress_callback=told)),
            asyncio.create_task(new.call_tool("walk", steps)),
        ]
        job = await client.start("walk", steps)
        waiting = asyncio.create_task(client.result(job["job_id"], timeout_s=90))
        async with asyncio.timeout(60):
            while not progress:
                await asyncio.sleep(0.01)
        await in_thread(three.kill, number)
        (updates, ended), first, second = await asyncio.gather(*work)
        waited = await waiting
    await in_thread(three.start, number)
    assert (ended["state"], waited["state"]) == ("succeeded", "succeeded")
    assert (first.structured_content, second.structured_content) == ({"steps": 6}, {"steps": 6})
    ids = [update["event_id"] for update in updates]
    assert ids == sorted(set(ids))
    told_of = dict.fromkeys(str(update.get("message", "")) for update in updates)
    assert [one for one in told_of if one.startswith("step ")] == [f"step {n} of 6" for n in range(1, 7)]
    assert progress == sorted(set(progress))


class Load:
    """A client that works until it is told to stop; what went wrong, and how often it went well."""

    def __init__(self) -> None:
        self.done = 0
        self.failures: list[str] = []
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self, work: Callable[[int], Awaitable[Any]]) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run(work))
        try:
            yield
        finally:
            self._stop.set()
            await task

    async def _run(self, work: Callable[[int], Awaitable[Any]]) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                if await work(number) != {"echoed": str(number)}:
                    self.failures.append(f"{number}: another answer")
                self.done += 1
            except Exception as error:  # noqa: BLE001 - what any client would have seen, for the assertion
                self.failures.append(f"{number}: {error!r}")


@pytest.mark.leaks("gateways that are started again belong to the module")
@pytest.mark.req("GATE-13", "GATE-11")
async def test_a_rolling_restart_under_load_fails_no_request(three: Replicas) -> None:
    """`groundplane.Client`, the SDK's client in both revisions, and the client of the documentation, all the time."""
    names: dict[str, Any] = {}
    exec(compile(block("python"), "behind-a-proxy.md", "exec"), names)  # noqa: S102 - our own page
    loads = {name: Load() for name in ("ours", "documented", *ERAS)}
    async with (
        Client(three.url) as ours,
        McpClient(f"{three.url}/mcp", mode="legacy") as old,
        McpClient(f"{three.url}/mcp", mode="2026-07-28") as new,
    ):

        async def client(number: int) -> Any:
            job = await ours.start("echo", {"message": str(number)})
            updates = await _updates(ours, job["job_id"])
            assert updates == sorted(set(updates))
            return (await ours.result(job["job_id"], timeout_s=60))["result"]

        def documented(number: int) -> Any:
            with httpx2.Client(base_url=three.url, timeout=60) as http:
                body = {"tool": "echo", "arguments": {"message": str(number)}}
                job = names["ask"](
                    http, "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": str(uuid4())}
                ).json()
                while job["state"] != "succeeded":
                    job = names["ask"](http, "GET", f"/v1/jobs/{job['job_id']}/result", params={"wait": 30}).json()
                return job["result"]

        def calls(mcp: McpClient) -> Callable[[int], Awaitable[Any]]:
            async def call(number: int) -> Any:
                return (await mcp.call_tool("echo", {"message": str(number)})).structured_content

            return call

        async with (
            loads["ours"].running(client),
            loads["documented"].running(lambda number: asyncio.to_thread(documented, number)),
            loads["legacy"].running(calls(old)),
            loads["2026-07-28"].running(calls(new)),
        ):
            long = [asyncio.create_task(mcp.call_tool("walk", {"steps": 40, "pause_s": 0.2})) for mcp in (old, new)]
            for number in range(COUNT):
                await in_thread(three.restart, number)
            assert [found.structured_content for found in await asyncio.gather(*long)] == [{"steps": 40}] * 2
    assert {name: load.failures for name, load in loads.items()} == {name: [] for name in loads}, three.refusals()
    assert min(load.done for load in loads.values()) >= 5


@pytest.mark.leaks("a gateway that is started again belongs to the module")
@pytest.mark.req("GATE-13")
async def test_a_gateway_that_drains_is_not_ready_and_says_when_to_come_back_while_its_port_listens(
    three: Replicas,
) -> None:
    """A call of the newer revision, which cannot be resumed, holds it in the middle of its drain."""
    async with (
        httpx2.AsyncClient(base_url=three.direct(0), timeout=60) as http,
        McpClient(f"{three.direct(0)}/mcp", mode="2026-07-28") as mcp,
    ):
        await mcp.list_tools()
        progress = asyncio.Event()

        async def told(*_: Any) -> None:
            progress.set()

        call = asyncio.create_task(mcp.call_tool("progress", {"steps": 50, "pause_s": 0.1}, progress_callback=told))
        await progress.wait()
        stopping = asyncio.create_task(in_thread(three.stop, 0))
        async with asyncio.timeout(30):
            while (ready := await http.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.01)
        refused = await http.post("/v1/jobs", json={"tool": "echo", "arguments": {"message": "late"}})
        alive = await http.get("/livez")
        async with httpx2.AsyncClient(timeout=60) as proxied:
            late = {"tool": "echo", "arguments": {"message": "late"}}
            passed_on = [(await proxied.post(f"{three.url}/v1/jobs", json=late)).status_code for _ in range(COUNT)]
        assert (await call).structured_content == {"steps": 50}
        assert await stopping == 0
        await in_thread(three.start, 0)
    assert (ready.status_code, alive.status_code) == (503, 200)
    assert ready.json()["details"]["checks"]["drain"] == "the gateway is shutting down"
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["connection"] == "close"
    assert passed_on == [202] * COUNT


@pytest.mark.req("GATE-09", "GATE-11")
async def test_the_host_that_the_client_called_is_checked_behind_the_proxy(three: Replicas) -> None:
    async with httpx2.AsyncClient(base_url=three.url, timeout=30) as http:
        for _ in range(COUNT):
            assert (await http.get("/v1/jobs")).status_code == 200
            assert (await http.get("/v1/jobs", headers={"Host": "evil.example"})).status_code == 421
            assert (await http.get("/v1/jobs", headers={"Origin": "https://evil.example"})).status_code == 403
