"""Sessions of the older MCP revisions on two gateways over one store: adopted, resumed, cancelled, ended on either."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from mcp.client.client import Client
from mcp_types import ToolListChangedNotification

from groundplane.core.errors import Unavailable
from groundplane.core.ids import call_id
from groundplane.gateway import ToolTable
from groundplane.gateway.mcp import sessions as mcp_sessions
from groundplane.gateway.mcp.results import JOB_META
from groundplane.gateway.mcp.resuming import Position
from groundplane.jobs.port import Ask, JobQuery, JobState, Note, OutboxMessage, Question
from pace import at_most
from served_gateway import Gate, House, actors, echo, eventually, fail, house, tool
from wire.test_mcp_lanes import MODERN, MODERN_META, Legacy, _frames

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

TOOLS = (tool("echo"), tool("fail"), tool("slow", "gate"), tool("quiet", "gate", progress=False), tool("stuck"))


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[House, House]]:
    async with (
        house(tmp_path, *TOOLS, retry_ms=50) as one,
        house(tmp_path, *TOOLS, retry_ms=50, upgrade=False) as other,
    ):
        yield one, other


@asynccontextmanager
async def session(one: House, version: str = "2025-11-25") -> AsyncIterator[Legacy]:
    async with one.http() as http:
        yield await Legacy(http, version).open()


@asynccontextmanager
async def moved(legacy: Legacy, to: House) -> AsyncIterator[Legacy]:
    """The same session, whose next requests go to the other replica."""
    async with to.http() as http:
        there = Legacy(http)
        there.headers = dict(legacy.headers)
        yield there


@asynccontextmanager
async def frames(legacy: Legacy, request: dict[str, Any] | None = None, after: str | None = None) -> Any:
    """The events of a POST, or of a GET."""
    headers = dict(legacy.headers) if after is None else {**legacy.headers, "last-event-id": after}
    method = "GET" if request is None else "POST"
    async with legacy.http.stream(method, "/mcp", json=request, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        async with aclosing(_frames(response)) as found:
            yield found


def call(number: int | str, name: str, arguments: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments or {}, **({"_meta": meta} if meta else {})}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def message(frame: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(frame["data"])
    return found


@pytest.mark.req("GATE-11")
async def test_a_session_is_served_by_a_replica_that_never_saw_its_handshake(pair: tuple[House, House]) -> None:
    one, other = pair
    async with session(one) as here, moved(here, other) as there, actors(one, {"echo": echo}):
        listed = await there.post(2, "tools/list")
        assert listed.status_code == 200
        assert '"echo"' in listed.text
        for number, legacy in enumerate((here, there, here, there), 3):
            answer = await legacy.http.post("/mcp", json=call(number, "echo", {"n": number}), headers=legacy.headers)
            assert f'"structuredContent":{{"n":{number}}}' in answer.text


@pytest.mark.req("GATE-11")
@pytest.mark.parametrize("known", [True, False])
async def test_a_stream_resumes_on_any_replica_within_100_ms_and_closes_after_the_result(
    pair: tuple[House, House], known: bool
) -> None:
    """Resumed where the session was served before, and where it is adopted by the resumption itself."""
    one, other = pair
    gate = Gate()
    async with actors(one, {"gate": gate}), session(one) as here, moved(here, other if known else one) as there:
        await there.post(2, "ping")
        async with frames(here, call("five", "slow", {"n": 5}, progressToken="p")) as stream:
            priming = await anext(stream)
            first = await anext(stream)
        assert message(first)["params"]["progress"] == 10.0
        await gate.reached.wait()
        async with moved(here, other) as there:
            began = time.perf_counter()
            async with frames(there, after=first["id"]) as stream:
                second = await anext(stream)
                took = time.perf_counter() - began
                assert message(second)["params"] == {
                    "_meta": {"io.groundplane/event_id": message(second)["params"]["_meta"]["io.groundplane/event_id"]},
                    "message": "waiting", "progress": 50.0, "progressToken": "p", "total": 100.0,
                }  # fmt: skip
                gate.opened.set()
                rest = [message(frame) async for frame in stream if frame.get("data")]
            assert [found.get("id") for found in rest] == ["five"]
            assert rest[0]["result"]["structuredContent"] == {"n": 5}
            fastest = [took]
            for last in (priming["id"], first["id"], second["id"]):  # after the end, from wherever the client stood
                began = time.perf_counter()
                async with frames(there, after=last) as stream:
                    replayed = [message(await anext(stream))]
                    fastest.append(time.perf_counter() - began)
                    replayed += [message(frame) async for frame in stream if frame.get("data")]
                position = Position.decode(last)
                assert position is not None
                progress = [found["params"]["progress"] for found in replayed[:-1]]
                assert (
                    progress == [value for value in (10.0, 50.0, 100.0) if value > position.reported][: len(progress)]
                )
                assert replayed[-1]["result"]["structuredContent"] == {"n": 5}
    assert min(fastest) < at_most(0.1)


@pytest.mark.req("GATE-11")
async def test_the_job_of_a_call_follows_from_session_and_request(pair: tuple[House, House]) -> None:
    one, _ = pair
    async with session(one) as here, actors(one, {"echo": echo}):
        number = here.headers["mcp-session-id"]
        first = await here.http.post("/mcp", json=call(5, "echo", {"n": 1}), headers=here.headers)
        again = await here.http.post("/mcp", json=call(5, "echo", {"n": 1}), headers=here.headers)
        other = await here.http.post("/mcp", json=call(5, "echo", {"n": 2}), headers=here.headers)
    derived = call_id(number, 5)
    assert f'"{JOB_META}":"{derived}"' in first.text
    assert f'"{JOB_META}":"{derived}"' in again.text  # repeated by a proxy: the job that is there
    assert derived not in other.text  # other work under an id that was used: a job of its own
    assert '"structuredContent":{"n":2}' in other.text
    assert len((await one.jobs.list_jobs(JobQuery())).items) == 2


@pytest.mark.req("GATE-11")
async def test_cancelled_on_another_replica_ends_the_job(pair: tuple[House, House]) -> None:
    one, other = pair
    gate = Gate()
    async with actors(one, {"gate": gate}), session(one) as here, moved(here, other) as there:
        async with frames(here, call(9, "slow", progressToken=9)) as stream:
            await anext(stream)
            await gate.reached.wait()
            accepted = await there.post(None, "notifications/cancelled", {"requestId": 9, "reason": "enough"})
            assert accepted.status_code == 202
            job = await one.jobs.wait_finished(call_id(here.headers["mcp-session-id"], 9), 20)
            assert job is not None
            assert job.state is JobState.CANCELLED
            rest = [message(frame) async for frame in stream if frame.get("data")]
    assert rest[-1]["id"] == 9
    assert rest[-1]["result"]["isError"] is True


@pytest.mark.req("GATE-11")
async def test_cancelled_on_another_replica_before_the_job_is_there_ends_it_all_the_same(
    pair: tuple[House, House],
) -> None:
    one, other = pair
    async with session(one) as here, moved(here, other) as there:
        job_id = call_id(here.headers["mcp-session-id"], 3)
        await there.post(None, "notifications/cancelled", {"requestId": 3})
        async with asyncio.timeout(30), frames(here, call(3, "stuck")) as stream:
            rest = [message(frame) async for frame in stream if frame.get("data")]
        assert (await one.jobs.get(job_id)).state is JobState.CANCELLED
    assert rest[-1]["result"]["structuredContent"]["state"] == "cancelled"


@pytest.mark.req("GATE-11")
async def test_delete_ends_a_session_on_every_replica(pair: tuple[House, House]) -> None:
    one, other = pair
    async with session(one) as here, moved(here, other) as there:
        assert (await there.post(2, "ping")).status_code == 200
        assert (await there.http.request("DELETE", "/mcp", headers=there.headers)).status_code == 200
        for legacy in (here, there):
            answer = await legacy.post(3, "ping")
            assert (answer.status_code, answer.json()["error"]["message"]) == (404, "Session not found")
        async with here.http.stream("GET", "/mcp", headers=here.headers) as response:
            assert response.status_code == 404


@pytest.mark.req("GATE-11")
async def test_a_replica_lets_go_of_the_least_used_session_and_adopts_it_again(pair: tuple[House, House]) -> None:
    one, _ = pair
    async with session(one) as first:
        manager = one.gateway._lane._lane.manager  # type: ignore[union-attr]
        manager.max_sessions = 2
        async with session(one) as second, session(one) as third:
            assert len(manager._held) == 2
            for legacy in (first, second, third, first):
                assert (await legacy.post(2, "ping")).status_code == 200
            assert len(manager._held) == 2
            async with frames(first), frames(second):  # two are in use, as many as may be
                refused = await third.post(2, "ping")
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            await eventually(lambda: _served(third))  # once the gateway has seen that the two have left


async def _served(legacy: Legacy) -> bool:
    return (await legacy.post(2, "ping")).status_code == 200


@pytest.mark.req("GATE-11")
async def test_a_session_that_is_used_does_not_expire(pair: tuple[House, House], monkeypatch: Any) -> None:
    one, other = pair
    monkeypatch.setattr(mcp_sessions, "TOUCH_S", 0.0)
    async with session(one) as here, moved(here, other) as there:
        name = f"mcp/{here.headers['mcp-session-id']}"
        for legacy in (here, there):
            await one.security.sessions.touch(name, ttl_s=60.0)
            assert (await legacy.post(2, "ping")).status_code == 200
            kept = await one.security.sessions.get(name)
            assert kept is not None
            assert kept.left_s > 1000


@pytest.mark.req("GATE-11", "GATE-05.1")
async def test_a_long_call_is_sent_away_and_its_client_comes_back_for_the_result(tmp_path: Path) -> None:
    """SEP-1699: the server ends the stream in the middle of a call, with a hint when to come back."""
    gate = Gate()
    async with (
        house(tmp_path, *TOOLS, retry_ms=50, stream_s=0.2) as one,
        actors(one, {"gate": gate, "echo": echo}),
        Client(f"{one.url}/mcp", mode="legacy") as mcp,
    ):
        running = asyncio.create_task(mcp.call_tool("slow", {"n": 7}))
        await gate.reached.wait()
        async with session(one) as here:
            async with frames(here, call(2, "quiet")) as stream:
                priming = await anext(stream)
                assert (priming["data"], priming["retry"]) == ("", "50")
                assert [frame async for frame in stream if frame.get("data")] == []
            async with frames(here, after=priming["id"]) as stream:  # nothing came: the same hint holds
                assert [frame async for frame in stream if frame.get("data")] == []
        gate.opened.set()
        result = await asyncio.wait_for(running, 30)
    assert result.structured_content == {"n": 7}


@pytest.mark.req("GATE-11")
async def test_a_request_whose_answer_was_lost_and_left_no_job_is_answered_so(pair: tuple[House, House]) -> None:
    one, other = pair
    async with session(one) as here, moved(here, other) as there:
        async with frames(here, {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}) as stream:
            priming = await anext(stream)
        async with frames(there, after=priming["id"]) as stream:
            (answer,) = [message(frame) async for frame in stream if frame.get("data")]
    assert (answer["id"], answer["error"]["code"]) == (2, -32600)
    assert answer["error"]["message"].endswith("send it again")


@pytest.mark.req("GATE-11", "GATE-03.1")
async def test_a_resumption_from_an_id_that_is_none_of_ours_is_400(pair: tuple[House, House]) -> None:
    one, _ = pair
    async with session(one) as here:
        for bad in (b"1", b"x y", b"AAAA", b"\xc3\xa9", base64.urlsafe_b64encode(msgspec.msgpack.encode([9, 1]))):
            headers = [(name.encode(), value.encode()) for name, value in here.headers.items()]
            response = await here.http.get("/mcp", headers=[*headers, (b"last-event-id", bad)])
            assert response.status_code == 400, bad
            assert "Last-Event-ID" in response.json()["error"]["message"]


@pytest.mark.req("GATE-11")
async def test_a_failed_job_replays_as_an_error_result_and_the_standing_stream_as_itself(
    pair: tuple[House, House],
) -> None:
    one, other = pair
    async with actors(one, {"fail": fail}), session(one) as here, moved(here, other) as there:
        async with frames(here, call(2, "fail")) as stream:
            priming = await anext(stream)
        job_id = call_id(here.headers["mcp-session-id"], 2)
        await eventually(lambda: _exists(one, job_id))
        await one.jobs.wait_finished(job_id, 20)
        async with frames(there, after=priming["id"]) as stream:
            *_, last = [message(frame) async for frame in stream if frame.get("data")]
        assert last["result"]["isError"] is True
        assert last["result"]["content"][0]["text"] == "the handler is not amused"
        async with frames(there, after=Position().encode()):
            assert (await there.http.get("/mcp", headers=there.headers)).status_code == 409  # it is open


@pytest.mark.req("GATE-11", "GATE-01")
async def test_each_replica_tells_its_own_listeners_that_the_tools_changed(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text("tools: [{name: first, route: [echo]}]")
    async with (
        house(tmp_path, table=ToolTable(files=[path])) as one,
        house(tmp_path, table=ToolTable(files=[path]), upgrade=False) as other,
        session(one) as here,
        moved(here, other) as there,
        frames(there) as stream,  # listed nowhere, listening on the other
    ):
        path.write_text("tools: [{name: second, route: [echo]}]")
        assert one.gateway.reload()
        assert other.gateway.reload()
        async with asyncio.timeout(30):
            told = message(await anext(stream))
    assert told["method"] == ToolListChangedNotification(method="notifications/tools/list_changed").method


@pytest.mark.req("GATE-11")
async def test_the_sdks_client_goes_on_where_its_session_was_never_seen(pair: tuple[House, House]) -> None:
    """Every request of the client goes to the other replica than the one before."""
    one, other = pair
    turn = [0]

    class Turns(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            turn[0] += 1
            port = (one, other)[turn[0] % 2].served.port
            request.url = request.url.copy_with(port=port)
            request.headers["host"] = f"127.0.0.1:{port}"
            return await super().handle_async_request(request)

    from mcp.client.streamable_http import streamable_http_client

    seen: list[float] = []

    async def progress(value: float, total: float | None, text: str | None) -> None:
        seen.append(value)

    async with (
        actors(one, {"echo": echo}),
        httpx2.AsyncClient(transport=Turns(), timeout=30) as http,
        Client(streamable_http_client(f"{one.url}/mcp", http_client=http), mode="legacy") as mcp,
    ):
        assert "echo" in {found.name for found in (await mcp.list_tools()).tools}
        for n in range(6):
            assert (await mcp.call_tool("echo", {"n": n}, progress_callback=progress)).structured_content == {"n": n}
    assert turn[0] > 9
    assert seen


async def _asks(one: House, job_id: str) -> None:
    """What a worker commits whose handler asks."""
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    asked = Question(question_id="sure", message="Delete 3 files?", schema=schema, envelope_id=job_id)
    parked = OutboxMessage(queue="stuck", id=job_id, payload=b"", dedup_key="parked")
    await one.jobs.apply(Ask(job_id=job_id, questions=[asked], message=parked))


@pytest.mark.req("GATE-11", "GATE-16.1")
async def test_a_question_is_put_again_where_the_stream_is_resumed_and_any_replica_takes_the_answer(
    pair: tuple[House, House],
) -> None:
    one, other = pair
    async with one.http() as http:
        here = await Legacy(http).open(elicitation={})
        job_id = call_id(here.headers["mcp-session-id"], 2)
        async with moved(here, other) as there:
            async with frames(here, call(2, "stuck")) as stream:
                priming = await anext(stream)
            await eventually(lambda: _exists(one, job_id))
            await _asks(one, job_id)
            async with frames(there, after=priming["id"]) as stream:
                question = message(await anext(stream))
                assert (question["method"], question["params"]["message"]) == ("elicitation/create", "Delete 3 files?")
                answer = {"jsonrpc": "2.0", "id": question["id"]}
                wrong = {**answer, "result": {"action": "perhaps"}}
                refused = await there.http.post("/mcp", json=wrong, headers=there.headers)
                assert refused.status_code == 400
                assert "perhaps" in refused.json()["error"]["message"]
                given = {**answer, "result": {"action": "accept", "content": {"sure": True}}}
                for _ in range(2):  # the second comes too late, and has no effect
                    assert (await there.http.post("/mcp", json=given, headers=there.headers)).status_code == 202
                (answered,) = await one.jobs.questions(job_id)
                assert (answered.action, answered.content) == ("accept", {"sure": True})
                await one.jobs.cancel(job_id)
                assert message(await anext(stream))["result"]["isError"] is True


async def _exists(one: House, job_id: str) -> bool:
    return (await one.jobs.state(job_id)) is not None


@pytest.mark.req("GATE-11")
async def test_a_level_of_logs_that_was_set_on_one_replica_holds_on_the_other(pair: tuple[House, House]) -> None:
    one, other = pair
    async with session(one) as here, moved(here, other) as there:
        await there.post(2, "ping")
        await here.post(3, "logging/setLevel", {"level": "error"})
        job_id = call_id(here.headers["mcp-session-id"], 4)
        async with frames(there, call(4, "stuck")) as stream:
            await anext(stream)
            await eventually(lambda: _exists(one, job_id))
            for level in ("info", "error"):
                await one.jobs.apply(Note(job_id=job_id, kind="log", data={"level": level, "message": level}))
            await one.jobs.cancel(job_id)
            told = [message(frame) async for frame in stream if frame.get("data")]
    assert [found["params"]["level"] for found in told if "params" in found] == ["error"]


@pytest.mark.req("GATE-11", "GATE-13")
async def test_a_call_of_the_newer_revision_is_repeated_elsewhere_and_goes_on_with_its_job(
    pair: tuple[House, House],
) -> None:
    one, other = pair
    gate = Gate()
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    params: dict[str, Any] = {"name": "slow", "arguments": {"n": 3}, "_meta": MODERN_META}
    headers = {**MODERN, "mcp-name": "slow"}
    async with actors(one, {"gate": gate}), one.http() as here, other.http() as there:
        waiting = asyncio.create_task(here.post("/mcp", json={**body, "params": params}, headers=headers))
        await gate.reached.wait()
        one.gateway.drain()
        one.gateway.end()
        left = (await asyncio.wait_for(waiting, 30)).json()["result"]
        gate.opened.set()
        again = {**body, "id": 2, "params": {**params, "requestState": left["requestState"]}}
        result = (await there.post("/mcp", json=again, headers=headers)).json()["result"]
    assert result["structuredContent"] == {"n": 3}
    assert len((await other.jobs.list_jobs(JobQuery())).items) == 1


@pytest.mark.req("GATE-11", "GATE-13")
async def test_requests_that_meet_where_their_session_is_being_adopted_are_all_served(
    pair: tuple[House, House],
) -> None:
    """The second comes later by so many turns of the loop: at one of them the first is in the middle of it."""
    one, _ = pair
    inside = httpx2.ASGITransport(app=one.gateway.asgi)
    async with session(one) as here, httpx2.AsyncClient(transport=inside, base_url=one.url, timeout=30) as http:
        there = Legacy(http)
        there.headers = dict(here.headers)
        manager = _manager(one)

        async def later(turns: int) -> httpx2.Response:
            for _ in range(turns):
                await asyncio.sleep(0)
            return await there.post(3, "ping")

        for turns in range(60):
            held = manager._held[here.headers["mcp-session-id"]]
            await manager._discard_session(held.session_id, held.transport)
            answers = await asyncio.gather(there.post(2, "ping"), later(turns))
            assert [answer.status_code for answer in answers] == [200, 200], (turns, [one.text for one in answers])


@pytest.mark.req("GATE-11", "GATE-09")
async def test_a_session_keeps_nothing_of_requests_that_are_over(pair: tuple[House, House]) -> None:
    one, _ = pair
    async with session(one) as here, actors(one, {"echo": echo}):
        (held,) = _manager(one)._held.values()
        plain = {**here.headers, "accept": "application/json"}
        for number in range(5):
            refused = await here.http.post("/mcp", json=here.body(number, "ping"), headers=plain)
            assert refused.status_code == 406
        await here.http.post("/mcp", json=call("six", "echo"), headers=here.headers)
        async with frames(here, call("seven", "stuck")) as stream:  # the job goes on, its client leaves
            await anext(stream)
            assert list(held.events.calls) == ["seven"]
        await eventually(lambda: _is(not held.events.calls))


@pytest.mark.req("GATE-11")
async def test_a_session_lives_as_long_as_somebody_listens_and_its_streams_end_where_it_was_ended(
    pair: tuple[House, House],
) -> None:
    one, other = pair
    async with session(one) as here, moved(here, other) as there, frames(here) as stream:
        record = f"mcp/{here.headers['mcp-session-id']}"
        await one.security.sessions.touch(record, ttl_s=30.0)
        await _manager(one).touch_open()
        kept = await one.security.sessions.get(record)
        assert kept is not None
        assert kept.left_s > 60.0
        await there.http.request("DELETE", "/mcp", headers=there.headers)
        await _manager(one).touch_open()
        async with asyncio.timeout(30):
            assert [frame async for frame in stream if frame.get("data")] == []
    assert not _manager(one)._held


@pytest.mark.req("GATE-13")
async def test_a_standing_stream_that_comes_as_the_drain_begins_is_sent_elsewhere(pair: tuple[House, House]) -> None:
    """It was let in before, and would hold the gateway to the end of its grace."""
    one, _ = pair
    async with session(one) as here:
        headers = [(name.lower().encode(), value.encode()) for name, value in here.headers.items()]
        manager = _manager(one)
        one.gateway.drain()
        scope = {"type": "http", "method": "GET", "path": "/mcp", "headers": headers, "query_string": b"", "state": {}}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(sent: Any) -> None:
            raise AssertionError(f"it was served: {sent}")

        with pytest.raises(Unavailable, match="shutting down"):
            await manager.handle_request(scope, receive, send)


@pytest.mark.req("GATE-02")
async def test_a_handshake_that_is_too_large_to_keep_is_the_callers_fault(pair: tuple[House, House]) -> None:
    one, _ = pair
    async with one.http() as http:
        legacy = Legacy(http)
        said: dict[str, Any] = {"protocolVersion": "2025-11-25"}
        said["capabilities"] = {"experimental": {"x": {"y": "z" * 70_000}}}
        said["clientInfo"] = {"name": "test", "version": "1"}
        async with frames(legacy, legacy.body(1, "initialize", said)) as stream:
            _, last = [frame async for frame in stream]
        await eventually(lambda: _is(not _manager(one)._held))
    error = message(last)["error"]
    assert (error["code"], "at most 65536" in error["message"]) == (-32602, True)


def _manager(one: House) -> Any:
    assert one.gateway._lane._lane is not None
    return one.gateway._lane._lane.manager


async def _is(value: bool) -> bool:
    return value
