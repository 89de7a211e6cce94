"""The sidecar's parts by themselves: batches, lanes, frames, old answers, reports over HTTP, limits of metrics."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.core.retry import RetryPolicy
from groundplane.jobs.port import Finish, JobState, Joined, Note, Outcome, Progress
from groundplane.mesh.batching import Batcher
from groundplane.mesh.frames import FrameReader, frames
from groundplane.mesh.reporting_http import HttpReporter, as_call
from groundplane.mesh.routing import Failure, Output, Result
from groundplane.mesh.runtime_old import outcome_of
from groundplane.mesh.sidecar.lanes import Lanes
from groundplane.queues.port import Delivery
from groundplane.telemetry.metrics import SERIES_MAX, ActorMetrics, CustomMetrics, new_registry, render

pytestmark = pytest.mark.anyio


async def test_what_comes_while_a_batch_is_under_way_goes_together_and_in_order() -> None:
    batches: list[list[int]] = []
    gate = asyncio.Event()

    async def flush(items: list[int]) -> list[int]:
        batches.append(items)
        await gate.wait()
        return [item * 10 for item in items]

    batcher: Batcher[int, int] = Batcher(flush)
    first = batcher.submit(1)
    while not batches:
        await asyncio.sleep(0)
    rest = [batcher.submit(n) for n in (2, 3, 4)]
    gate.set()
    assert [await one for one in (first, *rest)] == [10, 20, 30, 40]
    assert batches == [[1], [2, 3, 4]]
    await batcher.aclose()


async def test_each_of_a_batch_gets_its_own_error_and_a_failed_flush_fails_all() -> None:
    async def flush(items: list[int]) -> list[int | Exception]:
        if 0 in items:
            raise NotFound("all")
        return [NotFound("odd") if item % 2 else item for item in items]

    batcher: Batcher[int, int] = Batcher(flush)
    outcomes = await asyncio.gather(*(batcher.submit(n) for n in (1, 2)), return_exceptions=True)
    assert isinstance(outcomes[0], NotFound)
    assert outcomes[1] == 2
    with pytest.raises(NotFound, match="all"):
        await batcher.submit(0)
    await batcher.aclose()


def _delivery(payload: Any, number: int = 0) -> Delivery:
    data = msgspec.msgpack.encode({"payload": payload, "route": {"actors": ["a"], "current": 0}})
    return Delivery(tag=number, queue="a", id=str(number), payload=data, headers={}, attempt=1, enqueued_at=0)


@pytest.mark.req("MESH-19.2")
async def test_deliveries_of_one_key_wait_for_each_other_and_those_of_others_do_not() -> None:
    lanes, log, gate = Lanes("k"), list[Any](), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        log.append(delivery.tag)
        if delivery.tag == 0:
            await gate.wait()

    deliveries = [_delivery({"k": key}, n) for n, key in enumerate(["x", "x", "y", "x"])]
    deliveries += [_delivery({"other": 1}, 4), _delivery([1], 5)]
    tasks = [asyncio.create_task(lanes.run(delivery, handle)) for delivery in deliveries]
    for _ in range(10):
        await asyncio.sleep(0)
    assert sorted(log) == [0, 2, 4, 5]
    gate.set()
    await asyncio.gather(*tasks)
    assert log[-2:] == [1, 3]
    assert len(lanes) == 0


@pytest.mark.req("MESH-19.2")
async def test_a_lane_goes_on_when_one_of_it_is_cancelled() -> None:
    lanes, log = Lanes("k"), list[Any]()

    async def handle(delivery: Delivery) -> None:
        log.append(delivery.tag)
        if delivery.tag == 0:
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(lanes.run(_delivery({"k": 1}, n), handle)) for n in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert log == [0, 2]


@pytest.mark.req("MESH-04.1", "MESH-04.2")
@given(bodies=st.lists(st.binary(max_size=50), max_size=6), cut=st.integers(1, 40))
def test_frames_are_whole_again_however_the_stream_is_cut(bodies: list[bytes], cut: int) -> None:
    stream = b"".join(piece for body in bodies for piece in frames(body, 16, 64))
    reader = FrameReader(16, 64)
    found = [whole for at in range(0, len(stream), cut) for whole in reader.feed(stream[at : at + cut])]
    assert found == bodies


@pytest.mark.req("MESH-04.2")
def test_frames_over_the_limits_are_refused_on_both_sides() -> None:
    with pytest.raises(InvalidArgument, match="over the runtime's limit"):
        frames(b"x" * 65, 16, 64)
    with pytest.raises(InvalidArgument, match="over the limit"):
        FrameReader(16).feed((17).to_bytes(4, "big"))
    reader = FrameReader(16, 20)
    reader.feed((16 | 0x80000000).to_bytes(4, "big") + b"x" * 16)
    with pytest.raises(InvalidArgument, match="over the limit"):
        reader.feed((5).to_bytes(4, "big"))


@pytest.mark.req("MESH-02.4", "MESH-04.2")
def test_the_array_of_an_old_runtime_is_understood() -> None:
    assert outcome_of([]) == Result([])
    one = outcome_of([{"payload": 1, "route": {"steps": ["a", "b"], "current": 1}}])
    assert isinstance(one, Result)
    assert (one.fanout, one.outputs[0].payload) == (False, 1)
    assert one.outputs[0].route is not None
    assert one.outputs[0].route.actors == ["a", "b"]
    many = outcome_of([{"payload": 1}, {"payload": 2}])
    assert many == Result([Output(1), Output(2)], fanout=True)
    failed = outcome_of([{"error": "oom_error", "details": {"message": "m", "type": "MemoryError", "traceback": "t"}}])
    assert isinstance(failed, Failure)
    assert (failed.reason, failed.message, failed.type, failed.traceback) == ("oom_error", "m", "MemoryError", "t")
    wrong = outcome_of([{"payload": 1, "route": {"actors": "a", "current": 0}}])
    assert isinstance(wrong, Failure)
    assert wrong.reason == "route_error"
    with pytest.raises(InvalidArgument):
        outcome_of({"payload": 1})


@pytest.mark.req("GATE-07.1")
def test_reports_become_callbacks_of_the_gateway() -> None:
    def said(weight: float) -> Any:
        change = Progress(job_id="j", envelope_id="e", hop=1, hops=2, actor="a", weight=weight)
        call = as_call(change)
        assert call is not None
        assert call[0] == "heartbeat"
        return call[1]["status"], call[1].get("progress")

    assert [said(weight) for weight in (10.0, 50.0, 55.0, 100.0)] == [
        ("picked_up", None),
        ("processing", None),
        ("processing", 50.0),
        ("completed", None),
    ]
    final = as_call(Finish(job_id="j", envelope_id="e", result=[1]))
    assert final == ("final", {"status": "succeeded", "result": [1], "envelope_id": "e"})
    assert as_call(Finish(job_id="j", envelope_id="e", holds=True)) is None
    assert as_call(Note(job_id="j", kind="x")) is None


@pytest.mark.req("GATE-07.4")
async def test_the_reporter_sends_the_token_keeps_the_order_and_reads_the_state() -> None:
    seen: list[tuple[str, str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(next(line for line in head.split("\r\n") if line.lower().startswith("content-length")).split()[1])
        await reader.readexactly(length)
        token = next((line.split()[1] for line in head.split("\r\n") if line.lower().startswith("x-groundplane")), "")
        seen.append((head.split()[1], token))
        gone = len(seen) > 2
        body = msgspec.json.encode({"details": {"state": "cancelled"}} if gone else {"state": "running"})
        status = "410 Gone" if gone else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        reporter = HttpReporter(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base")
        progress = Progress(job_id="j/1", envelope_id="e", hop=0, hops=1, actor="a", weight=10.0)
        reporter.post([progress], "t0k")
        (outcome,) = await reporter.apply([Finish(job_id="j/1", envelope_id="e")], "t0k")
        assert outcome == Outcome(applied=True, state=JobState.RUNNING)
        assert await reporter.state("j/1", "t0k") is JobState.CANCELLED
        joined = Joined(job_id="j", parent_id="p", envelope_id="e")
        assert (await reporter.apply([joined]))[0].detail == "unsupported"
        await reporter.aclose()
    assert seen == [
        ("/base/jobs/j%2F1/heartbeat", "t0k"),
        ("/base/jobs/j%2F1/final", "t0k"),
        ("/base/jobs/j%2F1/active", "t0k"),
    ]


@pytest.mark.req("GATE-07.4")
async def test_reports_of_one_job_wait_for_each_other_and_are_repeated_until_the_gateway_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("groundplane.mesh.reporting_http._RETRY", RetryPolicy(attempts=5, base_s=0.01))
    asked: list[str] = []
    slow, other = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(next(line for line in head.split("\r\n") if line.lower().startswith("content-length")).split()[1])
        await reader.readexactly(length)
        path = head.split()[1]
        asked.append(path)
        if path == "/jobs/other/heartbeat":
            other.set()
        if path == "/jobs/one/heartbeat" and len(asked) > 2:
            await slow.wait()
        status = {1: "503 Service Unavailable", 2: "429 Too Many Requests"}.get(len(asked), "200 OK")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await writer.drain()
        writer.close()

    def progress(job_id: str) -> Progress:
        return Progress(job_id=job_id, envelope_id="e", hop=0, hops=1, actor="a", weight=10.0)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(10):
        reporter = HttpReporter(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        (taken,) = await reporter.apply([progress("zero")])
        assert taken.applied
        assert asked == ["/jobs/zero/heartbeat"] * 3
        reporter.post([progress("one")])
        reporter.post([Finish(job_id="one", envelope_id="e")])
        reporter.post([progress("other")])
        await other.wait()
        await asyncio.sleep(0.05)  # time enough for the final report to overtake, if it could
        assert "/jobs/one/final" not in asked
        slow.set()
        await reporter.aclose()
    assert asked.index("/jobs/one/final") > asked.index("/jobs/one/heartbeat")


@pytest.mark.req("MESH-22.4", "TEL-01")
def test_custom_metrics_are_bounded_and_must_fit_their_first_use() -> None:
    registry = new_registry()
    custom = CustomMetrics(registry, "a")
    assert custom.record("widgets", "counter", 2, {"colour": "red"})
    assert not custom.record("widgets", "gauge", 2, {"colour": "red"})
    assert not custom.record("widgets", "counter", 2, {"size": "l"})
    assert not custom.record("widgets", "counter", -1, {"colour": "red"})
    assert not custom.record("bad name", "counter", 1, {})
    assert not custom.record("x", "summary", 1, {})
    assert not custom.record("y", "gauge", 1, {"actor": "b"})
    taken = sum(custom.record("series", "gauge", 1, {"n": str(n)}) for n in range(SERIES_MAX + 5))
    assert taken == SERIES_MAX
    assert b'groundplane_custom_widgets_total{actor="a",colour="red"} 2.0' in render(registry)


@pytest.mark.req("MESH-22.1")
def test_two_actors_share_a_registry_and_labels_are_bounded() -> None:
    registry = new_registry()
    one, two = ActorMetrics(registry, "one"), ActorMetrics(registry, "two")
    one.sent("q")
    two.failed("timeout_error")
    for n in range(SERIES_MAX + 10):
        one.failed(f"r{n}")
    text = render(registry).decode()
    assert 'groundplane_actor_messages_sent_total{actor="one",queue="q"} 1.0' in text
    assert 'groundplane_actor_messages_failed_total{actor="two",reason="timeout_error"} 1.0' in text
    assert 'reason="other"' in text
    assert text.count('messages_failed_total{actor="one"') == SERIES_MAX
