"""The tasks extension on the wire: handles, what they tell, answers, cancels, streams; and questions without tasks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.client import Client
from mcp_types import ElicitRequestParams, ElicitResult

from groundplane.gateway.mcp.questions import Questions
from groundplane.jobs.port import Job, JobState, Question, Retention
from groundplane.security.access import LOCAL
from served_gateway import Gate, House, actors, asking_actor, echo, eventually, fail, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

TASKS = "io.modelcontextprotocol/tasks"
PROTOCOL = "2026-07-28"
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
ASKED = Question(question_id="ask.0.user", message="Who?", schema=NAME, envelope_id="")
SURE = Question(question_id="ask.0.sure", message="Sure?", schema=NAME, envelope_id="")
SAMPLE = Question(
    question_id="ask.0.model", kind="sample", envelope_id="",
    params={"messages": [{"role": "user", "content": {"type": "text", "text": "Hi"}}], "maxTokens": 5},
)  # fmt: skip
ALICE = {"action": "accept", "content": {"name": "Alice"}}


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    tools = (
        tool("slow", "gate", task_after_s=0.0),
        tool("quick", "echo", task_after_s=30.0),
        tool("never", "echo", task="never", task_after_s=0.0),
        tool("must", "echo", task="required", task_after_s=0.0),
        tool("fail", task_after_s=0.0),
        tool("stuck", task_after_s=0.0),
        tool("late", "stuck", task_after_s=0.0, timeout_s=0.3),
        tool("ask", task_after_s=0.0),
        tool("ask_first", "ask", task_after_s=30.0),
    )
    async with house(tmp_path, *tools) as opened:
        yield opened


class Caller:
    """A client of the newer revision, by hand."""

    def __init__(self, http: httpx2.AsyncClient, *, tasks: bool = True, **capabilities: Any) -> None:
        extensions = {"extensions": {TASKS: {}}} if tasks else {}
        self._http = http
        self._meta = {
            "io.modelcontextprotocol/protocolVersion": PROTOCOL,
            "io.modelcontextprotocol/clientCapabilities": {**capabilities, **extensions},
        }

    def request(self, method: str, params: dict[str, Any], named: str | None) -> dict[str, Any]:
        headers = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": PROTOCOL,
            "mcp-method": method,
            **({"mcp-name": named} if named is not None else {}),
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": self._meta}}
        return {"json": body, "headers": headers}

    async def send(self, method: str, params: dict[str, Any], named: str | None = None) -> httpx2.Response:
        return await self._http.post("/mcp", **self.request(method, params, named))

    async def ask(self, method: str, params: dict[str, Any], named: str | None = None) -> dict[str, Any]:
        """The result, or the error, of the last frame."""
        response = await self.send(method, params, named)
        text = response.text.rpartition("data: ")[2] if "event-stream" in response.headers["content-type"] else None
        found: dict[str, Any] = json.loads(text) if text is not None else response.json()
        return dict(found.get("result") or found["error"])

    async def call(self, name: str, arguments: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        return await self.ask("tools/call", {"name": name, "arguments": arguments or {}, **more}, name)

    async def task(self, method: str, task_id: str, **more: Any) -> dict[str, Any]:
        return await self.ask(f"tasks/{method}", {"taskId": task_id, **more}, task_id)

    async def until(self, task_id: str, status: str) -> dict[str, Any]:
        async def reached() -> dict[str, Any] | None:
            found = await self.task("get", task_id)
            return found if found["status"] == status else None

        found: dict[str, Any] = await eventually(reached, 30)
        return found


@pytest.mark.req("GATE-03.3")
async def test_a_task_is_a_job_that_can_be_read_when_its_handle_arrives(one: House) -> None:
    gate = Gate()
    one.jobs.retention = Retention(jobs_s=90.0)
    async with actors(one, {"gate": gate}), one.http() as http:
        caller = Caller(http)
        handle = await caller.call("slow", {"n": 1})
        job = await one.jobs.get(handle["taskId"])
        assert handle["resultType"] == "task"
        assert handle.keys() & {"result", "error", "inputRequests", "requestState", "task"} == set()
        assert (handle["status"], handle["ttlMs"]) == ("working", 90_000)
        await gate.reached.wait()
        assert (await caller.task("get", job.job_id))["status"] == "working"
        gate.opened.set()
        done = await caller.until(job.job_id, "completed")
    assert (done["resultType"], done["result"]["structuredContent"]) == ("complete", {"n": 1})
    assert not done["result"]["isError"]


@pytest.mark.req("GATE-03.3")
async def test_a_tool_says_whether_its_calls_become_tasks(one: House) -> None:
    async with actors(one, {"echo": echo}), one.http() as http:
        with_tasks, without = Caller(http), Caller(http, tasks=False)
        assert (await with_tasks.call("quick"))["resultType"] == "complete"
        assert (await with_tasks.call("never"))["resultType"] == "complete"
        assert (await with_tasks.call("must"))["resultType"] == "task"
        assert (await without.call("quick", task={"ttl": 1}))["resultType"] == "complete"
        refused = await without.send("tools/call", {"name": "must", "arguments": {}}, "must")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32021)
        assert refused.json()["error"]["data"]["requiredCapabilities"] == {"extensions": {TASKS: {}}}
    assert len((await one.jobs.list_jobs()).items) == 4


@pytest.mark.req("GATE-03.3")
async def test_what_the_tool_raised_is_an_answer_and_what_never_came_is_a_failure(one: House) -> None:
    async with actors(one, {"fail": fail}), one.http() as http:
        caller = Caller(http)
        raised = await caller.until((await caller.call("fail"))["taskId"], "completed")
        late = await caller.until((await caller.call("late"))["taskId"], "failed")
    assert raised["result"]["isError"]
    assert raised["result"]["content"][0]["text"] == "the handler is not amused"
    assert (late["error"]["code"], "result" in late) == (-32603, False)
    assert late["error"]["data"]["code"] == "deadline_exceeded"


@pytest.mark.req("GATE-03.3")
async def test_cancel_is_acknowledged_also_when_there_is_nothing_to_cancel(one: House) -> None:
    async with actors(one, {"echo": echo}), one.http() as http:
        caller = Caller(http)
        for name, status in (("stuck", "cancelled"), ("must", "completed")):
            task_id = (await caller.call(name))["taskId"]
            if status == "completed":
                await caller.until(task_id, status)
            acknowledged = await caller.task("cancel", task_id)
            assert acknowledged.keys() - {"_meta"} == {"resultType"}
            assert (await caller.until(task_id, status))["status"] == status


@pytest.mark.req("GATE-03.3", "GATE-02")
async def test_methods_of_tasks_are_refused_without_the_extension_the_header_or_a_task(one: House) -> None:
    async with one.http() as http:
        caller, without = Caller(http), Caller(http, tasks=False)
        task_id = (await caller.call("stuck"))["taskId"]
        for method, more in (("get", {}), ("cancel", {}), ("update", {"inputResponses": {}})):
            params = {"taskId": task_id, **more}
            assert (await without.task(method, task_id, **more))["code"] == -32021
            assert (await caller.ask(f"tasks/{method}", params, "another"))["code"] == -32020
            assert (await caller.ask(f"tasks/{method}", params))["code"] == -32020
            assert (await caller.task(method, "no-such-task", **more))["code"] == -32602
        for method in ("tasks/result", "tasks/list"):
            assert (await caller.ask(method, {"taskId": task_id}, task_id))["code"] == -32601
    async with Client(f"{one.url}/mcp", mode="legacy") as old:
        assert TASKS not in (old.server_capabilities.extensions or {})
    assert (await one.jobs.get(task_id)).state is JobState.PENDING


@pytest.mark.req("GATE-03.3", "GATE-16.1", "GATE-16.2")
async def test_a_task_asks_and_goes_on_when_all_its_questions_are_answered(one: House) -> None:
    async with asking_actor(one, "ask", [ASKED, SURE, SAMPLE]), one.http() as http:
        caller = Caller(http, elicitation={}, sampling={})
        task_id = (await caller.call("ask"))["taskId"]
        asked = (await caller.until(task_id, "input_required"))["inputRequests"]
        assert {key: one["method"] for key, one in asked.items()} == {
            "ask.0.user": "elicitation/create",
            "ask.0.sure": "elicitation/create",
            "ask.0.model": "sampling/createMessage",
        }
        assert asked["ask.0.user"]["params"] == {"message": "Who?", "requestedSchema": NAME}
        assert asked["ask.0.model"]["params"] == SAMPLE.params
        only_forms = await Caller(http, elicitation={}).task("get", task_id)
        assert set(only_forms["inputRequests"]) == {"ask.0.user", "ask.0.sure"}
        bad = {"ask.0.user": {"action": "accept", "content": {"name": 7}}}
        refused = await caller.task("update", task_id, inputResponses=bad)
        assert (refused["code"], "content.name: 7" in refused["message"]) == (-32602, True)
        first = {"ask.0.user": ALICE, "unknown": {"action": "accept"}}
        assert (await caller.task("update", task_id, inputResponses=first))["resultType"] == "complete"
        assert set((await caller.task("get", task_id))["inputRequests"]) == {"ask.0.sure", "ask.0.model"}
        said = {"role": "assistant", "content": {"type": "text", "text": "Hello"}, "model": "m"}
        rest = {"ask.0.sure": {"action": "decline"}, "ask.0.model": said, "ask.0.user": {"action": "decline"}}
        await caller.task("update", task_id, inputResponses=rest)
        done = await caller.until(task_id, "completed")
    answers = done["result"]["structuredContent"]
    assert answers["ask.0.user"] == {"action": "accept", "content": {"name": "Alice"}}
    assert answers["ask.0.sure"] == {"action": "decline", "content": None}
    assert answers["ask.0.model"]["content"]["content"]["text"] == "Hello"


@pytest.mark.req("GATE-03.2", "GATE-16.1")
async def test_a_call_that_asks_is_repeated_with_the_answer_and_goes_on_with_the_same_job(one: House) -> None:
    second = Question(question_id="ask.1.user", message="And who else?", schema=NAME, envelope_id="")
    async with asking_actor(one, "ask", [ASKED], [second]), one.http() as http:
        caller = Caller(http, tasks=False, elicitation={})
        asked = await caller.call("ask")
        assert asked["resultType"] == "input_required"
        assert set(asked["inputRequests"]) == {"user"}
        for state, arguments in (
            (asked["requestState"][:-4] + "AAAA", {}),
            ("x", {}),
            (asked["requestState"], {"a": 1}),
        ):
            refused = await caller.call("ask", arguments, inputResponses={"user": ALICE}, requestState=state)
            assert (refused["code"], "requestState" in refused["message"]) == (-32602, True)
        again = await caller.call("ask", inputResponses={"user": ALICE}, requestState=asked["requestState"])
        assert again["inputRequests"]["user"]["params"]["message"] == "And who else?"  # no answer serves twice
        assert again["requestState"] != asked["requestState"]
        done = await caller.call("ask", inputResponses={"user": ALICE}, requestState=again["requestState"])
    assert set(done["structuredContent"]) == {"ask.0.user", "ask.1.user"}
    assert len((await one.jobs.list_jobs()).items) == 1


@pytest.mark.req("GATE-03.2", "GATE-16.1")
async def test_an_answer_may_come_with_the_first_call_and_a_client_that_cannot_answer_leaves_no_job(one: House) -> None:
    async with asking_actor(one, "ask", [ASKED]), one.http() as http:
        done = await Caller(http, tasks=False, elicitation={}).call("ask", inputResponses={"user": ALICE, "x": ALICE})
        assert done["structuredContent"]["ask.0.user"]["content"] == {"name": "Alice"}
        refused = await Caller(http, tasks=False).call("ask")
        assert (refused["code"], refused["data"]["requiredCapabilities"]) == (-32021, {"elicitation": {}})
        await eventually(lambda: _states(one, {"succeeded", "cancelled"}))


async def _states(one: House, wanted: set[str]) -> bool:
    return {job.state.value for job in (await one.jobs.list_jobs()).items} == wanted


@pytest.mark.req("GATE-03.3", "GATE-16.1")
async def test_what_is_asked_before_the_handle_is_asked_by_the_call_itself(one: House) -> None:
    async with asking_actor(one, "ask", [ASKED]), one.http() as http:
        caller = Caller(http, elicitation={})
        asked = await caller.call("ask_first")
        assert (asked["resultType"], "taskId" in asked) == ("input_required", False)
        handle = await caller.call("ask_first", inputResponses={"user": ALICE}, requestState=asked["requestState"])
        assert (handle["resultType"], "requestState" in handle) == ("task", False)
        done = await caller.until(handle["taskId"], "completed")
    assert done["result"]["structuredContent"]["ask.0.user"]["content"] == {"name": "Alice"}


@pytest.mark.req("GATE-03.1", "GATE-16.1")
async def test_an_older_client_is_asked_on_the_stream_of_its_call(one: House) -> None:
    seen: list[str] = []

    async def elicit(context: Any, params: ElicitRequestParams) -> ElicitResult:
        seen.append(params.message)
        return ElicitResult(action="accept", content={"name": "Alice"})

    async with asking_actor(one, "ask", [ASKED]):
        async with Client(f"{one.url}/mcp", mode="legacy", elicitation_callback=elicit) as old:
            result = await old.call_tool("ask", {})
        assert (seen, result.is_error) == (["Who?"], False)
        assert result.structured_content["ask.0.user"]["content"] == {"name": "Alice"}
        async with Client(f"{one.url}/mcp", mode="legacy") as unable:
            refused = await unable.call_tool("ask", {})
    assert refused.is_error
    assert "does not declare elicitation" in refused.content[0].text  # type: ignore[union-attr]


@pytest.mark.req("GATE-03.3", "GATE-16.1")
async def test_a_listener_is_told_a_task_at_once_and_after_every_change(one: House) -> None:
    async with asking_actor(one, "ask", [ASKED]), one.http() as http:
        caller = Caller(http, elicitation={})
        task_id = (await caller.call("ask"))["taskId"]
        await caller.until(task_id, "input_required")
        wish = {"notifications": {"taskIds": [task_id], "toolsListChanged": True, "promptsListChanged": True}}
        async with http.stream("POST", "/mcp", **caller.request("subscriptions/listen", wish, None)) as stream:
            async with aclosing(_notices(stream)) as notices, asyncio.timeout(30):
                first = await anext(notices)
                assert first["method"] == "notifications/subscriptions/acknowledged"
                assert first["params"]["notifications"] == {"toolsListChanged": True, "taskIds": [task_id]}
                told = await anext(notices)
                assert (told["method"], told["params"]["status"]) == ("notifications/tasks", "input_required")
                assert told["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == 1
                await caller.task("update", task_id, inputResponses={"user": ALICE})
                while told["params"]["status"] != "completed":
                    told = await anext(notices)
        assert told["params"]["result"]["structuredContent"]["ask.0.user"]["content"] == {"name": "Alice"}
        assert (await caller.ask("subscriptions/listen", {"notifications": {"taskIds": ["nobody"]}}))["code"] == -32602
        without = Caller(http, tasks=False)
        assert (await without.ask("subscriptions/listen", wish))["code"] == -32021


@pytest.mark.req("GATE-03.3")
async def test_a_listener_whose_tasks_cannot_be_read_any_more_is_let_go_to_listen_anew(one: House) -> None:
    async with one.http() as http:
        caller = Caller(http)
        task_id = (await caller.call("ask"))["taskId"]
        wish = {"notifications": {"taskIds": [task_id]}}
        async with http.stream("POST", "/mcp", **caller.request("subscriptions/listen", wish, None)) as stream:
            async with aclosing(_notices(stream)) as notices, asyncio.timeout(30):
                await anext(notices)
                await anext(notices)
                await one.jobs.aclose()
                *_, last = [notice async for notice in notices]
    assert last["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == 1


async def _notices(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


@pytest.mark.req("GATE-03.1", "GATE-16.1")
async def test_an_older_client_whose_answer_does_not_fit_is_asked_again(one: House) -> None:
    given = iter([{"name": 5}, {"name": "Alice"}])

    async def elicit(context: Any, params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="accept", content=next(given))

    async with (
        asking_actor(one, "ask", [ASKED]),
        Client(f"{one.url}/mcp", mode="legacy", elicitation_callback=elicit) as old,
    ):
        result = await asyncio.wait_for(old.call_tool("ask", {}), 30)
    assert result.structured_content["ask.0.user"]["content"] == {"name": "Alice"}


@pytest.mark.req("GATE-03.1", "GATE-16.1")
async def test_a_call_of_an_older_client_goes_on_when_somebody_else_answers(one: House) -> None:
    asked = asyncio.Event()

    async def elicit(context: Any, params: ElicitRequestParams) -> ElicitResult:
        asked.set()
        await asyncio.Event().wait()  # its user has gone
        raise AssertionError

    async with asking_actor(one, "ask", [ASKED]), one.http() as http:
        async with Client(f"{one.url}/mcp", mode="legacy", elicitation_callback=elicit) as old:
            calling = asyncio.create_task(old.call_tool("ask", {}))
            await asyncio.wait_for(asked.wait(), 30)
            (job,) = (await one.jobs.list_jobs()).items
            answer = {"content": {"name": "Alice"}}
            done = await http.post(f"/v1/jobs/{job.job_id}/questions/ask.0.user/answer", json=answer)
            assert done.status_code == 200
            result = await asyncio.wait_for(calling, 30)
    assert result.structured_content["ask.0.user"]["content"] == {"name": "Alice"}


@pytest.mark.req("GATE-16.1")
async def test_an_answer_that_lost_against_the_end_of_its_job_finds_the_job_as_it_is(one: House) -> None:
    async with asking_actor(one, "ask", [ASKED]), one.http() as http:
        started = await http.post("/v1/jobs", json={"tool": "ask", "arguments": {}})
        job_id = started.json()["job_id"]
        asking = await eventually(lambda: _asking(one, job_id), 30)
        await one.jobs.cancel(job_id)
        questions = Questions(one.gateway._services)
        found = await questions.give(LOCAL, asking, asking.questions[0], ALICE)
    assert (found.state, found.questions) == (JobState.CANCELLED, [])


async def _asking(one: House, job_id: str) -> Job | None:
    job = await one.jobs.get(job_id)
    return job if job.questions else None
