"""What a tool promises by its `output_schema`, its results over MCP keep, or they are errors that name the field."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp.client.client import Client

from groundplane.core.errors import InvalidArgument
from groundplane.gateway import ToolTable
from groundplane.jobs.port import JobState
from served_gateway import House, actors, echo, house, tool
from wire.test_mcp_lanes import Legacy, _frames
from wire.test_mcp_replicas import call, message
from wire.test_mcp_tasks import Caller

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.req("GATE-02")]

ERAS = ("legacy", "2026-07-28")
TOTAL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "total": {"type": "integer"},
        "rows": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        "unit": {"type": "string", "default": "EUR"},
    },
    "required": ["total", "unit"],
}


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    tools = (tool("sum", "echo", output_schema=TOTAL), tool("later", "echo", output_schema=TOTAL, task_after_s=0.0))
    async with house(tmp_path, *tools) as opened, actors(opened, {"echo": echo}):
        yield opened


@pytest.mark.parametrize("era", ERAS)
async def test_a_result_that_keeps_the_promise_is_passed_on_as_it_is(one: House, era: str) -> None:
    async with Client(f"{one.url}/mcp", mode=era) as mcp:
        (listed,) = [each for each in (await mcp.list_tools()).tools if each.name == "sum"]
        assert listed.output_schema == TOTAL
        for result in ({"total": 3, "unit": "EUR"}, {"total": 3.0, "unit": "", "more": [1]}):
            found = await mcp.call_tool("sum", result)
            assert (found.is_error, found.structured_content) == (False, result)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("result", "field", "said"),
    [
        ({"total": "3", "unit": "EUR"}, "structuredContent.total", "'3' is not an integer"),
        ({"total": 3}, "structuredContent.unit", "is missing; tool 'sum' needs text"),
        ({"total": 3, "unit": "", "rows": [{}, {"name": 4}]}, "structuredContent.rows[1].name", "4 is not text"),
    ],
)
async def test_a_result_that_breaks_it_is_an_error_that_names_the_field(
    one: House, era: str, result: dict[str, Any], field: str, said: str
) -> None:
    async with Client(f"{one.url}/mcp", mode=era) as mcp:
        found = await mcp.call_tool("sum", result)
    assert found.is_error
    assert found.content[0].text == f"{field}: {said}: the result breaks the tool's output_schema"  # type: ignore[union-attr]
    error = (found.structured_content or {})["error"]
    assert (error["code"], error["details"]["field"]) == ("internal", field)
    assert found.meta is not None
    job = await one.jobs.get(found.meta["io.groundplane/job_id"])
    assert (job.state, job.result) == (JobState.SUCCEEDED, result)  # its work is done, and can be read


async def test_a_task_and_a_stream_that_is_resumed_answer_alike(one: House) -> None:
    async with one.http() as http:
        caller = Caller(http)
        task_id = (await caller.call("later", {"total": "3"}))["taskId"]
        done = await caller.until(task_id, "completed")
        assert done["result"]["isError"] is True
        assert done["result"]["content"][0]["text"].startswith("structuredContent.total: '3' is not an integer")
        legacy = await Legacy(http).open()
        async with http.stream("POST", "/mcp", json=call(2, "sum", {"total": "3"}), headers=legacy.headers) as answer:
            frames = [frame async for frame in _frames(answer)]
        again = {**legacy.headers, "last-event-id": frames[0]["id"]}
        async with http.stream("GET", "/mcp", headers=again) as answer:
            replayed = [frame async for frame in _frames(answer)]
        assert message(replayed[-1])["result"] == message(frames[-1])["result"]
        assert message(replayed[-1])["result"]["isError"] is True


def test_a_promise_that_no_result_can_keep_is_refused_when_it_is_made() -> None:
    for more, said in (
        ({"output_schema": {"type": "array"}}, "output_schema: type of tool 'sum' is 'array'"),
        ({"output_schema": {"type": "object", "required": 1}}, "output_schema: of tool 'sum' is no JSON Schema"),
        ({"output_schema": TOTAL, "content": True}, "output_schema: of tool 'sum' is for structured results"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            ToolTable([tool("sum", **more)])
