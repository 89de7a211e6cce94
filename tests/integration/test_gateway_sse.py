"""Server-sent events over real connections: order, resumption, late and slow clients, keep-alive, drain."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from groundplane.gateway.client_events import Event, read_events
from groundplane.jobs.port import Note, Retention
from pace import at_most
from served_gateway import VALUE, Gate, House, actors, connection, double, echo, eventually, fail, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

TOOLS = (tool("pipeline", "double", "echo", schema=VALUE), tool("slow", "gate"), tool("stuck"), tool("fail"))


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, *TOOLS, keepalive_s=0.2, retry_ms=70) as opened:
        yield opened


async def start(one: House, name: str, **arguments: Any) -> str:
    async with one.http() as http:
        response = await http.post("/v1/jobs", json={"tool": name, "arguments": arguments})
        return str(response.json()["job_id"])


async def finished(one: House, job_id: str) -> None:
    job = await one.jobs.wait_finished(job_id, 20)
    assert job is not None


@asynccontextmanager
async def stream(one: House, job_id: str, after: int | None = None, path: str = "/v1/jobs/{}/events") -> Any:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    async with one.http() as http, http.stream("GET", path.format(job_id), headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        async with aclosing(read_events(response.aiter_bytes())) as events:
            yield events


async def read(one: House, job_id: str, after: int | None = None) -> list[Event]:
    """All events of a stream that has to end."""
    async with asyncio.timeout(30), stream(one, job_id, after) as events:
        return [event async for event, _ in events if event is not None]


@pytest.mark.req("GATE-05.1", "GATE-05.2", "GATE-06.3")
async def test_the_status_comes_first_then_every_update_in_order_to_the_final_one(one: House) -> None:
    async with actors(one, {"double": double, "echo": echo}):
        job_id = await start(one, "pipeline", value=21)
        events = await read(one, job_id)
    assert [event.kind for event in events] == ["status", *["update"] * (len(events) - 1)]
    assert events[0].data["job_id"] == job_id
    updates = events[1:]
    ids = [event.id for event in updates]
    assert ids == sorted(set(ids))
    assert min(ids) > 0
    assert [event.data["event_id"] for event in updates] == ids
    assert updates[0].data["kind"] == "created"
    progress = [event.data["progress"] for event in updates]
    assert progress == sorted(progress)
    assert {5.0, 25.0, 50.0, 55.0} <= set(progress)
    assert {event.data.get("actor") for event in updates} >= {"double", "echo"}
    final = updates[-1]
    assert (final.final, final.data["state"], final.data["result"]) == (True, "succeeded", {"value": 42})


@pytest.mark.req("GATE-05.1")
async def test_the_bytes_are_those_of_the_format(one: House) -> None:
    job_id = await start(one, "stuck")
    async with connection(one) as (reader, writer):
        writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        text = b""
        while text.count(b"\n\n") < 2:
            size = int((await reader.readuntil(b"\r\n")).strip(), 16)
            text += (await reader.readexactly(size + 2))[:-2]
    status, update = text.decode().split("\n\n")[:2]
    assert status.startswith('retry: 70\nevent: status\ndata: {"job_id":"')
    lines = update.split("\n")
    assert (lines[0].startswith("id: "), lines[1]) == (True, "event: update")
    assert json.loads(lines[2].removeprefix("data: "))["kind"] == "created"


@pytest.mark.req("GATE-05.2", "GATE-05.3")
async def test_a_stream_from_an_id_that_the_job_has_not_reached_goes_on_live_to_the_end(one: House) -> None:
    job_id = await start(one, "stuck")
    async with asyncio.timeout(30), stream(one, job_id, 10**15) as events:
        await anext(events)
        await one.jobs.cancel(job_id, "enough")
        last = [event async for event, _ in events if event is not None][-1]
    assert (last.final, last.data["state"]) == (True, "cancelled")


@pytest.mark.req("GATE-05.3", "GATE-05.2")
async def test_a_stream_resumes_after_the_last_event_id_within_100_ms_without_gap_or_repeat(one: House) -> None:
    gate = Gate()
    async with actors(one, {"gate": gate}):
        job_id = await start(one, "slow")
        await gate.reached.wait()
        seen: list[Event] = []
        async with stream(one, job_id) as events:
            async for event, _ in events:
                if event is not None and event.kind == "update":
                    seen.append(event)
                if len(seen) == 2:
                    break
        gate.opened.set()
        await finished(one, job_id)
        waits = []
        for _ in range(5):  # the fastest counts: a busy machine is not what is tested
            began = time.perf_counter()
            async with stream(one, job_id, seen[-1].id) as events:
                status, _ = await anext(events)
                first, _ = await anext(events)
                waits.append(time.perf_counter() - began)
                rest = [event async for event, _ in events if event is not None]
            assert status.kind == "status"
            ids = [event.id for event in (*seen, first, *rest)]
            assert ids == [event.id for event in await read(one, job_id)][1:]
        assert min(waits) < at_most(0.1)


@pytest.mark.req("GATE-05.3")
async def test_a_stream_resumes_on_another_replica(one: House) -> None:
    gate = Gate()
    async with house(one.state, *TOOLS, upgrade=False) as other, actors(one, {"gate": gate}):
        job_id = await start(one, "slow", text="x")
        await gate.reached.wait()
        async with stream(one, job_id) as events:
            await anext(events)
            created, _ = await anext(events)
        async with stream(other, job_id, created.id) as events:
            assert (await anext(events))[0].kind == "status"
            assert (await anext(events))[0].id > created.id
            gate.opened.set()
            rest = [event async for event, _ in events if event is not None]
    assert rest[-1].data["result"] == {"text": "x"}


@pytest.mark.req("GATE-05.4")
async def test_silence_is_broken_by_keep_alive_comments(one: House) -> None:
    job_id = await start(one, "stuck")
    text, began = "", time.perf_counter()
    async with one.http() as http, http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        async for chunk in response.aiter_text():
            text += chunk
            if text.count(": keep-alive\n\n") == 3:
                break
    assert 0.5 < time.perf_counter() - began < 10


@pytest.mark.req("GATE-05.4")
def test_the_keep_alive_comes_every_15_seconds_by_default() -> None:
    from groundplane.gateway import GatewaySettings

    assert GatewaySettings().keepalive_s == 15.0


@pytest.mark.req("GATE-05.5")
async def test_who_comes_after_the_end_gets_the_final_event_and_the_stream_closes(one: House) -> None:
    async with actors(one, {"fail": fail}):
        job_id = await start(one, "fail")
        await finished(one, job_id)
    events = await read(one, job_id)
    assert events[0].data["state"] == "failed"
    assert events[-1].final
    assert events[-1].data["error"]["message"] == "the handler is not amused"
    for after in (events[-1].id, events[-1].id + 1000):
        late = await read(one, job_id, after)
        assert [event.kind for event in late] == ["status", "update"]
        assert late[-1].final
        assert late[-1].data["state"] == "failed"


@pytest.mark.req("GATE-05.5", "JOB-08")
async def test_who_comes_after_retention_took_the_other_events_still_gets_the_final_one(one: House) -> None:
    async with actors(one, {"double": double, "echo": echo}):
        job_id = await start(one, "pipeline", value=1)
        await finished(one, job_id)
    await eventually(lambda: _only_the_end_is_kept(one, job_id))
    events = await read(one, job_id)
    assert [event.kind for event in events] == ["status", "update"]
    assert events[-1].final
    assert events[-1].data["result"]["value"] == 2


async def _only_the_end_is_kept(one: House, job_id: str) -> bool:
    await one.jobs.driver.sweep(Retention(events_s=0.001))  # takes what is older than a millisecond
    return [event.kind for event in (await one.jobs.events(job_id=job_id)).items] == ["succeeded"]


@pytest.mark.req("GATE-05.7")
async def test_two_clients_both_get_everything(one: House) -> None:
    gate = Gate()
    async with actors(one, {"gate": gate}):
        job_id = await start(one, "slow", a=1)
        await gate.reached.wait()
        readers = [asyncio.create_task(read(one, job_id)) for _ in range(2)]
        await eventually(lambda: _streams(one, 2))
        gate.opened.set()
        first, second = await asyncio.gather(*readers)
    assert [event.id for event in first[1:]] == [event.id for event in second[1:]]
    assert first[-1].data["result"] == {"a": 1}


async def _streams(one: House, count: int) -> bool:
    return f"{count} subscriptions" in repr(one.gateway._services.feed)


@pytest.mark.req("GATE-05.6")
async def test_a_slow_client_is_bounded_and_gets_every_event_and_the_final_one(one: House) -> None:
    """The client reads nothing while far more than the buffers hold is written, then reads to the end."""
    gate, count = Gate(), 3000
    async with actors(one, {"gate": gate}), connection(one) as (reader, writer):
        job_id = await start(one, "slow")
        await gate.reached.wait()
        writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        for n in range(0, count, 100):
            notes = [Note(job_id=job_id, kind="note", data={"n": k, "text": "x" * 2000}) for k in range(n, n + 100)]
            await one.jobs.apply(*notes)
        (subscription,) = one.gateway._services.feed._open
        held = len(subscription._fresh)
        gate.opened.set()
        await finished(one, job_id)
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        body = await _to_the_end(reader)
    assert held <= 256
    frames = [one.split("data: ", 1)[1] for one in body.split("\n\n") if "data: " in one]
    updates = [json.loads(frame) for frame in frames][1:]
    assert [update["n"] for update in updates if update["kind"] == "note"] == list(range(count))
    assert updates[-1]["final"] is True
    assert updates[-1]["state"] == "succeeded"


async def _to_the_end(reader: asyncio.StreamReader) -> str:
    """The chunks of a chunked body, joined."""
    body = b""
    async with asyncio.timeout(60):
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
    return body.decode()


@pytest.mark.req("GATE-05.6")
async def test_a_client_that_never_reads_is_cut_off(tmp_path: Path) -> None:
    async with house(tmp_path, *TOOLS, stall_s=0.3) as one, connection(one) as (reader, writer):
        job_id = await start(one, "stuck")
        writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        await eventually(lambda: _streams(one, 1))
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(60):
            await one.jobs.apply(*[Note(job_id=job_id, kind="note", data={"text": "x" * 5000}) for _ in range(100)])
        await eventually(lambda: _streams(one, 0), 20)
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):  # cut, which is no orderly end
            await _to_the_end(reader)
        assert not (await one.jobs.get(job_id)).state.terminal


@pytest.mark.req("GATE-05.6")
async def test_a_client_that_left_costs_nothing_more(one: House) -> None:
    job_id = await start(one, "stuck")
    async with stream(one, job_id) as events:
        await anext(events)
        assert await _streams(one, 1)
    await eventually(lambda: _streams(one, 0), 5)


@pytest.mark.req("GATE-13", "GATE-05.1")
async def test_a_drain_ends_open_streams_with_a_retry_hint_and_the_server_stops_at_once(one: House) -> None:
    job_id = await start(one, "stuck")
    async with one.http() as http, http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        chunks = response.aiter_text()
        text = await anext(chunks)
        began = time.perf_counter()
        one.stop.set()
        async for chunk in chunks:
            text += chunk
    await one.serving
    assert time.perf_counter() - began < at_most(3)
    assert text.endswith("retry: 70\n: the gateway shuts down; the job goes on\n\n")


@pytest.mark.req("GATE-05.1")
async def test_head_answers_with_the_headers_and_opens_no_stream(one: House) -> None:
    job_id = await start(one, "stuck")
    async with one.http() as http:
        response = await http.head(f"/v1/jobs/{job_id}/events")
    assert (response.status_code, response.content) == (200, b"")
    assert await _streams(one, 0)


@pytest.mark.req("GATE-04.2", "JOB-11.2")
async def test_the_older_stream_speaks_the_older_words_with_ours_beside_them(one: House) -> None:
    async with actors(one, {"fail": fail}):
        job_id = await start(one, "fail")
        await finished(one, job_id)
    async with stream(one, job_id, path="/jobs/{}/stream") as events:
        found = [event async for event, _ in events if event is not None]
    assert (found[0].kind, found[0].data["status"], found[0].data["state"]) == ("status", "Failed", "failed")
    statuses = [event.data["status"] for event in found[1:]]
    assert statuses[0] == "Pending"
    assert "Running" in statuses
    assert (found[-1].data["status"], found[-1].data["error"]) == ("Failed", "the handler is not amused")


@pytest.mark.req("GATE-04.2")
@pytest.mark.parametrize("text", ["x", "-1", "1.5", "9" * 30])
async def test_a_last_event_id_that_is_none_is_400(one: House, text: str) -> None:
    job_id = await start(one, "stuck")
    async with one.http() as http:
        response = await http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": text})
    assert response.status_code == 400
    assert repr(text) in response.json()["detail"]
