"""MCP calls over the durable store: the SDK's own client in both eras, cancellation, resumption, isolation, drain."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from mcp import StdioServerParameters
from mcp.client.client import Client
from mcp.client.subscriptions import ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import ToolListChangedNotification

from groundplane.core.envelope import Envelope
from groundplane.gateway import ToolTable
from groundplane.gateway.mcp.calls import IDEMPOTENCY_META
from groundplane.gateway.mcp.results import JOB_META
from groundplane.jobs.port import JobQuery, JobState
from served_gateway import VALUE, Gate, House, actors, double, echo, eventually, fail, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

ERAS = ("legacy", "2026-07-28")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
JSON = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
MODERN = {**JSON, "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call"}
MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    tools = (
        tool("double", schema=VALUE),
        tool("pipeline", "double", "echo", schema=VALUE),
        tool("echo"),
        tool("fail"),
        tool("slow", "gate"),
        tool("tied", "gate", on_disconnect="cancel"),
        tool("short", "stuck", timeout_s=0.3),
        tool("stuck"),
    )
    async with house(tmp_path, *tools, retry_ms=50) as opened:
        yield opened


@asynccontextmanager
async def client(one: House, era: str) -> AsyncIterator[Client]:
    async with Client(f"{one.url}/mcp", mode=era) as opened:
        yield opened


def text_of(result: Any) -> str:
    return str(result.content[0].text)


@pytest.mark.req("GATE-02", "GATE-03.1", "GATE-03.2", "GATE-06.3")
@pytest.mark.parametrize("era", ERAS)
async def test_a_call_returns_the_result_with_progress_on_the_way(one: House, era: str) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def progress(value: float, total: float | None, message: str | None) -> None:
        seen.append((value, total, message))

    async with actors(one, {"double": double, "echo": echo}), client(one, era) as mcp:
        assert {found.name for found in (await mcp.list_tools()).tools} >= {"double", "pipeline"}
        result = await mcp.call_tool("pipeline", {"value": 21}, progress_callback=progress)
    assert not result.is_error
    assert result.structured_content == {"value": 42}
    assert json.loads(text_of(result)) == {"value": 42}
    job = await one.jobs.get(result.meta[JOB_META])
    assert (job.state, job.result) == (JobState.SUCCEEDED, {"value": 42})
    values = [value for value, _, _ in seen]
    assert values == sorted(set(values))
    assert {5.0, 25.0, 55.0} <= set(values)
    assert max(values) < 100
    assert (25.0, 100.0, "doubling") in seen


@pytest.mark.req("GATE-04.4", "GATE-02")
@pytest.mark.parametrize("era", ERAS)
async def test_bad_arguments_are_an_error_result_that_names_the_field_and_makes_no_job(one: House, era: str) -> None:
    async with client(one, era) as mcp:
        for arguments, message in (
            ({}, "arguments.value: is missing; tool 'double' needs an integer"),
            ({"value": "x"}, "arguments.value: 'x' is not an integer"),
            ({"value": 1, "vlaue": 2}, "arguments.vlaue: 2 is unknown to tool 'double'; did you mean 'value'?"),
        ):
            result = await mcp.call_tool("double", arguments)
            assert result.is_error
            assert text_of(result) == message
        with pytest.raises(MCPError, match="tool: 'doubel' does not exist; did you mean 'double'") as unknown:
            await mcp.call_tool("doubel", {})
        assert unknown.value.error.code == -32602
    assert (await one.jobs.list_jobs(JobQuery())).items == []


@pytest.mark.req("GATE-06.4")
@pytest.mark.parametrize("era", ERAS)
async def test_a_failed_and_a_timed_out_job_are_error_results_with_their_text(one: House, era: str) -> None:
    async with actors(one, {"fail": fail}), client(one, era) as mcp:
        failed = await mcp.call_tool("fail", {})
        late = await mcp.call_tool("short", {})
    assert (failed.is_error, text_of(failed)) == (True, "the handler is not amused")
    assert failed.structured_content is not None
    assert failed.structured_content["state"] == "failed"
    assert late.is_error
    assert late.structured_content is not None
    assert late.structured_content["state"] == "timed_out"


@pytest.mark.req("GATE-10")
@pytest.mark.parametrize("era", ERAS)
async def test_meta_carries_an_idempotency_key_and_the_trace_context(one: House, era: str) -> None:
    meta: Any = {IDEMPOTENCY_META: "order 7", "traceparent": TRACE}
    async with actors(one, {"double": double}), client(one, era) as mcp:
        first = await mcp.call_tool("double", {"value": 1}, meta=meta)
        again = await mcp.call_tool("double", {"value": 1}, meta=meta)
        other = await mcp.call_tool("double", {"value": 2}, meta=meta)
    assert first.meta[JOB_META] == again.meta[JOB_META]
    assert again.structured_content == {"value": 2}
    assert other.is_error
    assert "was used for other work" in text_of(other)
    job = await one.jobs.get(first.meta[JOB_META])
    assert job.trace == TRACE


@pytest.mark.req("GATE-10")
async def test_the_trace_context_of_meta_reaches_the_envelope(one: House) -> None:
    async with client(one, "2026-07-28") as mcp:
        call = asyncio.create_task(mcp.call_tool("stuck", {}, meta={"traceparent": TRACE}))  # type: ignore[typeddict-unknown-key]
        await eventually(lambda: _ready(one, "stuck"))
        async with one.queues.consume("stuck", max_in_flight=1) as consumer:
            (delivery,) = await consumer.receive(1, 5.0)
            assert Envelope.from_bytes(delivery.payload).headers["traceparent"] == TRACE
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def _ready(one: House, queue: str) -> bool:
    return (await one.queues.depth(queue)).ready > 0


async def _only_job(one: House) -> Any:
    items = (await one.jobs.list_jobs(JobQuery())).items
    return items[0] if items else None


@pytest.mark.req("GATE-03.4")
@pytest.mark.parametrize(("name", "state"), [("slow", JobState.RUNNING), ("tied", JobState.CANCELLED)])
async def test_a_disconnect_detaches_or_cancels_as_the_tool_says(one: House, name: str, state: JobState) -> None:
    gate = Gate()
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    params = {"name": name, "arguments": {"a": 1}, "_meta": {**MODERN_META, "progressToken": 1}}
    async with actors(one, {"gate": gate}):
        headers = {**MODERN, "mcp-name": name}
        async with one.http() as http:
            async with http.stream("POST", "/mcp", json={**body, "params": params}, headers=headers) as response:
                assert response.status_code == 200
                await gate.reached.wait()
                job = await _only_job(one)
        await eventually(lambda: _listeners(one, 0))
        await eventually(lambda: _is(one, job.job_id, state))
        gate.opened.set()
        done = await one.jobs.wait_finished(job.job_id, 10)
    assert done is not None
    assert done.state is (JobState.SUCCEEDED if state is JobState.RUNNING else JobState.CANCELLED)


async def _listeners(one: House, count: int) -> bool:
    return f"{count} subscriptions" in repr(one.gateway._services.feed)


async def _is(one: House, job_id: str, state: JobState) -> bool:
    return (await one.jobs.get(job_id)).state is state


@pytest.mark.req("GATE-10.1")
async def test_two_idempotency_keys_are_refused_and_start_nothing(one: House) -> None:
    params = {"name": "slow", "arguments": {"a": 1}, "_meta": MODERN_META}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    keys = [("idempotency-key", "a"), ("idempotency-key", "b")]
    async with one.http() as http:
        answer = await http.post("/mcp", json=body, headers=[*{**MODERN, "mcp-name": "slow"}.items(), *keys])
    assert "idempotency-key: is there 2 times; give it once" in answer.text
    assert (await one.jobs.list_jobs(JobQuery())).items == []


class Legacy:
    """A session of the older revision, by hand."""

    def __init__(self, http: httpx2.AsyncClient, version: str = "2025-11-25") -> None:
        self.http = http
        self.headers = {**JSON, "mcp-protocol-version": version}
        self._version = version

    async def open(self, **capabilities: Any) -> Legacy:
        params = {
            "protocolVersion": self._version,
            "capabilities": capabilities,
            "clientInfo": {"name": "test", "version": "1"},
        }
        response = await self.post(1, "initialize", params)
        self.headers["mcp-session-id"] = response.headers["mcp-session-id"]
        await self.post(None, "notifications/initialized")
        return self

    async def post(self, number: int | None, method: str, params: Any = None) -> httpx2.Response:
        return await self.http.post("/mcp", json=self.body(number, method, params), headers=self.headers)

    @staticmethod
    def body(number: int | None, method: str, params: Any = None) -> dict[str, Any]:
        body = {"jsonrpc": "2.0", "method": method, **({"id": number} if number is not None else {})}
        return {**body, "params": params} if params is not None else body


async def _frames(response: httpx2.Response) -> AsyncIterator[dict[str, str]]:
    text = ""
    async for chunk in response.aiter_text():
        text += chunk
        *frames, text = re.split(r"\r\n\r\n", text)
        for one in frames:
            yield dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in one.split("\r\n"))


@pytest.mark.req("GATE-03.1", "GATE-02")
async def test_a_broken_stream_of_the_older_revision_resumes_without_gap_and_closes_after_the_result(
    one: House,
) -> None:
    gate = Gate()
    async with actors(one, {"gate": gate}), one.http() as http:
        session = await Legacy(http).open()
        call = session.body(5, "tools/call", {"name": "slow", "arguments": {"n": 5}, "_meta": {"progressToken": "p"}})
        async with http.stream("POST", "/mcp", json=call, headers=session.headers) as response:
            async with aclosing(_frames(response)) as frames:
                priming = await anext(frames)
                assert (priming["data"], priming["retry"]) == ("", "50")
                await anext(frames)  # progress 10
        await gate.reached.wait()
        headers = {**session.headers, "last-event-id": priming["id"]}
        async with http.stream("GET", "/mcp", headers=headers) as response:
            async with aclosing(_frames(response)) as frames:
                replayed = [json.loads((await anext(frames))["data"])["params"]["progress"]]
                gate.opened.set()
                rest = [json.loads(frame["data"]) async for frame in frames if frame.get("data")]
    messages = [found for found in rest if "result" not in found]
    assert replayed + [found["params"]["progress"] for found in messages] == [10.0, 50.0]
    assert rest[-1]["id"] == 5
    assert rest[-1]["result"]["structuredContent"] == {"n": 5}


@pytest.mark.req("GATE-03.1")
async def test_one_session_never_replays_the_result_of_another(one: House) -> None:
    async with actors(one, {"echo": echo}), one.http() as http:
        mine, other = await Legacy(http).open(), await Legacy(http).open()
        secret = {"name": "echo", "arguments": {"secret": "mine alone"}}
        response = await mine.post(7, "tools/call", secret)
        ids = re.findall(r"id: (\S+)", response.text)
        await other.post(7, "ping")
        assert ids
        for number in ids:
            headers = {**other.headers, "last-event-id": number}
            async with http.stream("GET", "/mcp", headers=headers) as replay:
                text = ""
                try:
                    async with asyncio.timeout(0.3):
                        async for chunk in replay.aiter_text():
                            text += chunk
                except TimeoutError:
                    pass  # a stream of this session that goes on
            assert "mine alone" not in text


@pytest.mark.req("GATE-03.1", "GATE-03.4")
async def test_cancelled_by_notification_ends_the_job_and_a_disconnect_does_not(one: House) -> None:
    gate = Gate()
    async with actors(one, {"gate": gate}), one.http() as http:
        session = await Legacy(http).open()
        call = session.body(9, "tools/call", {"name": "slow", "arguments": {}, "_meta": {"progressToken": 9}})
        async with http.stream("POST", "/mcp", json=call, headers=session.headers) as response:
            assert response.status_code == 200
            await gate.reached.wait()
        job = await _only_job(one)
        assert await _is(one, job.job_id, JobState.RUNNING)
        await session.post(None, "notifications/cancelled", {"requestId": 9, "reason": "enough"})
        await eventually(lambda: _is(one, job.job_id, JobState.CANCELLED))


@pytest.mark.req("GATE-01", "GATE-02")
async def test_a_reload_tells_the_clients_of_both_revisions_that_the_tools_changed(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text("tools: [{name: first, route: [echo]}]")
    told = asyncio.Event()

    async def handler(message: Any) -> None:
        if isinstance(message, ToolListChangedNotification):
            told.set()

    async with house(tmp_path, table=ToolTable(files=[path])) as one:
        async with (
            Client(f"{one.url}/mcp", mode="legacy", message_handler=handler) as old,
            client(one, "2026-07-28") as new,
            new.listen(tools_list_changed=True) as events,
        ):
            assert [found.name for found in (await old.list_tools()).tools] == ["first"]
            path.write_text("tools: [{name: second, route: [echo]}]")
            assert one.gateway.reload()
            assert isinstance(await asyncio.wait_for(anext(aiter(events)), 30), ToolsListChanged)
            await asyncio.wait_for(told.wait(), 30)
            for mcp in (old, new):
                assert [found.name for found in (await mcp.list_tools()).tools] == ["second"]


@pytest.mark.req("GATE-13", "GATE-03.2")
async def test_a_call_that_cannot_be_resumed_ends_while_the_gateway_drains(one: House) -> None:
    gate = Gate()
    async with actors(one, {"gate": gate}), client(one, "2026-07-28") as mcp:
        await mcp.list_tools()  # the client checks results against it
        call = asyncio.create_task(mcp.call_tool("slow", {"n": 1}))
        await gate.reached.wait()
        one.gateway.drain()
        gate.opened.set()
        result = await asyncio.wait_for(call, 30)
    assert (result.is_error, result.structured_content) == (False, {"n": 1})


@pytest.mark.req("GATE-13", "GATE-03.2")
async def test_a_call_that_waits_to_the_end_of_the_grace_is_to_be_repeated_and_goes_on_with_its_job(one: House) -> None:
    params = {"name": "stuck", "arguments": {}, "_meta": MODERN_META}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    async with one.http() as http:
        call = asyncio.create_task(http.post("/mcp", json=body, headers={**MODERN, "mcp-name": "stuck"}))
        await eventually(lambda: _listeners(one, 1))
        one.gateway.drain()
        one.gateway.end()
        result = (await asyncio.wait_for(call, 30)).json()["result"]
    job = await _only_job(one)
    assert (result["resultType"], "inputRequests" in result) == ("input_required", False)
    assert result["requestState"]
    assert job.state is JobState.PENDING


@pytest.mark.req("GATE-13", "GATE-03.1")
async def test_a_drain_ends_the_stream_of_an_older_call_without_an_answer_so_that_its_client_resumes(
    one: House,
) -> None:
    async with one.http() as http:
        session = await Legacy(http).open()
        call = session.body(4, "tools/call", {"name": "stuck", "arguments": {}})
        async with http.stream("POST", "/mcp", json=call, headers=session.headers) as response:
            async with aclosing(_frames(response)) as frames:
                assert (await anext(frames))["data"] == ""
                await eventually(lambda: _listeners(one, 1))
                one.gateway.drain()
                assert [frame async for frame in frames] == []
    assert (await _only_job(one)).state is JobState.PENDING


@pytest.mark.req("GATE-15", "GATE-02")
@pytest.mark.parametrize("era", ERAS)
async def test_a_fault_of_the_gateway_tells_nothing_of_its_exception(
    one: House, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the password is hunter2")

    async with client(one, era) as mcp:
        monkeypatch.setattr(one.gateway._services.jobs, "create", broken)
        result = await mcp.call_tool("echo", {})
    assert (result.is_error, text_of(result)) == (True, "the gateway failed; its log says why")
    assert "hunter2" not in str(result)


@pytest.mark.req("GATE-04.4")
async def test_arguments_that_no_message_carries_are_an_error_result(one: House) -> None:
    async with one.http() as http:
        session = await Legacy(http).open()
        for arguments in ('{"a": NaN}', '{"a": 99999999999999999999999}', '{"a": ' + "[" * 150 + "]" * 150 + "}"):
            body = '{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"echo","arguments":' + arguments
            response = await http.post("/mcp", content=body + "}}", headers=session.headers)
            if response.status_code == 200:
                assert '"isError":true' in response.text
                assert "arguments.a" in response.text
            else:
                assert response.status_code == 400


@pytest.mark.req("GATE-04.4")
async def test_a_key_that_is_there_twice_is_a_parse_error_and_makes_no_job(one: House) -> None:
    async with one.http() as http:
        session = await Legacy(http).open()
        body = '{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"echo","arguments":{"a":1,"a":2}}}'
        response = await http.post("/mcp", content=body, headers=session.headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32700)
    assert "the key 'a' twice" in response.json()["error"]["message"]
    assert (await one.jobs.list_jobs(JobQuery())).items == []


@pytest.mark.req("GATE-06.7")
@pytest.mark.parametrize("era", ERAS)
async def test_ten_calls_at_once_get_their_own_results(one: House, era: str) -> None:
    async with actors(one, {"double": double}), client(one, era) as mcp:
        results = await asyncio.gather(*(mcp.call_tool("double", {"value": n}) for n in range(10)))
    assert [result.structured_content for result in results] == [{"value": 2 * n} for n in range(10)]


STDIO = """
import asyncio, sys
from pathlib import Path
from groundplane.blobs import Blobs
from groundplane.gateway import Gateway, ToolTable
from groundplane.jobs import Jobs
from groundplane.queues import Queues
from groundplane.mesh.spec import ToolSpec

async def main(state):
    tools = ToolTable([ToolSpec(name="echo", route=["echo"], input_schema={"type": "object"})])
    async with (
        Jobs.open(state=state) as jobs,
        Queues.open(state=state) as queues,
        Blobs.open("embedded://", state=state) as blobs,
        Gateway.open(jobs=jobs, queues=queues, blobs=blobs, tools=tools) as gateway,
    ):
        await gateway.serve_stdio()

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.req("GATE-02")
@pytest.mark.parametrize("era", ERAS)
async def test_stdio_serves_both_revisions_on_the_plane_of_the_state_folder(one: House, era: str) -> None:
    server = StdioServerParameters(command=sys.executable, args=["-c", STDIO, str(one.state)])
    async with actors(one, {"echo": echo}), Client(server, mode=era) as mcp:
        assert [found.name for found in (await mcp.list_tools()).tools] == ["echo"]
        result = await mcp.call_tool("echo", {"text": "over a pipe"})
    assert result.structured_content == {"text": "over a pipe"}
    assert (await one.jobs.get(result.meta[JOB_META])).state is JobState.SUCCEEDED


@pytest.mark.req("GATE-02", "GATE-04.4")
async def test_a_line_that_is_no_strict_json_is_answered_on_stdio_and_the_next_is_served(one: House) -> None:
    def call(number: int, arguments: bytes) -> bytes:
        head = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo","arguments":' % number
        return head + arguments + b"}}"

    started = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    said = [
        msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": started}),
        b'{"jsonrpc":"2.0","method":"notifications/initialized"}',
        b"garbage",
        b"",
        call(2, b'{"text":"a","text":"b"}'),
        call(3, b'{"text":"\xff"}'),
        call(4, b'{"text":"served"}'),
    ]
    pipe = asyncio.subprocess.PIPE
    async with actors(one, {"echo": echo}), asyncio.timeout(90):
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STDIO, str(one.state), stdin=pipe, stdout=pipe
        )
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(b"\n".join(said) + b"\n")
        answers = [msgspec.json.decode(await server.stdout.readline()) for _ in range(5)]
        server.stdin.close()
        assert await server.wait() == 0
    errors = [answer["error"] for answer in answers if answer["id"] is None]
    assert {error["code"] for error in errors} == {-32700}
    assert [error["message"] for error in errors] == [
        "Parse error: the line is not JSON: Expecting value at line 1 column 1",
        "Parse error: the line has the key 'text' twice in one object",
        "Parse error: the line is not UTF-8 at byte 91",
    ]
    (served,) = (answer["result"] for answer in answers if answer["id"] == 4)
    assert served["structuredContent"] == {"text": "served"}
    assert len((await one.jobs.list_jobs()).items) == 1


@pytest.mark.req("GATE-15.1")
@pytest.mark.parametrize("odd", [2**63, -(2**63) - 1, 2**80, "x" * 1001])
async def test_an_id_or_token_that_no_event_can_carry_is_refused_by_name_and_the_session_lives(
    one: House, odd: Any
) -> None:
    async with one.http() as http:
        session = await Legacy(http).open()
        meta = {"_meta": {"progressToken": odd}}
        for field, body in (
            ("params._meta.progressToken", session.body(2, "tools/list", meta)),
            ("id", session.body(odd, "tools/list")),
        ):
            answer = await http.post("/mcp", json=body, headers=session.headers)
            assert answer.status_code == 400
            said = answer.json()["error"]["message"]
            assert said.startswith(f"Invalid request: {field}: ")
            assert said.endswith("neither text of at most 1000 characters nor a whole number of at most 64 bits")
        largest = session.body(2**63 - 1, "tools/list", {"_meta": {"progressToken": -(2**63)}})
        assert (await http.post("/mcp", json=largest, headers=session.headers)).status_code == 200
