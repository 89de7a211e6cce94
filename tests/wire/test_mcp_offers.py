"""Content, prompts, resources, completions and logs on the wire, with the SDK's own client in both eras."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client as FastClient
from mcp.client.client import Client
from mcp.client.subscriptions import ResourceUpdated
from mcp.shared.exceptions import MCPError
from mcp_types import (
    LoggingMessageNotification,
    PromptReference,
    ResourceTemplateReference,
    ResourceUpdatedNotification,
)

from groundplane import App, content
from groundplane.core.errors import InvalidArgument
from groundplane.gateway import Catalogue, Gateway, GatewaySettings, ToolTable
from groundplane.gateway.mcp.content import content_blocks, prompt_messages
from groundplane.jobs import Jobs
from groundplane.jobs.port import Note
from groundplane.queues import Queues
from served_gateway import House, actors, echo, house
from wire.test_mcp_lanes import Legacy

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

ERAS = ("legacy", "2026-07-28")
app = App("offers")


@app.actor
def echo_actor(**given: Any) -> Any:
    return given


@app.actor
def greet(name: str, tone: str = "") -> str:
    """Greets.

    Args:
        name: Who is greeted.
    """
    return f"Greet {name} {tone}"


@app.actor
def towns(value: str) -> list[str]:
    return [value]


@app.actor
def note(id: str) -> dict[str, str]:  # noqa: A002
    return {"id": id}


app.tool("blocks", route=[echo_actor], content=True, title="Blocks", annotations={"readOnlyHint": True})
app.tool("touch", route=[echo_actor], updates=["notes://rules"])
app.prompt("greeting", route=[greet], complete={"name": towns, "tone": ["warm", "wry"]})
app.prompt("plain", text="Be brief.")
app.resource("notes://rules", text="No shoes.", name="rules")
app.resource("notes://pixel", data=b"\x89P", mime_type="image/png")
app.resource("notes://{id}/text", route=[note], mime_type="application/json", complete={"id": ["1", "12", "2"]})


async def greeting(payload: Any, report: Any) -> Any:
    if payload["name"] == "nobody":
        raise ValueError("nobody to greet")
    return [content.message(f"Greet {payload['name']}"), content.message(content.image(b"x", "image/png"), "assistant")]


async def completing(payload: Any, report: Any) -> Any:
    return [town for town in ("oslo", "ostrava") if town.startswith(payload["value"])]


HANDLERS = {"echo_actor": echo, "greet": greeting, "towns": completing, "note": echo}


async def blocks(payload: Any, report: Any) -> Any:
    return payload["blocks"]


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    catalogue = Catalogue(app.offer.prompts, app.offer.resources)
    async with house(tmp_path, table=ToolTable(app.offer.tools), catalogue=catalogue) as opened:
        yield opened


@pytest.mark.req("GATE-02", "GATE-03.1", "GATE-03.2")
@pytest.mark.parametrize("era", ERAS)
async def test_content_reaches_the_client_as_it_was_made_and_what_is_none_names_the_field(one: House, era: str) -> None:
    made = [
        content.text("a"),
        content.image(b"p", "image/png"),
        content.audio(b"s", "audio/wav"),
        content.resource("notes://x", b"bytes", "application/pdf"),
        content.link("notes://y", "y", mimeType="text/plain"),
    ]
    async with actors(one, {**HANDLERS, "echo_actor": blocks}), Client(f"{one.url}/mcp", mode=era) as mcp:
        listed = {found.name: found for found in (await mcp.list_tools()).tools}["blocks"]
        result = await mcp.call_tool("blocks", {"blocks": made})
        bad = await mcp.call_tool("blocks", {"blocks": [content.text("a"), {"type": "image", "data": "cA=="}]})
    assert (listed.title, listed.annotations.read_only_hint) == ("Blocks", True)  # type: ignore[union-attr]
    assert [found.model_dump(by_alias=True, exclude_none=True) for found in result.content] == made
    assert result.structured_content is None
    assert (bad.is_error, bad.content[0].text) == (True, "content[1].mimeType: is missing; it must be text")  # type: ignore[union-attr]


@pytest.mark.req("GATE-02")
@pytest.mark.parametrize("era", ERAS)
async def test_prompts_are_made_by_actors_or_are_text(one: House, era: str) -> None:
    async with actors(one, HANDLERS), Client(f"{one.url}/mcp", mode=era) as mcp:
        listed = {found.name: found for found in (await mcp.list_prompts()).prompts}
        made = await mcp.get_prompt("greeting", {"name": "Ann"})
        plain = await mcp.get_prompt("plain")
        with pytest.raises(MCPError, match=r"arguments\.name: is missing") as missing:
            await mcp.get_prompt("greeting", {})
        with pytest.raises(MCPError, match="prompt: 'greetin' does not exist; did you mean 'greeting'"):
            await mcp.get_prompt("greetin")
        with pytest.raises(MCPError, match="nobody to greet") as failed:
            await mcp.get_prompt("greeting", {"name": "nobody"})
    described = [(one.name, one.description, one.required) for one in listed["greeting"].arguments or []]
    assert described == [("name", "Who is greeted.", True), ("tone", None, False)]
    assert [message.role for message in made.messages] == ["user", "assistant"]
    assert made.messages[0].content.text == "Greet Ann"  # type: ignore[union-attr]
    assert plain.messages[0].content.text == "Be brief."  # type: ignore[union-attr]
    assert (missing.value.error.code, failed.value.error.code) == (-32602, -32603)
    assert (await one.jobs.get(failed.value.error.data["job_id"])).tool == "prompt:greeting"


@pytest.mark.req("GATE-02")
@pytest.mark.parametrize("era", ERAS)
async def test_resources_are_read_and_arguments_completed(one: House, era: str) -> None:
    async with actors(one, HANDLERS), Client(f"{one.url}/mcp", mode=era) as mcp:
        assert [found.uri for found in (await mcp.list_resources()).resources] == ["notes://rules", "notes://pixel"]
        templates = (await mcp.list_resource_templates()).resource_templates
        assert [found.uri_template for found in templates] == ["notes://{id}/text"]
        assert (await mcp.read_resource("notes://rules")).contents[0].text == "No shoes."  # type: ignore[union-attr]
        blob = (await mcp.read_resource("notes://pixel")).contents[0].blob  # type: ignore[union-attr]
        assert base64.b64decode(blob) == b"\x89P"
        assert (await mcp.read_resource("notes://7/text")).contents[0].text == '{"id":"7"}'  # type: ignore[union-attr]
        with pytest.raises(MCPError, match="'notes://nothing' is no resource") as unknown:
            await mcp.read_resource("notes://nothing")
        prompt, template = PromptReference(name="greeting"), ResourceTemplateReference(uri="notes://{id}/text")
        completed = [
            (await mcp.complete(ref, {"name": name, "value": value})).completion.values
            for ref, name, value in (
                (prompt, "name", "os"), (prompt, "tone", "w"), (template, "id", "1"), (prompt, "nothing", "x"),
            )
        ]  # fmt: skip
    assert (unknown.value.error.code, unknown.value.error.data) == (-32602, {"uri": "notes://nothing"})
    assert completed == [["oslo", "ostrava"], ["warm", "wry"], ["1", "12"], []]


@pytest.mark.req("GATE-02", "GATE-11")
async def test_who_is_subscribed_is_told_of_what_a_tool_changed_whoever_called_it(one: House) -> None:
    told = asyncio.Event()

    async def handler(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification) and str(message.params.uri) == "notes://rules":
            told.set()

    async with (
        actors(one, HANDLERS),
        Client(f"{one.url}/mcp", mode="legacy", message_handler=handler) as old,
        Client(f"{one.url}/mcp", mode="2026-07-28") as new,
        new.listen(resource_subscriptions=["notes://rules"]) as events,
    ):
        await old.subscribe_resource("notes://rules")
        await new.call_tool("touch", {})
        seen = await asyncio.wait_for(anext(aiter(events)), 30)
        await asyncio.wait_for(told.wait(), 30)
    assert seen == ResourceUpdated(uri="notes://rules")


@pytest.mark.req("GATE-02", "GATE-09")
async def test_a_subscriber_that_reads_nothing_keeps_nothing_from_the_others_and_is_forgotten_with_its_session(
    one: House,
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def handler(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            told.put_nowait(str(message.params.uri))

    listens = asyncio.Event()

    async def send(message: Any) -> None:
        listens.set()
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # a full buffer that nobody empties

    async def receive() -> dict[str, Any]:
        if listens.is_set():
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    lane = one.gateway._lane._lane
    async with (
        actors(one, HANDLERS),
        one.http() as http,
        Client(f"{one.url}/mcp", mode="legacy", message_handler=handler) as mcp,
    ):
        deaf = await Legacy(http).open()
        await deaf.post(2, "resources/subscribe", {"uri": "notes://rules"})
        await mcp.subscribe_resource("notes://rules")
        headers = [(name.lower().encode(), value.encode()) for name, value in deaf.headers.items()]
        scope = {"type": "http", "method": "GET", "path": "/mcp", "query_string": b"", "http_version": "1.1"}
        scope |= {"headers": [*headers, (b"host", b"127.0.0.1")], "raw_path": b"/mcp", "server": ("127.0.0.1", 80)}
        stream = asyncio.ensure_future(one.gateway.asgi(scope, receive, send))
        await listens.wait()
        for _ in range(20):  # one more than fits into what waits for one stream
            await mcp.call_tool("touch", {})
            assert await asyncio.wait_for(told.get(), 30) == "notes://rules"
        assert lane is not None
        assert len(lane.subscriptions._sessions) == 2
        assert (await http.request("DELETE", "/mcp", headers=deaf.headers)).status_code == 200
        assert len(lane.subscriptions._sessions) == 1
        stream.cancel()
        await asyncio.wait([stream])


@pytest.mark.req("GATE-02")
async def test_what_is_not_declared_is_not_claimed(tmp_path: Path) -> None:
    async with house(tmp_path) as bare:
        for era in ERAS:
            async with Client(f"{bare.url}/mcp", mode=era) as mcp:
                found = mcp.server_capabilities
                assert (found.prompts, found.resources, found.completions) == (None, None, None)
                with pytest.raises(MCPError) as refused:
                    await mcp.list_prompts()
                assert refused.value.error.code == -32601


@pytest.mark.req("GATE-03.1", "GATE-03.2")
@pytest.mark.parametrize(("era", "wanted"), [("legacy", "warning"), ("2026-07-28", None)])
async def test_an_older_client_is_told_what_handlers_log_from_its_level_on_and_a_newer_one_when_it_asks(
    one: House, era: str, wanted: str | None
) -> None:
    seen: list[tuple[str, Any]] = []

    async def handler(message: Any) -> None:
        if isinstance(message, LoggingMessageNotification):
            seen.append((message.params.level, message.params.data))

    async def logging(payload: Any, report: Any) -> Any:
        (job,) = (await one.jobs.list_jobs()).items
        for level, data in (("info", {}), ("error", {"code": 7})):
            note = {"level": level, "message": f"{level} line", "data": data, "actor": "echo_actor"}
            await one.jobs.apply(Note(job_id=job.job_id, kind="log", data=note))
        await report(50.0)
        return payload

    async with actors(one, {"echo_actor": logging}), Client(
        f"{one.url}/mcp", mode=era, message_handler=handler
    ) as mcp:  # fmt: skip
        if wanted is not None:
            await mcp.set_logging_level(wanted)  # type: ignore[arg-type]
        await mcp.call_tool("touch", {})
    assert seen == ([("error", {"message": "error line", "code": 7})] if wanted is not None else [])


@pytest.mark.req("GATE-02")
async def test_the_client_of_fastmcp_gets_content_prompts_and_resources(one: House) -> None:
    async with actors(one, HANDLERS), FastClient(f"{one.url}/mcp") as mcp:
        assert {found.name for found in await mcp.list_tools()} == {"blocks", "touch"}
        result = await mcp.call_tool("touch", {"a": 1})
        prompt = await mcp.get_prompt("plain")
        (rules,) = await mcp.read_resource("notes://rules")
    assert result.structured_content == {"a": 1}
    assert prompt.messages[0].content.text == "Be brief."
    assert rules.text == "No shoes."


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([{"type": "picture"}], "content[0].type: 'picture' is not one of text, image, audio, resource, resource_link"),
        ([{"type": "text"}], "content[0].text: is missing; it must be text"),
        ([3], "content[0]: 3 is not an object"),
        ([{"type": "audio", "data": "?", "mimeType": "audio/wav"}], "content[0].data: '?' is not base64"),
        (
            [{"type": "resource", "resource": {"uri": "a:b"}}],
            "content[0].resource: has neither text nor blob; give one",
        ),
    ],
)
async def test_what_is_no_content_is_named(value: Any, said: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        content_blocks(value)
    assert refused.value.message == said
    with pytest.raises(InvalidArgument, match=r"messages\[0\]\.role: 'system' is not user or assistant"):
        prompt_messages({"role": "system", "content": "x"})


async def test_a_gateway_declares_the_queues_of_what_it_offers(tmp_path: Path) -> None:
    catalogue = Catalogue(app.offer.prompts, app.offer.resources)
    async with (
        Jobs.open(state=tmp_path, upgrade=True) as jobs,
        Queues.open(state=tmp_path, upgrade=True) as queues,
        Gateway.open(
            jobs=jobs, queues=queues, tools=ToolTable(), catalogue=catalogue, settings=GatewaySettings(port=0)
        ),
    ):
        for queue in ("greet", "towns", "note"):
            assert (await queues.depth(queue)).ready == 0
