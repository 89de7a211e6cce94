"""Subscriptions of the older revisions on two gateways over one store: made on either, told where one listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from groundplane import App
from groundplane.gateway import Catalogue, ToolTable
from served_gateway import House, actors, echo, eventually, house
from wire.test_mcp_lanes import Legacy, _frames
from wire.test_mcp_replicas import moved

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.req("GATE-11")]

COUNT = 8
NOTES = [f"notes://{number}" for number in range(COUNT)]
app = App("subscribed")


@app.actor
def echo_actor(**given: Any) -> Any:
    return given


for number, uri in enumerate(NOTES):
    app.resource(uri, text="text", name=f"note {number}")
    app.tool(f"touch{number}", route=[echo_actor], updates=[uri])
app.tool("touch_all", route=[echo_actor], updates=NOTES)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[House, House]]:
    def opened(**more: Any) -> Any:
        catalogue = Catalogue(app.offer.prompts, app.offer.resources)
        return house(tmp_path, table=ToolTable(app.offer.tools), catalogue=catalogue, retry_ms=50, **more)

    async with opened() as one, opened(upgrade=False) as other:
        async with actors(other, {"echo_actor": echo}):
            yield one, other


@asynccontextmanager
async def listening(legacy: Legacy) -> AsyncIterator[AsyncIterator[str]]:
    """The URIs that the session is told of on its standing stream."""
    async with legacy.http.stream("GET", "/mcp", headers=legacy.headers) as response:
        assert response.status_code == 200, await response.aread()
        async with aclosing(_frames(response)) as frames:
            yield _uris(frames)


async def _uris(frames: AsyncIterator[dict[str, str]]) -> AsyncIterator[str]:
    async for frame in frames:
        message = json.loads(frame["data"]) if frame.get("data") else {}
        if message.get("method") == "notifications/resources/updated":
            yield message["params"]["uri"]


async def subscribe(legacy: Legacy, number: int, *, end: bool = False) -> None:
    method = "resources/unsubscribe" if end else "resources/subscribe"
    answer = await legacy.post(100 + number + COUNT * end, method, {"uri": NOTES[number]})
    assert '"result":{}' in answer.text, answer.text


async def touch(one: House, name: str) -> None:
    """A job of that tool, ended."""
    async with one.http() as http:
        made = await http.post("/v1/jobs", json={"tool": name, "arguments": {}})
        assert made.status_code == 202, made.text

        async def ended() -> bool:
            return (await one.jobs.get(made.json()["job_id"])).state.terminal

        await eventually(ended, 30)


async def next_of(told: AsyncIterator[str]) -> str:
    async with asyncio.timeout(30):
        return await anext(told)


async def test_a_session_is_told_where_it_listens_whichever_replica_it_subscribed_at(pair: tuple[House, House]) -> None:
    one, other = pair
    async with one.http() as http:
        here = await Legacy(http).open()
        async with moved(here, other) as there, listening(there) as told:
            await subscribe(here, 0)
            await touch(one, "touch0")
            assert await next_of(told) == NOTES[0]
            await subscribe(there, 1)
            await subscribe(here, 0, end=True)
            await touch(other, "touch0")
            await touch(one, "touch1")
            assert await next_of(told) == NOTES[1]  # and not the one that it left


async def test_a_session_goes_on_being_told_by_the_replica_that_adopts_it(pair: tuple[House, House]) -> None:
    one, other = pair
    async with one.http() as http:
        here = await Legacy(http).open()
        await subscribe(here, 3)
        async with listening(here) as told:
            await touch(other, "touch3")
            assert await next_of(told) == NOTES[3]
        async with moved(here, other) as there, listening(there) as told:
            await touch(other, "touch3")
            assert await next_of(told) == NOTES[3]


async def test_no_subscription_is_lost_where_many_are_made_on_both_at_once(pair: tuple[House, House]) -> None:
    one, other = pair
    async with one.http() as http:
        here = await Legacy(http).open()
        async with moved(here, other) as there, listening(there) as told:
            await asyncio.gather(*(subscribe((here, there)[number % 2], number) for number in range(COUNT)))
            await asyncio.gather(here.post(90, "logging/setLevel", {"level": "error"}), subscribe(there, 0))
            await touch(one, "touch_all")
            assert [await next_of(told) for _ in NOTES] == NOTES


async def test_a_session_that_ended_on_another_replica_is_not_told_and_others_are(pair: tuple[House, House]) -> None:
    one, other = pair
    async with one.http() as http, other.http() as http_too:
        gone, stays = await Legacy(http).open(), await Legacy(http_too).open()
        async with moved(gone, other) as there, listening(there), listening(stays) as told:
            await subscribe(gone, 0)
            await subscribe(stays, 0)
            assert (await http.delete("/mcp", headers=gone.headers)).status_code == 200
            await touch(one, "touch0")
            assert await next_of(told) == NOTES[0]
