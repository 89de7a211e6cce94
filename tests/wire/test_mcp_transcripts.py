"""Raw JSON-RPC over HTTP in both revisions, against transcripts: every header and byte that a client may rely on.

A transcript is a list of exchanges. What differs from run to run (ids of jobs and sessions, the version) stands in it
as a placeholder. `GROUNDPLANE_RECORD_TRANSCRIPTS=1` writes them anew; then read the difference before committing it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from groundplane._version import __version__
from groundplane.gateway.mcp.resuming import Position
from served_gateway import VALUE, actors, double, echo, fail, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

FOLDER = Path(__file__).parent / "transcripts"
RECORD = os.environ.get("GROUNDPLANE_RECORD_TRANSCRIPTS") == "1"
KEPT = ("content-type", "mcp-session-id", "allow", "retry-after")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
EVENT = re.compile(r'("io\.groundplane/event_id": ?)\d+')
SESSION = re.compile(r"\b[0-9a-f]{32}\b")

TOOLS = (
    tool("double", schema=VALUE, description="Doubles a number."),
    tool("echo", description="Says it again.", metadata={"team": "tests"}),
    tool("fail", progress=False),
)


@pytest.mark.req("GATE-02", "GATE-03.1", "GATE-03.2")
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
async def test_the_answers_are_those_of_the_transcript(tmp_path: Path, name: str) -> None:
    path = FOLDER / f"{name}.json"
    transcript = json.loads(path.read_text(encoding="utf-8"))
    async with house(tmp_path, *TOOLS, retry_ms=500) as one:
        async with actors(one, {"double": double, "echo": echo, "fail": fail}), one.http() as http:
            found = await _play(http, transcript["exchanges"])
    if RECORD:
        for exchange, answer in zip(transcript["exchanges"], found, strict=True):
            exchange["response"] = answer
        path.write_text(json.dumps(transcript, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for exchange, answer in zip(transcript["exchanges"], found, strict=True):
        assert answer == exchange["response"], exchange["what"]


async def _play(http: httpx2.AsyncClient, exchanges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    session, found = "", []
    for exchange in exchanges:
        request = exchange["request"]
        headers = {name: value.replace("<session>", session) for name, value in request["headers"].items()}
        body = request.get("body")
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode() if body is not None else None
        response = await http.request(request["method"], "/mcp", headers=headers, content=content)
        if response.is_success:
            session = response.headers.get("mcp-session-id", session)
        found.append(_shape(response))
    return found


def _shape(response: httpx2.Response) -> dict[str, Any]:
    """Status, the headers that matter, and the body: JSON, or events with their fields in order."""
    headers = {name: _masked(response.headers[name]) for name in KEPT if name in response.headers}
    kind = response.headers.get("content-type", "").partition(";")[0]
    text = response.text
    body: Any = _masked(text)
    if kind == "text/event-stream":
        body = [list(_fields(one)) for one in re.split(r"\r?\n\r?\n", text) if one.strip()]
    elif kind.endswith("json") and text:
        body = json.loads(_masked(text))
    return {"status": response.status_code, "headers": headers, "body": body}


def _fields(event: str) -> Iterator[list[Any]]:
    for line in re.split(r"\r?\n", event):
        name, _, value = line.partition(":")
        text = _masked(value.removeprefix(" "))
        position = Position.decode(text) if name == "id" else None
        if position is not None:  # to clients it is opaque; where in the log it stands differs from run to run
            yield [name, [position.request_id, position.token, position.reported, position.answered]]
        else:
            yield [name, json.loads(text) if name == "data" and text else text]


def _masked(text: str) -> str:
    text = EVENT.sub(r'\1"<event>"', text)
    return SESSION.sub("<session>", UUID.sub("<uuid>", text)).replace(__version__, "<version>")


async def test_placeholders_hide_only_what_differs_from_run_to_run(tmp_path: Path) -> None:
    assert _masked('{"a": "01a1fdf3-f674-7e91-8386-f552ccbcb4a4", "b": 42}') == '{"a": "<uuid>", "b": 42}'


@pytest.mark.req("GATE-02")
def test_both_revisions_and_the_older_ones_are_recorded() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} >= {"2025-11-25", "2025-06-18", "2026-07-28"}
