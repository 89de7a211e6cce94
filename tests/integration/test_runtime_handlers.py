"""What a handler may be, what it takes and what it may return, in a real runtime over its socket."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime_process import Client, Runtime, runtime

pytestmark = pytest.mark.integration

HANDLERS = """
import asyncio, dataclasses, functools, os
from typing import Any, Optional

from groundplane import Context, Envelope, FanOut, Reject, Retry, Stop
import msgspec

class Order(msgspec.Struct):
    sku: str
    count: int = 1

def double(value: int) -> int:
    return value * 2

def scaled(value: int, factor: float = 2.0):
    return {"value": value, "factor": factor}

def whole(payload: dict):
    return payload

def anything(thing):
    return thing

def order(order: Order):
    return {"sku": order.sku, "count": order.count}

def keywords(value, **others):
    return {"value": value, "others": others}

def positional(value, /, other=1):
    return [value, other]

def nothing():
    return "ran"

def envelope(envelope: Envelope, ctx: Context):
    return {"id": envelope.id, "trace": ctx.headers["trace"], "actors": envelope.route.actors}

def reroute(envelope: Envelope):
    route = type(envelope.route)([*envelope.route.actors, "third"], envelope.route.current)
    return msgspec.structs.replace(envelope, payload="rerouted", route=route)

def message(message):
    message["route"]["actors"].append("third")
    message["payload"] = {"seen": message["payload"]}
    return message

def messages(message):
    return [{**message, "payload": n} for n in range(message["payload"])]

def context(payload, ctx):
    return [ctx.attempt, ctx.idempotency_key, ctx.deadline and ctx.deadline.isoformat(), ctx.remaining_s,
            ctx.headers, ctx.envelope["id"], ctx.join and [ctx.join.total, ctx.join.missing, ctx.join.reason],
            ctx.cancelled]

class Model:
    loaded = 0

    def __init__(self):
        Model.loaded += 1
        self.calls = 0

    def process(self, payload):
        self.calls += 1
        return {"loaded": Model.loaded, "calls": self.calls}

    async def apply(self, payload):
        self.calls += 1
        return {"calls": self.calls, "pid": os.getpid()}

    @staticmethod
    def still(value):
        return value

class Heir(Model):
    def __call__(self, payload):
        return "called"

Alias = Model

def gen(payload):
    for n in range(payload["count"]):
        yield {"n": n}

def fan(payload):
    return FanOut(payload)

def returns(what):
    return {"none": None, "stop": Stop(), "stop_with": Stop({"kept": 1}), "empty": FanOut([]), "list": [1, 2],
            "empty_list": [], "zero": 0, "false": False, "string": "", "map": {}, "one": FanOut([7])}[what]

async def agen(payload):
    for n in range(payload["count"]):
        await asyncio.sleep(0)
        yield n

async def adouble(value: int):
    await asyncio.sleep(0)
    return value * 2

def coroutine(value):
    return adouble(value)

partial = functools.partial(scaled, factor=3.0)

def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

@wrapped
def decorated(value: int):
    return value + 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("handlers")
    (made / "handlers.py").write_text(HANDLERS)
    return made


def serve(folder: Path, name: str, *flags: str) -> Any:
    return runtime(folder, name, *flags, "--standby", "0", source=None)


def once(folder: Path, name: str, payload: Any, *flags: str, **fields: Any) -> dict[str, Any]:
    """The answer of a fresh runtime to one call."""
    with serve(folder, name, *flags) as running, running.connect() as client:
        return client.call(payload, **fields)


class TestArguments:
    @pytest.mark.req("MESH-03.1")
    def test_a_payload_binds_by_name_or_as_a_whole_and_is_checked(self, folder: Path) -> None:
        with serve(folder, "handlers:double") as running, running.connect() as client:
            assert client.value({"value": 5}) == 10
            assert client.value(5) == 10
            error = client.error({"value": "five"})
            assert (error["reason"], error["retryable"]) == ("msg_parsing_error", False)
            assert error["message"].startswith("value: 'five' does not fit int")
            assert "'value' is missing" in client.error({})["message"]
            assert "'valeu' is unknown" in client.error({"valeu": 5})["message"]
            assert "'other' is unknown" in client.error({"value": 5, "other": 1})["message"]
            assert client.error(None)["message"].startswith("value: None does not fit int")
            assert client.error(True)["reason"] == "msg_parsing_error"
            assert client.value(6) == 12

    @pytest.mark.req("MESH-03.1")
    @pytest.mark.parametrize(
        ("name", "payload", "expected"),
        [
            ("scaled", {"value": 1}, {"value": 1, "factor": 2.0}),
            ("scaled", {"value": 1, "factor": 3}, {"value": 1, "factor": 3.0}),
            ("scaled", 4, {"value": 4, "factor": 2.0}),
            ("whole", {"a": None, "b": [1]}, {"a": None, "b": [1]}),
            ("whole", {}, {}),
            ("whole", {"payload": {"inner": 1}}, {"inner": 1}),
            ("anything", None, None),
            ("order", {"sku": "x"}, {"sku": "x", "count": 1}),
            ("order", {"order": {"sku": "y", "count": 2}}, {"sku": "y", "count": 2}),
            ("keywords", {"value": 1, "b": 2}, {"value": 1, "others": {"b": 2}}),
            ("positional", {"value": 1, "other": 2}, [1, 2]),
            ("positional", "x", ["x", 1]),
            ("nothing", None, "ran"),
            ("nothing", {}, "ran"),
            ("partial", {"value": 2}, {"value": 2, "factor": 3.0}),
            ("decorated", 1, 2),
            ("coroutine", 4, 8),
        ],
    )
    def test_the_rules_of_binding(self, folder: Path, name: str, payload: Any, expected: Any) -> None:
        answer = once(folder, f"handlers:{name}", payload)
        outputs = [output["payload"] for output in answer.get("outputs", [answer])]
        assert outputs == ([expected] if expected is not None else [])

    @pytest.mark.req("MESH-03.1")
    @pytest.mark.parametrize(
        ("name", "payload", "says"),
        [
            ("nothing", 5, "takes (nothing)"),
            ("whole", 5, "payload: 5 does not fit dict"),
            ("order", {"sku": 3}, "Expected `str`, got `int`"),
            ("order", {"order": {"sku": "x"}, "more": 1}, "'more' is unknown"),
            ("positional", {"other": {}}, "positional"),
        ],
    )
    def test_what_does_not_fit_is_named(self, folder: Path, name: str, payload: Any, says: str) -> None:
        answer = once(folder, f"handlers:{name}", payload)
        if says == "positional":  # a map that lacks the only required name is the whole payload
            assert answer["outputs"][0]["payload"] == [{"other": {}}, 1]
            return
        assert answer["error"]["reason"] == "msg_parsing_error"
        assert says in answer["error"]["message"]

    @pytest.mark.req("MESH-03.1", "MESH-01.4")
    def test_a_handler_may_take_the_envelope_and_edit_the_future_of_its_route(self, folder: Path) -> None:
        answer = once(folder, "handlers:envelope", {"any": "thing"})
        assert answer["outputs"][0]["payload"]["trace"] == "t-1"
        assert answer["outputs"][0]["payload"]["actors"] == ["first", "second"]
        (output,) = once(folder, "handlers:reroute", 1)["outputs"]
        assert output["payload"] == "rerouted"
        assert output["route"] == {"actors": ["first", "second", "third"], "current": 1}
        assert output["headers"] == {"trace": "t-1"}

    @pytest.mark.req("MESH-20.1")
    def test_the_context_tells_attempt_key_deadline_headers_and_join(self, folder: Path) -> None:
        with serve(folder, "handlers:context") as running, running.connect() as client:
            told = client.value(
                1, attempt=3, idempotency_key="key-1", deadline_ms=4102444800000, timeout_s=9.5,
                join={"total": 3, "missing": [1], "reason": "join_timeout"},
            )  # fmt: skip
            assert told[:3] == [3, "key-1", "2100-01-01T00:00:00+00:00"]
            assert 0 < told[3] <= 9.5
            assert told[4:] == [
                {"trace": "t-1"},
                "0190aaaa-0000-7000-8000-000000000001",
                [3, [1], "join_timeout"],
                False,
            ]
            assert client.value(1, deadline_ms=1000)[3] == 0.0
            bare = client.value(1, attempt=None)
            assert (bare[0], bare[2], bare[3], bare[6]) == (1, None, None, None)


class TestKinds:
    @pytest.mark.req("MESH-03.1", "MESH-21.1")
    @pytest.mark.parametrize(
        "name", ["handlers:Model", "handlers.Model.process", "handlers:Alias", "handlers.py:Model"]
    )
    def test_a_class_is_loaded_once(self, folder: Path, name: str) -> None:
        with serve(folder, name) as running, running.connect() as client:
            assert [client.value(n)["calls"] for n in range(3)] == [1, 2, 3]
            assert client.value(1)["loaded"] == 1
            client.sock.close()
            with running.connect() as again:
                assert again.value(1) == {"loaded": 1, "calls": 5}, "the instance outlives the connection"

    @pytest.mark.req("MESH-03.1")
    @pytest.mark.parametrize(
        ("name", "payload", "expected"),
        [
            ("handlers:Heir", 1, {"loaded": 1, "calls": 1}),
            ("handlers:Heir.__call__", 1, "called"),
            ("handlers:Heir.process", 1, {"loaded": 1, "calls": 1}),
            ("handlers:Model.still", 4, 4),
            ("handlers.double", 4, 8),
            ("handlers:adouble", 4, 8),
            ("operator:neg", 4, -4),
            ("math.sqrt", 4, 2.0),
        ],
    )
    def test_functions_methods_and_builtins_run_by_name(
        self, folder: Path, name: str, payload: Any, expected: Any
    ) -> None:
        assert once(folder, name, payload)["outputs"] == [{"payload": expected}]

    @pytest.mark.req("MESH-19.1")
    def test_the_calls_of_an_async_handler_overlap_on_one_connection(self, tmp_path: Path) -> None:
        code = """
import asyncio
gate = None
async def meet(payload, ctx):
    global gate
    gate = gate or asyncio.Barrier(3)
    await gate.wait()
    return payload
"""
        with (
            runtime(tmp_path, "handlers:meet", "--concurrency", "3", code=code) as running,
            running.connect() as client,
        ):
            assert client.welcome["concurrency"] == 3
            calls = [client.start(n) for n in range(3)]
            answers = {message["id"]: message["outputs"][0]["payload"] for message in (client.receive() for _ in calls)}
            assert answers == {1: 0, 2: 1, 3: 2}

    @pytest.mark.req("MESH-19.1")
    def test_an_async_worker_runs_no_more_calls_at_once_than_it_said(self, tmp_path: Path) -> None:
        code = """
import asyncio
running = most = 0
async def count(payload):
    global running, most
    running += 1
    most = max(most, running)
    for _ in range(5):
        await asyncio.sleep(0)
    running -= 1
    return most
"""
        with (
            runtime(tmp_path, "handlers:count", "--concurrency", "2", code=code) as running,
            running.connect() as client,
        ):
            for n in range(20):
                client.start(n)
            assert max(client.receive()["outputs"][0]["payload"] for _ in range(20)) == 2

    @pytest.mark.req("MESH-19.1")
    def test_calls_of_a_sync_handler_run_in_as_many_processes_as_allowed(self, tmp_path: Path) -> None:
        code = """
import os
def stay(payload, ctx):
    ctx.progress(1)
    while not os.path.exists("go"):
        pass
    return os.getpid()
"""
        with runtime(tmp_path, "handlers:stay", "--workers", "2", code=code) as running:
            with running.connect() as one, running.connect() as two:
                assert one.welcome["workers"] == 2
                calls = one.start(1), two.start(1)
                assert one.receive()["t"] == two.receive()["t"] == "progress", "both run before either ends"
                (tmp_path / "go").touch()
                pids = {one.outcome(calls[0])["outputs"][0]["payload"], two.outcome(calls[1])["outputs"][0]["payload"]}
                assert pids == {one.worker, two.worker}
                assert len(pids) == 2


class TestOutputs:
    @pytest.mark.req("MESH-02.1", "MESH-02.2", "MESH-02.3", "MESH-02.4", "MESH-05.7")
    def test_what_a_returned_value_becomes(self, folder: Path) -> None:
        with serve(folder, "handlers:returns") as running, running.connect() as client:

            def outcome(what: str) -> dict[str, Any]:
                answer = client.call({"what": what})
                return {name: value for name, value in answer.items() if name not in ("t", "id")}

            aborted = {"outputs": [], "end": "aborted"}
            assert outcome("none") == aborted
            assert outcome("stop") == aborted
            assert outcome("stop_with") == {**aborted, "payload": {"kept": 1}}
            assert outcome("empty") == {**aborted, "fanout": True}
            for what, value in {
                "list": [1, 2], "empty_list": [], "zero": 0, "false": False, "string": "", "map": {},
            }.items():  # fmt: skip
                assert outcome(what) == {"outputs": [{"payload": value}], "end": ""}
            assert outcome("one") == {"outputs": [{"payload": 7}], "end": "", "fanout": True}

    @pytest.mark.req("MESH-02.2", "MESH-05.6")
    @pytest.mark.parametrize("name", ["gen", "agen"])
    @pytest.mark.parametrize("count", [0, 1, 3, 20_000])
    def test_a_generator_gives_one_output_each(self, folder: Path, name: str, count: int) -> None:
        answer = once(folder, f"handlers:{name}", {"count": count})
        expected = [{"n": n} if name == "gen" else n for n in range(count)]
        assert [output["payload"] for output in answer["outputs"]] == expected
        assert answer["fanout"] is True
        assert answer["end"] == ("" if count else "aborted")

    @pytest.mark.req("MESH-02.2")
    def test_a_fan_out_keeps_order_and_nulls(self, folder: Path) -> None:
        answer = once(folder, "handlers:fan", [3, None, [1], {}])
        assert [output["payload"] for output in answer["outputs"]] == [3, None, [1], {}]

    @pytest.mark.req("MESH-21.2", "MESH-01.4")
    @pytest.mark.parametrize("mode", ["message", "envelope"])
    def test_message_mode_hands_over_the_whole_message(self, folder: Path, mode: str) -> None:
        (output,) = once(folder, "handlers:message", {"a": 1}, "--handler-mode", mode)["outputs"]
        assert output == {
            "payload": {"seen": {"a": 1}},
            "route": {"actors": ["first", "second", "third"], "current": 1},
            "headers": {"trace": "t-1"},
        }

    @pytest.mark.req("MESH-21.2")
    def test_in_message_mode_a_list_is_a_fan_out_and_an_empty_one_ends_the_route(self, folder: Path) -> None:
        with serve(folder, "handlers:messages", "--handler-mode", "message") as running, running.connect() as client:
            answer = client.call(3)
            assert [output["payload"] for output in answer["outputs"]] == [0, 1, 2]
            assert answer["fanout"] is True
            assert {output["route"]["current"] for output in answer["outputs"]} == {1}
            assert client.call(0)["end"] == "aborted"


class TestValues:
    @pytest.fixture
    def echo(self, folder: Path) -> Iterator[Runtime]:
        with serve(folder, "handlers:anything", "--workers", "2") as running:
            yield running

    @pytest.fixture(params=["msgpack", "json"])
    def client(self, echo: Runtime, request: pytest.FixtureRequest) -> Iterator[Client]:
        with echo.connect(codecs=[request.param]) as client:
            assert client.welcome["codec"] == request.param
            yield client

    @pytest.mark.req("MESH-05.9", "MESH-05.10", "MESH-05.12", "MESH-04.1")
    def test_text_nulls_and_depth_pass_unchanged(self, client: Client) -> None:
        deep: Any = {"bottom": None}
        for level in range(20):
            deep = {"level": level, "next": deep, "list": [None, [None], {"x": None}]}
        for value in (
            {
                "zh": "你好，世界",
                "ja": "こんにちは",
                "ar": "مرحبا بالعالم",
                "ru": "Привет",
                "emoji": "👩‍👩‍👧‍👦🚀",
                "nul": "\0",
            },
            {"thing": None, "list": [None, {"a": None}], "": "", "deep": deep},
            ["", [], {}, 0, -1, 2**63, -(2**63), 1.5, 1e-300, True, False],
        ):
            assert client.value({"thing": value}) == value

    @pytest.mark.req("MESH-05.8")
    @pytest.mark.parametrize("size", [100_000, 10_000_000])
    def test_large_payloads_pass_unchanged(self, client: Client, size: int) -> None:
        text = ("0123456789abcdef" * (size // 16))[:size]
        assert client.value({"thing": text}) == text

    def test_bytes_and_not_a_number_pass_in_messagepack(self, echo: Runtime) -> None:
        with echo.connect() as client:
            assert client.value(b"\x00\xff\xfe") == b"\x00\xff\xfe"
            assert math.isnan(client.value(math.nan))
            assert client.value(-math.inf) == -math.inf
