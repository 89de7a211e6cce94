"""Protocol 1 byte by byte: hello, codecs, framing, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime_process import Client, Runtime, alive, eventually, runtime

pytestmark = pytest.mark.integration

FRAME_MAX = 16 * 1024 * 1024

HANDLERS = """
def echo(thing):
    return thing

def big(size: int):
    return "x" * size

def many(payload):
    for _ in range(payload["count"]):
        yield "x" * payload["size"]

def ask(payload, ctx):
    try:
        sure = ctx.ask("Sure?", key="sure")
    except Exception as error:
        return {"declined": error.action}
    ctx.log("notice", "told", sure=sure)
    return sure

async def ask_async(payload, ctx):
    return await ctx.ask_all({"a": ("A?", int), "b": "B?"})
"""


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Runtime]:
    with runtime(tmp_path, "handlers:echo", code=HANDLERS) as running:
        yield running


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


class TestHello:
    @pytest.mark.req("MESH-04.1", "MESH-04.2")
    def test_the_answer_names_codec_worker_and_limits(self, echo: Runtime) -> None:
        with echo.connect() as client:
            welcome = client.welcome
            assert welcome.pop("worker") in echo.workers()
            assert welcome == {
                "protocol": 1, "codec": "msgpack", "handler": "handlers:echo", "mode": "payload", "concurrency": 1,
                "workers": 1, "frame_max": FRAME_MAX, "message_max": FRAME_MAX,
            }  # fmt: skip

    @pytest.mark.req("MESH-04.2")
    @pytest.mark.parametrize(
        ("codecs", "chosen"),
        [(["json", "msgpack"], "json"), (["cbor", "msgpack"], "msgpack"), (["cbor"], "json"), ([], "json")],
    )
    def test_the_first_known_codec_is_chosen(self, echo: Runtime, codecs: list[str], chosen: str) -> None:
        with echo.connect(codecs=codecs) as client:
            assert client.welcome["codec"] == chosen
            assert client.value({"thing": "ü"}) == "ü"

    @pytest.mark.req("MESH-04.2")
    def test_many_calls_pass_on_one_connection_and_pipelined_ones_are_answered_in_order(self, echo: Runtime) -> None:
        with echo.connect() as client:
            for n in range(50):
                client.start(n)
            assert [client.receive()["outputs"][0]["payload"] for _ in range(50)] == list(range(50))
            for n in range(500):
                assert client.value(n) == n

    @pytest.mark.req("MESH-04.2")
    def test_a_call_may_follow_the_hello_in_the_same_write(self, echo: Runtime) -> None:
        hello = b'GPLN{"protocol":1,"codecs":["json"],"session":"s"}'
        call = {"t": "call", "id": 9, "envelope": {"payload": "at once"}}
        with Client(echo.socket) as client:
            client.sock.sendall(frame(hello) + frame(json.dumps(call).encode()))
            assert json.loads(client.read())["codec"] == "json"
            assert json.loads(client.read()) == {"t": "result", "id": 9, "end": "", "outputs": [{"payload": "at once"}]}

    @pytest.mark.req("MESH-04.2")
    def test_frames_may_arrive_a_byte_at_a_time(self, echo: Runtime) -> None:
        with Client(echo.socket) as client:
            for byte in frame(b'GPLN{"protocol":1}'):
                client.sock.sendall(bytes([byte]))
            client.welcome = json.loads(client.read())
            body = json.dumps({"t": "call", "id": 1, "envelope": {"payload": {"thing": "slow"}}}).encode()
            for byte in frame(body):
                client.sock.sendall(bytes([byte]))
            assert client.receive()["outputs"] == [{"payload": "slow"}]

    @pytest.mark.req("MESH-04.2", "MESH-25.2")
    def test_a_probe_is_answered_without_a_worker_and_while_all_are_busy(self, echo: Runtime) -> None:
        with echo.connect() as busy, Client(echo.socket) as probe:
            welcome = probe.hello(purpose="probe")
            assert (welcome["protocol"], welcome["worker"]) == (1, None)
            assert probe.ended()
            assert busy.value(1) == 1

    @pytest.mark.req("MESH-04.2")
    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"GPLN", "frame: not JSON"),
            (b"GPLN[1]", "hello: [1] is not a map"),
            (b"GPLN{}", "protocol of 1 or more"),
            (b'GPLN{"protocol":0}', "protocol of 1 or more"),
            (b'GPLN{"protocol":"1"}', "protocol of 1 or more"),
            (b'GPLN{"protocol":1,"kill":"4711"}', "kill: '4711'"),
            (b'GPLN{"protocol":1,"after":-1}', "after: -1"),
            (b'GPLN{"protocol":1,"codecs":"json"}', "codecs: 'json'"),
            (b'GPLN{"protocol":1,"purpose":"tea"}', "purpose: 'tea'"),
            (b'GPLN{"protocol":1,"frame_max":10}', "frame_max: 10"),
            (b'GPLN{"protocol":1,"x":NaN}', "not finite"),
            (b"GPLN" + b"[" * 10_000, "frame: not JSON"),
            (b"GPLN" + b" " * 20_000, "hello: 20004 bytes are over the limit"),
        ],
    )
    def test_a_bad_hello_is_answered_with_what_is_wrong_and_the_connection_ends(
        self, echo: Runtime, body: bytes, says: str
    ) -> None:
        with Client(echo.socket) as client:
            client.write(body)
            answer = json.loads(client.read())
            assert says in answer["error"]["message"]
            assert answer["error"]["retryable"] is False
            assert client.ended()
        with echo.connect() as client:
            assert client.value(1) == 1

    @pytest.mark.req("MESH-04.2")
    def test_a_newer_sidecar_is_answered_with_protocol_1_and_unknown_fields_are_ignored(self, echo: Runtime) -> None:
        with echo.connect(protocol=7, features=["x"], purpose="calls", frame_max=2**40) as client:
            assert (client.welcome["protocol"], client.welcome["frame_max"]) == (1, FRAME_MAX)
            client.send({"t": "novelty", "id": 1})
            assert client.value("still") == "still"


class TestRefusals:
    @pytest.mark.req("MESH-04.1", "MESH-06.1")
    @pytest.mark.parametrize(
        "body",
        [
            b"", b"\xc1", b"\x91" * 10_000 + b"\xc0", b"garbage", b"\x93\x01\x02\x03",
            msgspec.msgpack.encode({"t": "call", "id": "one", "envelope": {}}),
            msgspec.msgpack.encode({"t": "call", "id": 1, "envelope": [1]}),
        ],
        ids=["empty", "unused", "deep", "text", "list", "id", "envelope"],
    )  # fmt: skip
    def test_garbage_in_messagepack_is_answered_and_ends_the_connection_only(self, echo: Runtime, body: bytes) -> None:
        with echo.connect() as client:
            client.write(body)
            answer = client.receive()
            assert (answer["t"], answer["id"], answer["error"]["reason"]) == ("error", None, "msg_parsing_error")
            assert client.ended()
            worker = client.worker
        with echo.connect() as client:
            assert client.value("next") == "next"
            assert client.worker == worker, "the worker lives on"

    @pytest.mark.req("MESH-04.1", "MESH-06.1")
    @pytest.mark.parametrize(
        "payload",
        [
            b"NaN", b"Infinity", b"1e999", b"18446744073709551616", b"-9223372036854775809", b"[" * 10_000,
            b'"\xff"', b"{",
        ],
    )  # fmt: skip
    def test_what_json_cannot_carry_is_refused_in_json(self, echo: Runtime, payload: bytes) -> None:
        with echo.connect(codecs=["json"]) as client:
            client.write(b'{"t":"call","id":1,"envelope":{"payload":%b}}' % payload)
            answer = client.receive()
            assert (answer["id"], answer["error"]["reason"]) == (None, "msg_parsing_error")
            assert client.ended()

    @pytest.mark.req("MESH-04.2", "MESH-06.1")
    @pytest.mark.parametrize("length", [FRAME_MAX + 1, 0x7FFFFFFF, 0xFFFFFFFF])
    def test_a_frame_over_the_limit_is_refused_before_it_is_read(self, echo: Runtime, length: int) -> None:
        with echo.connect() as client:
            client.sock.sendall(length.to_bytes(4, "big"))
            if length == FRAME_MAX + 1:
                client.sock.sendall(bytes(length))
            answer = client.receive()
            assert answer["error"]["reason"] == "payload_too_large"
            assert str(FRAME_MAX) in answer["error"]["message"]
            assert client.ended()

    @pytest.mark.req("MESH-04.2")
    def test_half_frames_and_early_ends_leave_the_worker_for_the_next(self, echo: Runtime) -> None:
        workers = set()
        for cut in (1, 3, 4, 30):
            client = echo.connect()
            workers.add(client.worker)
            client.sock.sendall(frame(b"x" * 100)[:cut])
            client.sock.close()
        for cut in (0, 2, 4, 6, 12):
            bare = Client(echo.socket)
            bare.sock.sendall(frame(b'GPLN{"protocol":1}')[:cut])
            bare.sock.close()
        with echo.connect() as client:
            assert client.value(1) == 1
            workers.add(client.worker)
        assert all(alive(worker) for worker in workers)

    @pytest.mark.req("MESH-04.2")
    def test_an_output_over_the_limit_is_an_error_and_not_a_broken_frame(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:big", code=HANDLERS) as running, running.connect() as client:
            error = client.error(FRAME_MAX)
            assert (error["reason"], error["retryable"]) == ("payload_too_large", False)
            assert len(client.value(FRAME_MAX - 2000)) == FRAME_MAX - 2000

    @pytest.mark.req("MESH-04.2", "MESH-02.2")
    def test_a_generator_without_end_is_stopped_by_the_limit(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:many", code=HANDLERS) as running, running.connect() as client:
            assert client.error({"count": 10**12, "size": 100_000})["reason"] == "payload_too_large"
            assert client.call({"count": 2, "size": 10})["outputs"] == [{"payload": "x" * 10}] * 2


class TestLongMessages:
    @pytest.mark.req("MESH-15.1", "MESH-04.2")
    @pytest.mark.parametrize("codec", ["msgpack", "json"])
    def test_messages_up_to_message_max_pass_in_parts_both_ways(self, tmp_path: Path, codec: str) -> None:
        payload = "0123456789" * 200_000
        with runtime(tmp_path, "handlers:echo", code=HANDLERS) as running:
            with running.connect(codecs=[codec], frame_max=100_000, message_max=4_000_000) as client:
                assert (client.welcome["frame_max"], client.welcome["message_max"]) == (100_000, 4_000_000)
                message: dict[str, Any] = {"t": "call", "id": 5, "envelope": {"payload": payload}}
                body = msgspec.msgpack.encode(message) if codec == "msgpack" else msgspec.json.encode(message)
                pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
                for piece in pieces[:-1]:
                    client.sock.sendall((len(piece) | 0x80000000).to_bytes(4, "big") + piece)
                client.write(pieces[-1])
                answer = client.outcome(5)
                assert answer["outputs"] == [{"payload": payload}]
                assert client.value("short") == "short"

    @pytest.mark.req("MESH-15.1")
    def test_parts_over_message_max_are_refused(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:echo", code=HANDLERS) as running:
            with running.connect(frame_max=100_000, message_max=250_000) as client:
                for _ in range(3):
                    client.sock.sendall((100_000 | 0x80000000).to_bytes(4, "big") + bytes(100_000))
                answer = client.receive()
                assert answer["error"]["reason"] == "payload_too_large"
                assert client.ended()


class TestAsyncConnections:
    @pytest.mark.req("MESH-04.2")
    def test_garbage_and_disconnects_leave_an_async_worker_for_the_next(self, tmp_path: Path) -> None:
        code = "async def echo(thing):\n    return thing\n"
        with runtime(tmp_path, "handlers:echo", code=code) as running:
            client = running.connect()
            worker = client.worker
            with client:
                client.write(b"\xc1")
                assert client.receive()["error"]["reason"] == "msg_parsing_error"
                assert client.ended()
            client = running.connect()
            client.sock.sendall(b"\0\0\0\x20abc")
            client.sock.close()
            with Client(running.socket) as client:
                hello = b'GPLN{"protocol":1,"codecs":["json"]}'
                client.sock.sendall(frame(hello) + frame(b'{"t":"call","id":1,"envelope":{"payload":[1]}}'))
                assert json.loads(client.read())["worker"] == worker
                assert json.loads(client.read())["outputs"] == [{"payload": [1]}]
                client.sock.sendall((FRAME_MAX + 1).to_bytes(4, "big"))
                assert json.loads(client.read())["error"]["reason"] == "payload_too_large"
            eventually(lambda: len(running.workers()) == 2, "the standby is there, and nobody died")
            assert worker in running.workers()


def _shown(key: str, message: str, kind: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"value": {"type": kind}}, "required": ["value"]}
    return {"key": key, "kind": "elicit", "message": message, "schema": schema, "params": {}}


@pytest.mark.req("GATE-16.1")
class TestQuestions:
    @pytest.mark.parametrize("codec", ["msgpack", "json"])
    def test_an_answer_that_is_there_is_replied(self, tmp_path: Path, codec: str) -> None:
        with runtime(tmp_path, "handlers:ask", code=HANDLERS) as running, running.connect(codecs=[codec]) as client:
            call = client.start({})
            asked = {"t": "ask", "id": call, "seq": 1, "op": "question"}
            assert client.receive() == {**asked, "questions": [_shown("sure", "Sure?", "boolean")]}
            answers = [{"action": "accept", "content": {"value": True}}]
            client.send({"t": "reply", "id": call, "seq": 1, "value": {"state": "answered", "answers": answers}})
            line = {"t": "log", "id": call, "level": "notice", "message": "told", "data": {"sure": True}}
            assert client.receive() == line
            assert client.outcome(call)["outputs"] == [{"payload": True}]

    def test_a_question_without_an_answer_ends_the_run_and_not_the_worker(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:ask", code=HANDLERS) as running, running.connect() as client:
            for _ in range(2):
                call = client.start({})
                asked = client.receive()
                assert asked["op"] == "question"
                client.send({"t": "reply", "id": call, "seq": asked["seq"], "value": {"state": "suspended"}})
                assert client.outcome(call) == {"t": "result", "id": call, "outputs": [], "end": "suspended"}
            assert client.worker in running.workers()

    def test_a_question_that_is_declined_raises_in_the_handler(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:ask", code=HANDLERS) as running, running.connect() as client:
            call = client.start({})
            client.receive()
            answers = [{"action": "decline", "content": None}]
            client.send({"t": "reply", "id": call, "seq": 1, "value": {"state": "answered", "answers": answers}})
            assert client.outcome(call)["outputs"] == [{"payload": {"declined": "decline"}}]

    def test_an_async_handler_asks_several_at_once_and_is_suspended(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:ask_async", code=HANDLERS) as running, running.connect() as client:
            call = client.start({})
            asked = client.receive()
            assert asked["questions"] == [_shown("a", "A?", "integer"), _shown("b", "B?", "boolean")]
            client.send({"t": "reply", "id": call, "seq": asked["seq"], "value": {"state": "suspended"}})
            assert client.outcome(call)["end"] == "suspended"
            call = client.start({})
            answers = [{"action": "accept", "content": {"value": value}} for value in (3, False)]
            value = {"state": "answered", "answers": answers}
            client.send({"t": "reply", "id": call, "seq": client.receive()["seq"], "value": value})
            assert client.outcome(call)["outputs"] == [{"payload": {"a": 3, "b": False}}]

    def test_a_sidecar_of_protocol_zero_is_refused(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:ask", code=HANDLERS.replace("except Exception", "except KeyError")) as running:
            (answer,) = running.old({"payload": {}})
            assert "protocol 0, which has no questions" in answer["details"]["message"]
