"""Questions on three replicas: asked through one, answered through another, open while everything is killed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.client import Client as McpClient
from mcp_types import ElicitRequestParams, ElicitResult

from groundplane.gateway import Client
from replicas import COUNT, Replicas, in_thread, replicas
from stacks import own_namespaces

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.slow]

TASKS = "io.modelcontextprotocol/tasks"
REVISION = "2026-07-28"
QUESTION = "clean.0.sure"
YES = {"action": "accept", "content": {"value": True}}


@pytest.fixture(scope="module")
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("questions")
    app = folder / "approval.py"
    example = (repository / "examples" / "approval" / "app.py").read_text()
    app.write_text(f'{example}\napp.tool("clean_as_task", route=[clean], task_after=0)\n')
    with own_namespaces(request, folder / "state") as stack, replicas(folder / "plane", app, stack) as found:
        yield found


@pytest.fixture
def three(lab: Replicas) -> Replicas:
    """All three, whatever the test before did."""
    lab.whole()
    return lab


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name in ("a.old", "b.old", "c.new"):
        (tmp_path / name).touch()
    return tmp_path


def left(work: Path) -> list[str]:
    return sorted(one.name for one in work.iterdir())


async def _asked(client: Client, job_id: str) -> dict[str, Any]:
    """The job once it asks."""
    async with asyncio.timeout(60):
        while not (job := await client.get(job_id))["questions"]:
            await asyncio.sleep(0.02)
    return job


@pytest.mark.leaks("what is started again belongs to the module")
@pytest.mark.req("GATE-16.1", "GATE-16.3", "GATE-11")
async def test_a_question_outlives_actor_sidecar_and_all_gateways_and_any_replica_takes_the_answer(
    three: Replicas, work: Path
) -> None:
    async with Client(three.url) as client:
        job_id = (await client.start("clean", {"folder": str(work)}))["job_id"]
        await _asked(client, job_id)
        for number in range(COUNT):
            await in_thread(three.kill, number)
        await in_thread(three.end_actors, signal.SIGKILL)
        (work / "d.old").touch()  # what was found was found once
        await in_thread(three.whole)
        await in_thread(three.start_actors)
        async with Client(three.direct(2)) as last:
            assert (await last.get(job_id))["state"] == "paused"
            assert (await last.answer(job_id, QUESTION, {"value": True}))["questions"] == []
        done = await client.result(job_id, timeout_s=60)
        (question,) = await client.questions(job_id)
    assert (done["state"], done["result"]) == ("succeeded", {"deleted": [str(work / "a.old"), str(work / "b.old")]})
    assert left(work) == ["c.new", "d.old"]
    assert (question["question_id"], question["state"]) == (QUESTION, "answered")


@pytest.mark.req("GATE-03.3", "GATE-16.1", "GATE-11")
async def test_a_task_is_read_answered_and_cancelled_on_other_replicas_than_the_one_that_began_it(
    three: Replicas, work: Path
) -> None:
    arguments = {"name": "clean_as_task", "arguments": {"folder": str(work)}}
    async with httpx2.AsyncClient(timeout=60) as http:
        tasks = [await _mcp(http, three.direct(0), "tools/call", arguments, "clean_as_task") for _ in range(2)]
        assert [task["resultType"] for task in tasks] == ["task", "task"]
        first, second = (task["taskId"] for task in tasks)
        for number in range(COUNT):
            for task_id in (first, second):
                found = await _until(http, three.direct(number), task_id, "input_required")
                assert list(found["inputRequests"]) == [QUESTION]
        answer = {"taskId": first, "inputResponses": {QUESTION: YES}}
        assert (await _mcp(http, three.direct(1), "tasks/update", answer, first))["resultType"] == "complete"
        await _mcp(http, three.direct(2), "tasks/cancel", {"taskId": second}, second)
        for number in range(COUNT):
            done = await _until(http, three.direct(number), first, "completed")
            assert len(done["result"]["structuredContent"]["deleted"]) == 2
            await _until(http, three.direct(number), second, "cancelled")
    assert left(work) == ["c.new"]


@pytest.mark.req("GATE-16.1", "GATE-02.1", "GATE-11")
@pytest.mark.parametrize("era", ["legacy", REVISION])
async def test_the_official_client_is_asked_through_the_proxy_in_both_revisions(
    three: Replicas, work: Path, era: str
) -> None:
    """Its answers reach whichever replica is next in turn."""
    asked: list[str] = []

    async def answer(context: object, params: ElicitRequestParams) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"value": True})

    async with McpClient(f"{three.url}/mcp", mode=era, elicitation_callback=answer) as client:
        for _ in range(COUNT):
            (work / "again.old").touch()
            result = await client.call_tool("clean", {"folder": str(work)})
            assert not result.is_error, result
    assert len(asked) == COUNT
    assert left(work) == ["c.new"]


async def _until(http: httpx2.AsyncClient, url: str, task_id: str, status: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (found := await _mcp(http, url, "tasks/get", {"taskId": task_id}, task_id))["status"] != status:
            await asyncio.sleep(0.02)
    return found


async def _mcp(http: httpx2.AsyncClient, url: str, method: str, params: dict[str, Any], named: str) -> dict[str, Any]:
    """The result of one request of the newer revision, by a client that takes tasks and forms."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": REVISION,
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}, "extensions": {TASKS: {}}},
    }
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": REVISION,
        "mcp-method": method,
        "mcp-name": named,
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    response = await http.post(f"{url}/mcp", json=body, headers=headers)
    answer = response.json()
    assert "result" in answer, answer
    result: dict[str, Any] = answer["result"]
    return result
