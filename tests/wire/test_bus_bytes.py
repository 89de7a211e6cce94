"""The messages of the bus, pinned by the bytes that `docs/reference/bus-wire.md` shows to clients of any language."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from groundplane.bus import wire
from groundplane.core.codec import codec_of
from groundplane.core.errors import ErrorRecord, InvalidArgument

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "bus-wire.md"
ID = "0190a5b0-7c00-7000-8000-000000000001"
ANSWER_ID = "0190a5b0-7c00-7000-8000-000000000002"
TRACE = "0af7651916cd43dd8448eb211c80319c"
AT = "2026-01-31T12:00:00.250Z"

MESSAGES: dict[str, wire.Head] = {
    "request": wire.RpcRequest(
        message_id=ID, trace_id=TRACE, timestamp=AT, source="desk", target="quotes",
        headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
        method="get", params={"symbol": "ACME"}, timeout=2.5, deadline_at=1_769_860_802_750,
    ),
    "answer": wire.RpcResponse(
        message_id=ANSWER_ID, correlation_id=ID, timestamp=AT, source="quotes", success=True, result={"price": 12.5}
    ),
    "error": wire.RpcResponse(
        message_id=ANSWER_ID, correlation_id=ID, timestamp=AT, source="quotes", success=False,
        error=ErrorRecord("not_found", "symbol: 'ACME' is not listed", type="KeyError"),
    ),
    "event": wire.Event(
        message_id=ID, timestamp=AT, source="desk", domain="orders", event_type="created",
        payload={"id": 7, "city": "Zürich"}, version="2.0",
    ),
    "command": wire.Command(
        message_id=ID, timestamp=AT, source="desk", target="reports", command="render", payload={"month": 1},
        priority="critical", max_retries=1, timeout=60.0,
    ),
    "progress": wire.CommandProgress(
        message_id=ANSWER_ID, correlation_id=ID, timestamp=AT, source="reports", percent=40.0, message="page 2 of 5"
    ),
    "callback": wire.CommandCallback(
        message_id=ANSWER_ID, correlation_id=ID, timestamp=AT, source="reports", command="render",
        status="succeeded", result={"pages": 5}, attempts=1,
    ),
    "cancel": wire.CommandCancel(
        message_id=ANSWER_ID, correlation_id=ID, timestamp=AT, source="desk", reason="not needed"
    ),
    "give-up": wire.RpcCancel(message_id=ANSWER_ID, correlation_id=ID, timestamp=AT, source="desk"),
    "presence": wire.Presence(
        message_id=ID, timestamp=AT, source="quotes", service="quotes", instance="q-1", methods=["get"], interval=2.0
    ),
}  # fmt: skip


def _shown() -> dict[str, tuple[bytes, bytes]]:
    """Name, JSON and MessagePack of each example of the page."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"<!-- golden: ([a-z-]+) -->\n```json\n(.*?)\n```\n\n```text\n(.*?)\n```", text, re.DOTALL)
    return {name: (json.encode(), bytes.fromhex(hexed.replace("\n", ""))) for name, json, hexed in found}


@pytest.mark.req("BUS-19")
@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_the_bytes_of_each_message_are_those_that_the_page_shows(name: str) -> None:
    json, packed = _shown()[name]
    message = MESSAGES[name]
    assert wire.write(message) == packed
    assert wire.write(message, "json") == msgspec.json.encode(msgspec.json.decode(json))
    for data in (json, packed):
        assert wire.read(data, type(message)) == (message, codec_of(data))


def test_every_example_of_the_page_is_tested() -> None:
    assert set(_shown()) == set(MESSAGES)


@pytest.mark.req("BUS-12")
def test_json_and_msgpack_say_the_same_also_in_other_scripts_and_when_large() -> None:
    event = wire.Event(message_id=ID, domain="a", event_type="b", payload={"text": "ß漢字🙂" * 50_000, "none": None})
    assert wire.read(wire.write(event), wire.Event) == (event, "msgpack")
    assert wire.read(wire.write(event, "json"), wire.Event) == (event, "json")


def test_what_a_later_version_adds_is_ignored_and_what_a_foreign_peer_leaves_out_has_a_default() -> None:
    read, codec = wire.read(b'{"params":{"symbol":"ACME"},"of_a_later_version":{"x":1}}', wire.RpcRequest)
    assert (read.params, read.timeout, read.message_id, codec) == ({"symbol": "ACME"}, 5.0, "", "json")


@pytest.mark.req("BUS-21")
@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"{", b"[]", b"7", b'{"params":[]}', b'{"timeout":"soon"}', b"\x81\xa6params\xc3"]
)
def test_what_is_no_message_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        wire.read(data, wire.RpcRequest)
    assert caught.value.reason == "msg_parsing_error"


@pytest.mark.req("BUS-01.1")
def test_an_answer_with_success_and_an_error_is_no_answer() -> None:
    both = wire.RpcResponse(success=True, error=ErrorRecord("internal", "no"))
    with pytest.raises(InvalidArgument, match="success and an error"):
        wire.check_answer(both)
