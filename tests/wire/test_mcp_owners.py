"""Two callers of MCP with a key each: what one learns of the other's sessions, calls and questions is of no use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import msgspec
import pytest

from groundplane.core.ids import call_id
from groundplane.gateway.mcp.questions import question_request_id
from groundplane.gateway.mcp.resuming import Position
from groundplane.jobs.port import Ask, OutboxMessage, Question
from served_gateway import House, asking_actor, eventually, house, tool
from wire.test_mcp_lanes import Legacy
from wire.test_mcp_replicas import call, frames, message
from wire.test_mcp_tasks import ALICE, ASKED, NAME, Caller

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.req("GATE-18.2")]


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, tool("stuck"), tool("ask"), auth="keys") as opened:
        yield opened


@asynccontextmanager
async def caller(one: House, name: str) -> AsyncIterator[httpx2.AsyncClient]:
    made = await one.security.create_key(name, ["tools:*"])
    headers = {"Authorization": f"Bearer {made.secret.reveal()}"}
    async with httpx2.AsyncClient(base_url=one.url, headers=headers, timeout=60) as http:
        yield http


async def begun(session: Legacy) -> tuple[str, Position]:
    """A call of the session that runs: its job, and where its stream was left."""
    async with frames(session, call(2, "stuck")) as stream:
        position = Position.decode((await anext(stream))["id"])
    assert position is not None
    return call_id(session.headers["mcp-session-id"], 2), position


async def test_a_session_serves_nobody_but_its_owner(one: House) -> None:
    async with caller(one, "ann") as anns, caller(one, "bob") as bobs:
        own = await Legacy(anns).open()
        taken = Legacy(bobs)
        taken.headers = dict(own.headers)
        for method in ("POST", "GET", "DELETE"):
            json = taken.body(2, "tools/list") if method == "POST" else None
            answer = await bobs.request(method, "/mcp", json=json, headers=taken.headers)
            assert (answer.status_code, answer.json()["error"]["message"]) == (404, "Session not found"), method
        assert (await own.post(3, "ping")).status_code == 200


async def test_a_stream_of_somebody_elses_call_is_not_resumed_in_a_session_of_ones_own(one: House) -> None:
    async with caller(one, "ann") as anns, caller(one, "bob") as bobs:
        job_id, position = await begun(await Legacy(anns).open())
        await eventually(lambda: one.jobs.state(job_id))
        told = msgspec.structs.replace(position, job_id=job_id).encode()
        own = await Legacy(bobs).open()
        async with asyncio.timeout(30), frames(own, after=told) as stream:
            (answer,) = [message(frame) async for frame in stream if frame.get("data")]
        assert answer["error"]["message"].endswith("send it again")  # as of a call that left no job


async def test_a_question_put_to_somebody_else_is_not_answered_from_a_session_of_ones_own(one: House) -> None:
    async with caller(one, "ann") as anns, caller(one, "bob") as bobs:
        anns_session, bobs_session = await Legacy(anns).open(elicitation={}), await Legacy(bobs).open(elicitation={})
        job_id, _ = await begun(anns_session)
        await eventually(lambda: one.jobs.state(job_id))
        asked = Question(question_id="user", message="Who?", schema=NAME, envelope_id=job_id)
        parked = OutboxMessage(queue="stuck", id=job_id, payload=b"", dedup_key="parked")
        await one.jobs.apply(Ask(job_id=job_id, questions=[asked], message=parked))
        answer = {"jsonrpc": "2.0", "id": question_request_id(job_id, "user"), "result": ALICE}
        assert (await bobs.post("/mcp", json=answer, headers=bobs_session.headers)).status_code == 202
        assert [found.state for found in await one.jobs.questions(job_id)] == ["open"]
        assert (await anns.post("/mcp", json=answer, headers=anns_session.headers)).status_code == 202
        await eventually(lambda: _answered_by(one, job_id, "ann"), 30)


async def _answered_by(one: House, job_id: str, principal: str) -> bool:
    return [found.answered_by for found in await one.jobs.questions(job_id)] == [principal]


async def test_a_request_state_is_good_for_the_caller_that_got_it(one: House) -> None:
    async with asking_actor(one, "ask", [ASKED]), caller(one, "ann") as anns, caller(one, "bob") as bobs:
        asked = await Caller(anns, tasks=False, elicitation={}).call("ask")
        given = {"inputResponses": {"user": ALICE}, "requestState": asked["requestState"]}
        refused = await Caller(bobs, tasks=False, elicitation={}).call("ask", **given)
        assert (refused["code"], "belongs to another call" in refused["message"]) == (-32602, True)
        done = await Caller(anns, tasks=False, elicitation={}).call("ask", **given)
    assert done["structuredContent"]["ask.0.user"]["content"] == {"name": "Alice"}
