"""What happens during a call: errors, progress, cancelling, the ledger, metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundplane.mesh.runtime import HANGUP_GRACE_S
from runtime_process import Client, Runtime, alive, eventually, runtime

pytestmark = pytest.mark.integration

ERRORS = """
import sys
from groundplane import NotFound, Reject, Retry, Unavailable

class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no text")

class Deep(LookupError):
    pass

class OutOfMemoryError(RuntimeError):
    pass

OutOfMemoryError.__module__ = "torch.cuda"
cleaned = 0

def clean():
    global cleaned
    cleaned += 1
    if cleaned == 2:
        raise ValueError("the hook fails too")

def recurse(n):
    return recurse(n + 1)

def fail(kind):
    if kind == "cleaned":
        return cleaned
    if kind == "value":
        raise ValueError("bad " + "ünïcode 🚀")
    if kind == "cause":
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise Deep("outer") from error
    if kind == "memory":
        hoard = [bytes(10**6)]
        raise MemoryError(len(hoard))
    if kind == "cuda":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB (GPU 0)")
    if kind == "torch":
        raise OutOfMemoryError("HIP")
    if kind == "retry":
        raise Retry(2.5)
    if kind == "retry_later":
        raise Retry()
    if kind == "reject":
        raise Reject("never")
    if kind == "not_found":
        raise NotFound("sku: 'x' is unknown", reason="queue_not_found", details={"sku": "x", "odd": {1, 2}})
    if kind == "unavailable":
        raise Unavailable("down")
    if kind == "recursion":
        recurse(0)
    if kind == "huge":
        raise ValueError("x" * 10_000_000)
    if kind == "surrogate":
        raise ValueError("lone \\ud800 surrogate")
    if kind == "odd":
        raise Odd()
    if kind == "object":
        return {"a": [object()]}
    if kind == "text":
        return "lone \\ud800 surrogate"
    if kind == "nan":
        return float("nan")
    if kind == "long":
        return [{"n": -2**70}]
    if kind == "cycle":
        loop = []
        loop.append(loop)
        return loop
    if kind == "assert":
        assert False, "said so"
    if kind == "exit":
        sys.exit("enough")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "base":
        raise BaseException("bottom")
    if kind == "notes":
        print("printed by the handler")
        print("and on stderr", file=sys.stderr)
        return "printed"
"""


class TestErrors:
    @pytest.fixture
    def failing(self, tmp_path: Path) -> Iterator[Runtime]:
        with runtime(
            tmp_path, "handlers:fail", "--cuda-cleanup", "handlers:clean", code=ERRORS, source=None
        ) as running:
            yield running

    @pytest.fixture(params=["msgpack", "json"])
    def client(self, failing: Runtime, request: pytest.FixtureRequest) -> Iterator[Client]:
        with failing.connect(codecs=[request.param]) as client:
            yield client

    @pytest.mark.req("MESH-05.2", "MESH-05.3", "MESH-05.4", "MESH-06.1", "MESH-09.1")
    def test_an_exception_becomes_reason_type_ancestry_message_and_traceback(self, client: Client) -> None:
        error = client.error("value")
        assert error["reason"] == "processing_error"
        assert (error["type"], error["message"]) == ("ValueError", "bad ünïcode 🚀")
        assert error["types"] == ["ValueError", "Exception", "BaseException"]
        assert error["traceback"].startswith("Traceback (most recent call last):\n  File")
        assert "handlers.py" in error["traceback"]
        assert "runtime.py" not in error["traceback"]
        assert error["retryable"] is None
        assert error["retry_after_s"] is None
        error = client.error("cause")
        assert error["types"] == ["handlers.Deep", "LookupError", "Exception", "BaseException"]
        assert "KeyError: 'inner'" in error["traceback"], "the cause is kept"
        assert client.error("assert")["type"] == "AssertionError"
        assert client.error("base")["type"] == "BaseException"

    @pytest.mark.req("MESH-05.3", "MESH-05.4", "MESH-06.1")
    def test_memory_errors_have_reasons_of_their_own_and_the_cuda_hook_runs(self, client: Client) -> None:
        assert client.error("memory")["reason"] == "oom_error"
        assert client.value("cleaned") == 0
        assert client.error("cuda")["reason"] == "cuda_oom_error"
        assert client.value("cleaned") == 1
        assert client.error("torch")["reason"] == "cuda_oom_error"
        assert client.value("cleaned") == 2, "a hook that fails does no harm"

    @pytest.mark.req("MESH-09.1", "MESH-06.1")
    def test_signals_and_coded_errors_keep_what_they_say(self, client: Client) -> None:
        error = client.error("retry")
        assert (error["retryable"], error["retry_after_s"], error["type"]) == (
            True,
            2.5,
            "groundplane.mesh.runtime.Retry",
        )
        assert client.error("retry_later")["retry_after_s"] is None
        error = client.error("reject")
        assert (error["reason"], error["retryable"], error["message"]) == ("non_retryable", False, "never")
        error = client.error("not_found")
        assert (error["reason"], error["code"], error["retryable"]) == ("queue_not_found", "not_found", False)
        assert error["details"]["sku"] == "x"
        error = client.error("unavailable")
        assert (error["reason"], error["code"], error["retryable"]) == ("processing_error", "unavailable", True)

    @pytest.mark.req("MESH-05.2", "MESH-11.1")
    def test_errors_are_bounded_and_can_always_be_sent(self, client: Client) -> None:
        error = client.error("recursion")
        assert error["type"] == "RecursionError"
        assert len(error["traceback"]) <= 64 * 1024
        error = client.error("huge")
        assert len(error["message"]) <= 8 * 1024 + 100
        assert len(error["traceback"]) <= 64 * 1024 + 100
        assert error["message"].startswith("xxx")
        assert client.error("surrogate")["message"] == "lone \\ud800 surrogate"
        assert client.error("odd")["message"] == "<Odd, and its text raised RuntimeError>"

    @pytest.mark.req("MESH-02.1", "MESH-06.1")
    def test_an_output_that_cannot_be_sent_is_an_error_that_names_it(self, client: Client) -> None:
        assert "object" in client.error("object")["message"]
        assert client.error("object")["reason"] == "processing_error"
        assert client.error("text")["reason"] == "processing_error"
        assert client.error("cycle")["reason"] == "processing_error"
        assert "64 bit" in client.error("long")["message"] or "2**63" in client.error("long")["message"]
        if client.welcome["codec"] == "json":
            assert "JSON" in client.error("nan")["message"]

    @pytest.mark.req("MESH-07.1")
    @pytest.mark.parametrize("kind", ["exit", "interrupt"])
    def test_a_handler_that_ends_the_process_is_reported_and_its_worker_replaced(
        self, failing: Runtime, kind: str
    ) -> None:
        with failing.connect() as client:
            error = client.error(kind)
            assert error["type"] == {"exit": "SystemExit", "interrupt": "KeyboardInterrupt"}[kind]
            assert client.ended()
        with failing.connect(after=client.worker) as again:
            assert again.welcome["exit"] == {
                "worker": client.worker, "signal": None, "status": 70, "reason": "runtime_crashed",
            }  # fmt: skip
            assert again.value("cleaned") == 0

    @pytest.mark.req("MESH-04.1")
    def test_what_a_handler_prints_goes_where_it_went_and_harms_no_frame(self, failing: Runtime) -> None:
        with failing.connect() as client:
            assert client.value("notes") == "printed"
            eventually(lambda: failing.stdout == "printed by the handler\n", "it is there at once, and once")
            assert "and on stderr\n" in failing.stderr


CONTEXT = """
import asyncio, threading

def report(payload, ctx):
    ctx.progress(0)
    ctx.progress(37.5, "some")
    ctx.heartbeat()
    ctx.count("pages", 3, kind="pdf")
    ctx.gauge("depth", 1.5)
    ctx.observe("seconds", 0.25)
    return "done"

async def areport(payload, ctx):
    return report(payload, ctx)

def wrong(payload, ctx):
    ctx.progress(payload)

def until_cancelled(payload, ctx):
    ctx.heartbeat()
    while not ctx.cancelled:
        pass
    open("cancelled", "a").close()
    return "stopped"

async def auntil_cancelled(payload, ctx):
    ctx.heartbeat()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        open("cancelled", "a").close()
        raise

async def stubborn(payload, ctx):
    ctx.heartbeat()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return ["finished", ctx.cancelled]

async def own_cancel(payload):
    raise asyncio.CancelledError

def effect(payload, ctx):
    return ctx.once("charge", lambda: {"charged": payload}, in_doubt=payload)

async def aeffect(payload, ctx):
    async def charge():
        await asyncio.sleep(0)
        return {"charged": payload}
    return await ctx.once("charge", charge, in_doubt=payload)

def threads(payload, ctx):
    def work():
        for n in range(50):
            ctx.progress(n, "x" * 3000)
            ctx.cancelled
    started = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in started]
    [t.join() for t in started]
    return "joined"
"""


class TestContext:
    @pytest.mark.req("MESH-20.1", "MESH-22.4")
    @pytest.mark.parametrize("name", ["report", "areport"])
    def test_progress_heartbeats_and_metrics_come_before_the_result_in_order(self, tmp_path: Path, name: str) -> None:
        with runtime(tmp_path, f"handlers:{name}", code=CONTEXT) as running, running.connect() as client:
            assert client.value(1) == "done"
            metric = {"t": "metric", "id": 1}
            assert client.events() == [
                {"t": "progress", "id": 1, "percent": 0, "message": ""},
                {"t": "progress", "id": 1, "percent": 37.5, "message": "some"},
                {"t": "heartbeat", "id": 1},
                {**metric, "name": "pages", "kind": "counter", "value": 3, "labels": {"kind": "pdf"}},
                {**metric, "name": "depth", "kind": "gauge", "value": 1.5, "labels": {}},
                {**metric, "name": "seconds", "kind": "histogram", "value": 0.25, "labels": {}},
            ]

    @pytest.mark.req("MESH-20.1")
    @pytest.mark.parametrize("percent", [-1, 100.5, float("nan")])
    def test_progress_outside_of_0_to_100_is_the_handlers_error(self, tmp_path: Path, percent: float) -> None:
        with runtime(tmp_path, "handlers:wrong", code=CONTEXT) as running, running.connect() as client:
            assert client.error(percent)["message"] == f"percent: {percent!r} is not between 0 and 100"

    @pytest.mark.req("MESH-20.1")
    def test_threads_of_a_handler_may_use_the_context(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:threads", code=CONTEXT) as running, running.connect() as client:
            assert client.value(1) == "joined"
            assert len(client.events()) == 200

    @pytest.mark.req("MESH-20.2")
    def test_a_sync_handler_sees_that_it_is_cancelled_while_it_runs(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:until_cancelled", code=CONTEXT) as running, running.connect() as client:
            for _ in range(2):
                call = client.start(1)
                assert client.receive()["t"] == "heartbeat"
                client.send({"t": "cancel", "id": call + 100, "reason": "cancelled"})
                client.send({"t": "cancel", "id": call, "reason": "cancelled"})
                assert client.outcome(call)["outputs"] == [{"payload": "stopped"}]

    @pytest.mark.req("MESH-20.2", "MESH-10.1")
    @pytest.mark.parametrize(
        ("reason", "expected"), [("cancelled", "cancelled"), ("timeout", "timeout_error"), ("drain", "cancelled")]
    )
    def test_an_async_handler_is_cancelled_and_others_go_on(self, tmp_path: Path, reason: str, expected: str) -> None:
        with runtime(tmp_path, "handlers:auntil_cancelled", code=CONTEXT) as running, running.connect() as client:
            first, second = client.start(1), client.start(2)
            assert {client.receive()["id"], client.receive()["id"]} == {first, second}
            client.send({"t": "cancel", "id": first, "reason": reason})
            error = client.outcome(first)["error"]
            assert (error["reason"], error["details"]) == (expected, {"cancel": reason})
            assert client.silent(), "the second goes on"
            client.send({"t": "cancel", "id": second, "reason": "cancelled"})
            assert client.outcome(second)["error"]["reason"] == "cancelled"

    @pytest.mark.req("MESH-20.2")
    def test_a_call_that_is_cancelled_before_it_began_is_answered(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:auntil_cancelled", code=CONTEXT) as running, running.connect() as client:
            import msgspec

            call = {"t": "call", "id": 1, "envelope": {"payload": 1}}
            bodies = [msgspec.msgpack.encode(one) for one in (call, {"t": "cancel", "id": 1, "reason": "cancelled"})]
            client.sock.sendall(b"".join(len(body).to_bytes(4, "big") + body for body in bodies))
            assert client.outcome(1)["error"]["reason"] == "cancelled"

    @pytest.mark.req("MESH-20.2")
    def test_an_async_handler_may_finish_although_cancelled(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:stubborn", code=CONTEXT) as running, running.connect() as client:
            call = client.start(1)
            assert client.receive()["t"] == "heartbeat"
            client.send({"t": "cancel", "id": call, "reason": "cancelled"})
            assert client.outcome(call)["outputs"] == [{"payload": ["finished", True]}]

    @pytest.mark.req("MESH-06.1")
    def test_a_cancellation_that_nobody_asked_for_is_the_handlers_error(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:own_cancel", code=CONTEXT) as running, running.connect() as client:
            assert client.error(1)["reason"] == "processing_error"

    @pytest.mark.req("MESH-20.2")
    @pytest.mark.parametrize("name", ["until_cancelled", "auntil_cancelled"])
    def test_a_handler_is_cancelled_when_its_sidecar_goes_away(self, tmp_path: Path, name: str) -> None:
        with runtime(tmp_path, f"handlers:{name}", code=CONTEXT) as running:
            noticed = tmp_path / "cancelled"
            for _ in range(3):  # a machine may stall for longer than the grace, not each time
                noticed.unlink(missing_ok=True)
                with running.connect() as client:
                    client.start(1)
                    assert client.receive()["t"] == "heartbeat"
                eventually(lambda pid=client.worker: noticed.exists() or not alive(pid), "the handler noticed")
                eventually(lambda: len(running.workers()) == 2, "the standby runs")
                time.sleep(2 * HANGUP_GRACE_S)  # that nothing happens then is what is tested
                if client.worker in running.workers():
                    break
            else:
                pytest.fail("a handler that stops by itself keeps its worker")

    @pytest.mark.req("MESH-17.1")
    @pytest.mark.parametrize("name", ["effect", "aeffect"])
    def test_once_asks_before_and_records_after_and_takes_a_recorded_result(self, tmp_path: Path, name: str) -> None:
        with runtime(tmp_path, f"handlers:{name}", code=CONTEXT) as running, running.connect() as client:
            call = client.start("run")
            begin = client.receive()
            assert begin == {"t": "ask", "id": call, "seq": 1, "op": "once_begin", "key": "charge", "in_doubt": "run"}
            assert client.silent()
            client.send({"t": "reply", "id": call, "seq": 1, "value": {"state": "new"}})
            end = client.receive()
            assert end == {
                "t": "ask", "id": call, "seq": 2, "op": "once_end", "key": "charge", "value": {"charged": "run"},
            }  # fmt: skip
            assert client.silent(), "it waits until the result is durable"
            client.send({"t": "reply", "id": call, "seq": 2, "value": {}})
            assert client.outcome(call)["outputs"] == [{"payload": {"charged": "run"}}]

            call = client.start("run")
            assert client.receive()["op"] == "once_begin"
            client.send(
                {"t": "reply", "id": call, "seq": 3, "value": {"state": "done", "value": {"charged": "before"}}}
            )
            assert client.outcome(call)["outputs"] == [{"payload": {"charged": "before"}}]

    @pytest.mark.req("MESH-17.1", "MESH-06.1")
    @pytest.mark.parametrize("name", ["effect", "aeffect"])
    def test_an_effect_in_doubt_is_an_error_with_its_own_reason(self, tmp_path: Path, name: str) -> None:
        with runtime(tmp_path, f"handlers:{name}", code=CONTEXT) as running, running.connect() as client:
            call = client.start("raise")
            assert client.receive()["in_doubt"] == "raise"
            refusal = {"code": "failed_precondition", "reason": "effect_in_doubt", "message": "m", "retryable": False}
            client.send({"t": "reply", "id": call, "seq": 1, "error": refusal})
            error = client.outcome(call)["error"]
            assert {name: error[name] for name in refusal} == refusal
            assert "in_doubt: 'maybe'" in client.error("maybe")["message"]
