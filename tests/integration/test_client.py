"""The client against a served gateway, and against servers that answer as a test wants."""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from groundplane.core.errors import (
    Closed,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from groundplane.gateway import Client
from groundplane.gateway.client import job_error
from groundplane.jobs.port import JobQuery
from served_gateway import Gate, House, actors, echo, fail, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

Answer = tuple[str, bytes]
"""What follows `HTTP/1.1 ` of a status line with further headers, and the body."""


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, tool("echo"), tool("slow", "gate"), tool("stuck"), tool("fail")) as opened:
        yield opened


@asynccontextmanager
async def scripted(*answers: Answer | None) -> AsyncIterator[tuple[Client, list[tuple[str, float]]]]:
    """A client of a server that gives these answers in turn, the last one on and on; None drops the connection."""
    asked: list[tuple[str, float]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append((head.split(b" HTTP")[0].decode(), time.monotonic()))
        if answer is not None:
            status, body = answer
            writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            writer.write(body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        yield client, asked


LATER: Answer = ("503 Service Unavailable", b'{"code": "unavailable", "detail": "later"}')
NO_TOOLS: Answer = ("200 OK", b'{"tools": []}')


@pytest.mark.req("GATE-17.1")
async def test_the_client_starts_follows_and_reads_the_result(one: House) -> None:
    async with Client(one.url) as client, actors(one, {"echo": echo, "fail": fail}):
        job = await client.start("echo", {"text": "line\u2028separator \u0085"})
        events = [event async for event in client.follow(job["job_id"])]
        assert events[0].kind == "status"
        assert events[-1].final
        assert events[-1].data["result"] == {"text": "line\u2028separator \u0085"}
        assert (await client.result(job["job_id"]))["state"] == "succeeded"
        failed = await client.result((await client.start("fail"))["job_id"], timeout_s=10)
        assert failed["error"]["message"] == "the handler is not amused"
        assert [found["job_id"] for found in (await client.list_jobs(tool="fail"))["jobs"]] == [failed["job_id"]]
        assert {found["name"] for found in await client.tools()} == {"echo", "slow", "stuck", "fail"}
        assert (await client.dead())["dead"] == []


@pytest.mark.req("GATE-17.1")
async def test_the_client_raises_the_errors_of_the_gateway(one: House) -> None:
    async with Client(one.url) as client:
        with pytest.raises(NotFound) as unknown:
            await client.start("ehco")
        assert (unknown.value.reason, unknown.value.details["status"]) == ("tool_not_found", 404)
        with pytest.raises(NotFound, match="job_id: "):
            async for _ in client.follow("none"):
                pass
        with pytest.raises(InvalidArgument, match="limit: "):
            await client.list_jobs(limit=0)
        job = await client.start("stuck")
        with pytest.raises(DeadlineExceeded):
            await client.result(job["job_id"], timeout_s=0.05)
        assert (await client.pause(job["job_id"]))["state"] == "paused"
        assert (await client.resume(job["job_id"]))["state"] == "pending"
        assert (await client.cancel(job["job_id"], "enough"))["state"] == "cancelled"
        with pytest.raises(FailedPrecondition):
            await client.cancel(job["job_id"])
    with pytest.raises(Closed):
        await client.tools()


@pytest.mark.req("GATE-17.1", "GATE-05.3")
async def test_the_client_follows_across_a_restart_of_the_gateway_without_gap_or_repeat(tmp_path: Path) -> None:
    gate = Gate()
    state = tmp_path
    async with house(state, tool("slow", "gate"), retry_ms=50) as one:
        port = one.served.port
        async with Client(one.url) as client:
            job_id = (await client.start("slow", {"n": 1}))["job_id"]
            follow = client.follow(job_id)
            seen = [await anext(follow), await anext(follow)]
            one.stop.set()
            await one.serving
            async with house(state, tool("slow", "gate"), port=port, upgrade=False) as again:
                async with actors(again, {"gate": gate}):
                    gate.opened.set()
                    seen += [event async for event in follow]
                log = await again.jobs.events(0, job_id)
    assert [event.kind for event in seen].count("status") == 1
    assert [event.id for event in seen[1:]] == [event.id for event in log.items]
    assert seen[-1].data["result"] == {"n": 1}


@pytest.mark.req("GATE-17.2")
async def test_the_client_waits_as_retry_after_says() -> None:
    busy: Answer = ("503 Service Unavailable\r\nRetry-After: 1", LATER[1])
    async with scripted(busy, NO_TOOLS) as (client, asked):
        assert await client.tools() == []
    assert asked[1][1] - asked[0][1] >= 0.85


@pytest.mark.req("GATE-17.2")
async def test_the_client_waits_for_the_date_that_retry_after_names() -> None:
    date, ahead_s = int(time.time()) + 3, time.time() - time.monotonic()
    busy: Answer = (f"503 Service Unavailable\r\nRetry-After: {email.utils.formatdate(date, usegmt=True)}", LATER[1])
    async with scripted(busy, NO_TOOLS) as (client, asked):
        assert await client.tools() == []
    assert len(asked) == 2
    assert asked[1][1] + ahead_s >= date - 0.15


@pytest.mark.req("GATE-17.2")
async def test_a_stream_that_is_refused_for_now_is_asked_for_again_when_the_gateway_says() -> None:
    busy: Answer = ("429 Too Many Requests\r\nRetry-After: 1", b'{"code": "resource_exhausted", "detail": "streams"}')
    final = b'id: 7\nevent: update\ndata: {"job_id": "j", "state": "succeeded", "final": true}\n\n'
    async with scripted(busy, ("200 OK\r\nContent-Type: text/event-stream", final)) as (client, asked):
        assert [event.id async for event in client.follow("j")] == [7]
    assert asked[1][1] - asked[0][1] >= 0.95


@pytest.mark.req("GATE-17.2")
async def test_a_stream_that_ends_early_is_resumed_after_the_pause_that_it_hinted() -> None:
    first = b'retry: 700\nid: 3\nevent: status\ndata: {"job_id": "j", "state": "running"}\n\n'
    final = b'id: 4\nevent: update\ndata: {"job_id": "j", "state": "succeeded", "final": true}\n\n'
    stream = "200 OK\r\nContent-Type: text/event-stream"
    async with scripted((stream, first), (stream, final)) as (client, asked):
        assert [event.id async for event in client.follow("j")] == [3, 4]
    assert asked[1][1] - asked[0][1] >= 0.34  # half of it at least: clients do not come back at one moment


@pytest.mark.req("GATE-17.1")
async def test_the_client_repeats_by_itself_what_is_safe_to_repeat_and_nothing_else() -> None:
    async with scripted(LATER) as (client, asked):
        for call in (client.redrive("x"), client.cancel("x"), client.get("y")):
            with pytest.raises(Unavailable):
                await call
    wanted = ["POST /v1/dead/x/redrive"] + 6 * ["POST /v1/jobs/x/cancel"] + 6 * ["GET /v1/jobs/y"]
    assert [line for line, _ in asked] == wanted


@pytest.mark.req("GATE-17.1")
async def test_a_redrive_is_repeated_where_it_is_certain_that_nobody_has_handled_it() -> None:
    busy: Answer = ("429 Too Many Requests", b'{"code": "resource_exhausted", "detail": "rate"}')
    async with scripted(busy, ("200 OK", b'{"id": "x", "redriven": true}')) as (client, asked):
        assert (await client.redrive("x"))["redriven"] is True
    assert len(asked) == 2


@pytest.mark.req("GATE-17.1")
@pytest.mark.parametrize(
    ("state", "applied"), [("cancelled", True), ("succeeded", False)], ids=["as asked", "by somebody else"]
)
async def test_a_control_whose_answer_was_lost_counts_as_done_where_the_job_is_as_asked(
    state: str, applied: bool
) -> None:
    ended = {"code": "failed_precondition", "reason": "job_terminal", "detail": "over", "details": {"state": state}}
    job: Answer = ("200 OK", json.dumps({"job_id": "x", "state": state}).encode())
    async with scripted(None, ("409 Conflict", json.dumps(ended).encode()), job) as (client, asked):
        if applied:
            assert (await client.cancel("x"))["state"] == "cancelled"
        else:
            with pytest.raises(FailedPrecondition, match="over"):
                await client.cancel("x")
    assert [line for line, _ in asked[:2]] == 2 * ["POST /v1/jobs/x/cancel"]


@pytest.mark.req("GATE-17.1")
async def test_a_job_that_was_cancelled_before_is_an_error_although_it_is_as_asked() -> None:
    ended = {"code": "failed_precondition", "detail": "over", "details": {"state": "cancelled"}}
    async with scripted(("409 Conflict", json.dumps(ended).encode())) as (client, asked):
        with pytest.raises(FailedPrecondition, match="over"):
            await client.cancel("x")
    assert len(asked) == 1


@pytest.mark.req("GATE-17.1")
async def test_a_proxy_that_finds_no_gateway_is_unavailable_and_asked_again() -> None:
    async with scripted(("502 Bad Gateway", b"<html>"), ("504 Gateway Timeout", b""), NO_TOOLS) as (client, asked):
        assert await client.tools() == []
    assert len(asked) == 3


@pytest.mark.req("GATE-17.1")
async def test_one_call_starts_waits_and_gives_the_result_or_raises_what_the_job_failed_with(one: House) -> None:
    async with Client(one.url) as client, actors(one, {"echo": echo, "fail": fail}):
        assert await client.call("echo", {"text": "x"}) == {"text": "x"}
        with pytest.raises(Internal, match="failed: ValueError: the handler is not amused") as failed:
            await client.call("fail")
        assert failed.value.details["state"] == "failed"
        assert (await client.get(failed.value.details["job_id"]))["state"] == "failed"
        with pytest.raises(DeadlineExceeded):
            await client.call("stuck", timeout_s=0.2)


@pytest.mark.req("GATE-17.1")
def test_each_end_of_a_job_but_success_is_an_error_that_names_it() -> None:
    ends: dict[str, dict[str, object]] = {
        "cancelled": {"message": "not wanted"},
        "timed_out": {},
        "failed": {"error": {"code": "invalid_argument", "message": "value: 'x'", "details": {"reason": "bad"}}},
    }
    errors = {state: job_error({"job_id": "j", "state": state, **more}) for state, more in ends.items()}
    found = {state: (error.code, error.reason) for state, error in errors.items() if error is not None}
    assert found == {
        "cancelled": ("failed_precondition", "job_cancelled"),
        "timed_out": ("deadline_exceeded", "deadline_exceeded"),
        "failed": ("invalid_argument", "bad"),
    }
    assert "not wanted" in str(errors["cancelled"])
    assert job_error({"job_id": "j", "state": "succeeded"}) is None


@pytest.mark.parametrize("key", ["", "two words", "line\nend", "schlüssel"])
def test_what_can_be_no_key_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^key: ") as refused:
        Client("http://127.0.0.1:1", key=key)
    assert not key or key not in str(refused.value)


def test_the_client_needs_neither_the_web_framework_nor_mcp() -> None:
    code = (
        "import sys, groundplane; groundplane.Client; print(*{'starlette', 'uvicorn', 'mcp', 'apsw'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""


@pytest.mark.req("GATE-17.1")
async def test_an_unreachable_gateway_is_unavailable_and_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(Unavailable, match="groundplane dev"):
            await client.cancel("x")


@pytest.mark.req("GATE-17.1", "GATE-10")
async def test_a_start_that_was_answered_with_a_lost_connection_is_repeated_and_makes_one_job(one: House) -> None:
    """A proxy forwards the request and drops the first answer."""
    dropped = 0

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dropped
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", one.served.port)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        to_writer.write(head + await reader.readexactly(length))
        answer = await to_reader.readuntil(b"\r\n\r\n")
        size = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer += await to_reader.readexactly(size)
        if dropped == 0:
            dropped += 1
        else:
            writer.write(answer)
        for end in (writer, to_writer):
            end.close()

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    async with server, Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        job = await client.start("stuck", {"n": 1})
    page = await one.jobs.list_jobs(JobQuery())
    assert dropped == 1
    assert [found.job_id for found in page.items] == [job["job_id"]]
