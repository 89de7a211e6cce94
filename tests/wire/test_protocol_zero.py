"""Protocol 0, as older sidecars speak it: one connection per message, JSON of the whole message, an array back."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime_process import Client, Runtime, eventually, runtime

pytestmark = pytest.mark.integration

HANDLERS = """
import time

def process(payload: dict) -> dict:
    if payload.get("fail"):
        raise ValueError("no good: " + payload["fail"])
    if payload.get("oom"):
        raise MemoryError("all of it")
    if payload.get("cuda"):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if "give" in payload:
        return payload["give"]
    return {**payload, "done": True}

async def aprocess(payload: dict):
    return process(payload)

def message(message):
    message["payload"]["seen"] = True
    message["route"]["actors"].append("added")
    return message

def messages(message):
    return [{"payload": n, "route": message["route"]} for n in range(message["payload"])]

def bare(msg: dict) -> dict:
    return {"result": msg.get("payload", {})}

def stuck(payload):
    open("began", "w").close()
    while True:
        pass

def once(payload, ctx):
    ctx.progress(50, "half"); ctx.heartbeat(); ctx.count("n")
    return ctx.once("key", lambda: 1)
"""
ROUTE = {"actors": ["first", "second"], "current": 0}


@pytest.fixture(params=["process", "aprocess"])
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with runtime(tmp_path, f"handlers:{request.param}", code=HANDLERS) as running:
        yield running


def message(payload: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "m-1", "route": ROUTE, "payload": payload, **fields}


@pytest.mark.req("MESH-04.2", "MESH-02.4")
class TestAnswers:
    def test_a_value_is_one_output_with_its_route_advanced(self, old: Runtime) -> None:
        assert old.old(message({"a": "é"})) == [
            {"payload": {"a": "é", "done": True}, "route": {"actors": ["first", "second"], "current": 1}}
        ]

    def test_headers_travel_on_and_older_routes_pass_unchanged(self, old: Runtime) -> None:
        answer = old.old(message({}, route={"steps": ["x"], "current": 0, "metadata": 1}, headers={"trace": "t"}))
        assert answer == [
            {
                "payload": {"done": True},
                "route": {"steps": ["x"], "current": 1, "metadata": 1},
                "headers": {"trace": "t"},
            }
        ]

    def test_a_message_without_a_route_is_answered_without(self, old: Runtime) -> None:
        assert old.old({"payload": {}}) == [{"payload": {"done": True}}]

    def test_a_list_is_a_fan_out_and_an_empty_one_or_null_aborts(self, old: Runtime) -> None:
        answer = old.old(message({"give": [1, None, {"c": 3}]}))
        assert [output["payload"] for output in answer] == [1, None, {"c": 3}]
        assert {output["route"]["current"] for output in answer} == {1}
        assert old.old(message({"give": []})) == []
        assert old.old(message({"give": None})) == []

    @pytest.mark.req("MESH-05.2", "MESH-05.3", "MESH-05.4", "MESH-06.1")
    @pytest.mark.parametrize(
        ("payload", "reason", "kind", "says"),
        [
            ({"fail": "ünïcode"}, "processing_error", "ValueError", "no good: ünïcode"),
            ({"oom": 1}, "oom_error", "MemoryError", "all of it"),
            ({"cuda": 1}, "cuda_oom_error", "RuntimeError", "CUDA out of memory. Tried to allocate 2.00 GiB"),
        ],
    )
    def test_an_error_has_reason_message_type_and_traceback(
        self, old: Runtime, payload: Any, reason: str, kind: str, says: str
    ) -> None:
        (answer,) = old.old(message(payload))
        assert answer["error"] == reason
        assert (answer["details"]["type"], answer["details"]["message"]) == (kind, says)
        assert 'handlers.py", line' in answer["details"]["traceback"]
        assert "runtime.py" not in answer["details"]["traceback"]

    @pytest.mark.req("MESH-06.1")
    @pytest.mark.parametrize(
        "body",
        [
            b"", b"{", b"[]", b"5", b"\xff\xfe", b'{"no":"payload"}', b'{"payload":NaN}', b'{"payload":1,"route":[]}',
            b'{"payload":' + b"[" * 10_000,
        ],
    )  # fmt: skip
    def test_garbage_is_answered_with_msg_parsing_error(self, old: Runtime, body: bytes) -> None:
        (answer,) = old.old(body)
        assert answer["error"] == "msg_parsing_error"
        assert set(answer["details"]) == {"message", "type", "traceback"}
        assert old.old(message({}))[0]["payload"] == {"done": True}

    def test_a_client_that_shuts_down_its_writing_side_still_gets_the_answer(self, old: Runtime) -> None:
        with Client(old.socket) as client:
            client.write(json.dumps(message({})).encode())
            client.sock.shutdown(socket.SHUT_WR)
            assert json.loads(client.read())[0]["payload"] == {"done": True}


@pytest.mark.req("MESH-04.2")
class TestLimits:
    def test_ten_megabytes_pass_and_more_than_a_frame_is_refused(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:process", code=HANDLERS) as running:
            answer = running.old(message({"text": "x" * 10_000_000}))
            assert len(answer[0]["payload"]["text"]) == 10_000_000
            (refused,) = running.old(b" " * (16 * 1024 * 1024 + 1))
            assert refused["error"] == "payload_too_large"
            (output,) = running.old(message({"give": "x" * (16 * 1024 * 1024)}))
            assert output["error"] == "payload_too_large"

    def test_both_protocols_are_served_at_once(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:process", "--workers", "2", code=HANDLERS) as running:
            with running.connect() as client:
                for n in range(50):
                    assert running.old(message({"n": n}))[0]["payload"]["n"] == n
                    assert client.value({"n": n}) == {"n": n, "done": True}

    @pytest.mark.req("MESH-07.1", "MESH-07.2")
    def test_a_handler_whose_caller_gave_up_is_killed_and_replaced(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:stuck", code=HANDLERS) as running:
            client = Client(running.socket)
            client.write(json.dumps(message({})).encode())
            eventually((tmp_path / "began").exists, "the handler runs")
            client.sock.close()
            (tmp_path / "began").unlink()
            with Client(running.socket) as second:
                second.write(json.dumps(message({})).encode())
                eventually((tmp_path / "began").exists, "the next message is served by another worker")

    @pytest.mark.req("MESH-17.1")
    def test_the_context_works_but_for_the_ledger_which_says_so(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:once", code=HANDLERS) as running:
            (answer,) = running.old(message({}))
            assert answer["error"] == "processing_error"
            assert "protocol 0, which has no ledger" in answer["details"]["message"]


@pytest.mark.req("MESH-21.2")
class TestMessageMode:
    def test_a_message_handler_returns_the_message_and_its_route_is_advanced_once(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers.message", "--handler-mode", "message", code=HANDLERS) as running:
            assert running.old(message({})) == [
                {"payload": {"seen": True}, "route": {"actors": ["first", "second", "added"], "current": 1}}
            ]

    def test_a_list_of_messages_is_a_fan_out(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers.messages", "--handler-mode", "message", code=HANDLERS) as running:
            assert [(one["payload"], one["route"]["current"]) for one in running.old(message(2))] == [(0, 1), (1, 1)]

    def test_a_result_without_a_payload_key_is_the_payload(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers.bare", "--handler-mode", "message", code=HANDLERS) as running:
            assert running.old(message({"a": 1}))[0]["payload"] == {"result": {"a": 1}}
