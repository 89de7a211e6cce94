"""Messages that are none: refused in words of ours, with the id where there is one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from groundplane.gateway.mcp.body import INVALID_REQUEST, PARSE_ERROR, refusal

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.mark.req("GATE-15.1")
@pytest.mark.parametrize(
    ("message", "given", "what"),
    [
        ([PING], None, "it is no object"),
        ("ping", None, "it is no object"),
        (None, None, "it is no object"),
        ({**PING, "jsonrpc": "1.0"}, 1, 'jsonrpc: must be "2.0"'),
        ({"id": "a", "method": "ping"}, "a", "jsonrpc"),
        ({**PING, "id": None}, None, "id: None is neither text of at most 1000 characters nor a whole number"),
        ({**PING, "id": 1.5}, None, "id: 1.5"),
        ({**PING, "id": True}, None, "id: True"),
        ({**PING, "id": 2**70}, None, "id: "),
        ({**PING, "method": ["ping"]}, 1, "method: ['ping'] is not text"),
        ({**PING, "params": [1]}, 1, "params: [1] is no object"),
        ({**PING, "params": {"_meta": 7}}, 1, "params._meta: 7 is no object"),
        ({"jsonrpc": "2.0", "id": 1}, 1, "it has no method, nor one of result and error"),
        ({"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}}, 1, "it has no method"),
        ({"jsonrpc": "2.0", "id": 1, "result": 3}, 1, "result: 3 is no object"),
        ({"jsonrpc": "2.0", "result": {}}, None, "id: is missing"),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": "x"}}, 1, "error: {'code': 'x'} has no code and message"),
    ],
)
def test_what_is_no_message_is_an_invalid_request(message: Any, given: Any, what: str) -> None:
    refused = refusal(json.dumps(message).encode())
    assert refused is not None
    assert (refused["jsonrpc"], refused["id"], refused["error"]["code"]) == ("2.0", given, INVALID_REQUEST)
    assert refused["error"]["message"].startswith(f"Invalid request: {what}")


@pytest.mark.req("GATE-15.1")
@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 300, b'{"id": 1, "id": 2}', b'{"a": "\\ud800"}'])
def test_what_is_no_strict_json_is_a_parse_error(data: bytes) -> None:
    refused = refusal(data)
    assert refused is not None
    assert (refused["id"], refused["error"]["code"]) == (None, PARSE_ERROR)


@pytest.mark.parametrize(
    "message",
    [
        PING,
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {**PING, "id": "", "params": {"_meta": {"progressToken": 1}}},
        {"jsonrpc": "2.0", "id": 1, "result": {}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "no"}},
    ],
)
def test_messages_pass(message: Any) -> None:
    assert refusal(json.dumps(message).encode()) is None
