"""Bounds of a connection, with raw sockets: whatever a client does or leaves undone, it ends, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pace import at_most
from served_gateway import House, connection, eventually, house, raw, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

HEAD_S, BODY_S, STALL_S, IDLE_S = 0.6, 0.8, 0.8, 1.0
LATE_S = 20.0
"""How much later than its bound something may end on a busy machine; without the bound it would never."""
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
A_JOB = b'10\r\n{"tool":"stuck"}\r\n0\r\n\r\n'
"""The chunks of a body that starts a job, so that nothing but its framing can be what is refused."""


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    bounds = {"head_s": HEAD_S, "body_s": BODY_S, "stall_s": STALL_S, "idle_s": IDLE_S}
    async with house(tmp_path, tool("stuck"), **bounds) as opened:
        yield opened
        await eventually(lambda: alive(opened))  # it serves others afterwards


async def alive(one: House) -> bool:
    status, _, _ = await raw(one, GET)
    return status == 200


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(LATE_S):
            while chunk := await reader.read(65536):
                data += chunk
    return data


def parts(data: bytes) -> tuple[int, bytes]:
    """Status and body of the first response."""
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


def refused(one: House, limit: str) -> float:
    return one.gateway.registry.get_sample_value("groundplane_gateway_refused_total", {"limit": limit}) or 0.0


@asynccontextmanager
async def dripping(writer: asyncio.StreamWriter, data: bytes, every_s: float = 0.05) -> AsyncIterator[None]:
    """Write a byte at a time while open."""

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(every_s)

    task = asyncio.create_task(drip())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.req("GATE-09.2")
async def test_a_connection_that_says_nothing_is_closed(one: House) -> None:
    async with connection(one) as (reader, _):
        assert await until_closed(reader) == b""
    assert refused(one, "head") == 0


@pytest.mark.req("GATE-09.2")
async def test_a_head_that_drips_is_408_however_steadily_it_drips(one: House) -> None:
    async with connection(one) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        began = time.monotonic()
        async with dripping(writer, b"a"):
            status, body = parts(await until_closed(reader))
        assert time.monotonic() - began >= HEAD_S
    assert status == 408
    assert (json.loads(body)["reason"], json.loads(body)["details"]) == ("too_slow", {"limit": "head"})
    assert refused(one, "head") == 1


@pytest.mark.req("GATE-09.2")
async def test_the_head_of_a_second_request_is_bounded_too_and_an_idle_connection_is_closed(one: House) -> None:
    async with connection(one) as (reader, writer):
        writer.write(GET)
        await reader.readuntil(b"}")
        writer.write(b"GET /livez")
        assert parts(await until_closed(reader))[0] == 408
    async with connection(one) as (reader, writer):
        writer.write(GET)
        assert parts(await until_closed(reader))[0] == 200


@pytest.mark.req("GATE-09.2")
@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"])
async def test_a_body_that_drips_or_stops_is_408(one: House, framing: bytes) -> None:
    for data, every_s in ((b'"', 0.05), (b"", 5.0)):
        async with connection(one) as (reader, writer):
            writer.write(POST + framing)
            async with dripping(writer, data, every_s):
                status, body = parts(await until_closed(reader))
        assert status == 408
        assert json.loads(body)["details"] == {"limit": "body"}
    assert refused(one, "body") == 2
    assert (await one.jobs.list_jobs()).items == []


@pytest.mark.req("GATE-09.2")
async def test_a_body_that_comes_at_a_fair_rate_may_take_longer(one: House) -> None:
    text = b'{"tool": "stuck", "arguments": {"text": "' + b"x" * 400_000 + b'"}}'
    async with connection(one) as (reader, writer):
        writer.write(POST + f"Content-Length: {len(text)}\r\n\r\n".encode())
        began = time.monotonic()
        for start in range(0, len(text), 20_000):
            writer.write(text[start : start + 20_000])
            await writer.drain()
            await asyncio.sleep(0.1)
        assert time.monotonic() - began > 2 * BODY_S
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LATE_S)
    assert b" 202 " in head


@pytest.mark.req("GATE-09.2")
async def test_who_goes_on_sending_after_the_refusal_is_cut_off(one: House) -> None:
    async with connection(one) as (reader, writer):
        writer.write(POST + b"Content-Length: 99999999\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LATE_S)
        assert b" 413 " in head
        async with dripping(writer, b"x" * 65536, 0.01):
            await until_closed(reader)


@pytest.mark.req("GATE-09.2")
async def test_an_answer_that_nobody_reads_is_cut_off(one: House) -> None:
    """More pipelined answers than all buffers hold, and a client that reads none of them."""
    with socket.create_connection(("127.0.0.1", one.served.port)) as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200
        async with asyncio.timeout(LATE_S):
            with contextlib.suppress(ConnectionError):
                while not refused(one, "unread"):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(loop.sock_sendall(client, request), 0.2)
    assert refused(one, "unread") == 1
    await eventually(lambda: _connections(one, 0))


async def _connections(one: House, count: int) -> bool:
    """Established connections to the gateway, as the kernel counts them in this process."""
    lines = await asyncio.to_thread(Path("/proc/net/tcp").read_text)
    port = f"0100007F:{one.served.port:04X}"
    return sum(line.split()[1] == port and line.split()[3] == "01" for line in lines.splitlines()[1:]) == count


@pytest.mark.req("GATE-09.2")
async def test_connections_above_the_limit_are_503_at_once_and_there_is_room_again_after_some_end(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, connections_max=3) as one, contextlib.AsyncExitStack() as held:
        for _ in range(3):
            reader, writer = await held.enter_async_context(connection(one))
            writer.write(GET)
            await reader.readuntil(b"}")
        for _ in range(5):
            async with connection(one) as (reader, writer):
                writer.write(GET)
                data = await until_closed(reader)
            status, body = parts(data)
            assert (status, json.loads(body)["reason"]) == (503, "too_many_connections")
            assert b"\r\nretry-after: 1\r\n" in data.lower()
        assert refused(one, "connections") == 5
        await held.aclose()
        await eventually(lambda: alive(one), 20.0)


@pytest.mark.req("GATE-09.2")
async def test_a_hundred_slow_clients_do_not_hold_up_another(one: House) -> None:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(100):
            _, writer = await held.enter_async_context(connection(one))
            writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: loc")
        times = []
        for _ in range(20):
            began = time.monotonic()
            if await alive(one):  # but one whose own head was late, where the machine stood still in the middle of it
                times.append(time.monotonic() - began)
        assert sorted(times)[10] < at_most(1.0)
        await eventually(lambda: _count(one, "head", 100 + 20 - len(times)), LATE_S)


async def _count(one: House, limit: str, count: int) -> bool:
    return refused(one, limit) == count


@pytest.mark.req("GATE-09.2")
async def test_pipelined_requests_are_answered_in_order_and_http_1_0_ends_after_one(one: House) -> None:
    async with connection(one) as (reader, writer):
        writer.write(
            GET
            + b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
            + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        data = await until_closed(reader)
    assert [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200]
    async with connection(one) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n" + GET)
        data = await until_closed(reader)
    assert data.count(b"HTTP/1.1 ") == 1
    assert parts(data)[0] == 200


BAD_REQUESTS: list[tuple[bytes, int]] = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (b"GET /livez\r\n\r\n", 400),
    (b"GET  /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\n\r\n", 400),
    (b"GET /livez HTTP/1.0\r\n\r\n", 421),
    (b"GET /livez HTTP/1.2\r\nHost: localhost\r\n\r\n", 505),
    (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 300_000, 431),
    (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 17_000 + b"\r\n\r\n", 431),
    (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 3000 + b"\r\n", 431),
    (b"GET /v1/jobs?tool=" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    (b"GET /%00%ff%f0%9f HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (b"GET /v1/jobs/%00%ff HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    (POST + b"Content-Length: +2\r\n\r\n{}", 400),
    (POST + b"Content-Length: 999999999999999999999999\r\n\r\n{}", 400),
    (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + A_JOB, 400),
    (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + A_JOB, 400),
    (POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + A_JOB, 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffffff\r\n{}\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n", 400),
    (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"TRACE /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    (b"FOO /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
]


@pytest.mark.req("GATE-15.1")
async def test_what_is_no_good_request_is_a_problem_document(one: House) -> None:
    for request, status in BAD_REQUESTS:
        async with connection(one) as (reader, writer):
            writer.write(request)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LATE_S)
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body: dict[str, Any] = json.loads(await asyncio.wait_for(reader.readexactly(length), LATE_S))
        assert (int(head.split(b" ")[1]), body["status"]) == (status, status), request[:100]
        assert b"content-type: application/problem+json" in head.lower(), request[:100]
    assert (await one.jobs.list_jobs()).items == []
    status, _, _ = await raw(one, POST + b"Transfer-Encoding: chunked\r\n\r\n" + A_JOB)
    assert status == 202


@pytest.mark.req("GATE-09.2")
async def test_a_request_hidden_behind_two_lengths_is_never_answered(one: House) -> None:
    hidden = b"0\r\n\r\nGET /v1/tools HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with connection(one) as (reader, writer):
        writer.write(POST + f"Content-Length: {len(hidden)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + hidden)
        data = await until_closed(reader)
    assert data.count(b"HTTP/1.1 ") == 1
    assert parts(data)[0] == 400


@pytest.mark.req("GATE-09.2")
@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"gzip, identity"])
async def test_a_compressed_body_is_refused_before_it_is_read(one: House, coding: bytes) -> None:
    bomb = gzip.compress(b"[" * 50_000_000)
    for path in (b"/v1/jobs", b"/mcp"):
        status, headers, body = await raw(
            one,
            b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Encoding: " + coding + f"\r\nContent-Length: {len(bomb)}\r\n\r\n".encode() + bomb,
        )
        assert (status, headers["accept-encoding"]) == (415, "identity")
        assert json.loads(body)["details"] == {"field": "content-encoding"}


@pytest.mark.req("GATE-09.2")
async def test_leave_to_send_a_body_is_given_for_one_that_fits_and_refused_with_the_end_for_one_that_does_not(
    one: House,
) -> None:
    body = b'{"tool": "stuck"}'
    async with connection(one) as (reader, writer):
        writer.write(POST + f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LATE_S) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert b" 202 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LATE_S)
    async with connection(one) as (reader, writer):
        writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
        data = await until_closed(reader)
    assert parts(data)[0] == 413
    assert b"\r\nconnection: close\r\n" in data.lower()


@pytest.mark.req("GATE-09.2")
async def test_another_protocol_is_not_switched_to(one: House) -> None:
    for upgrade in (b"websocket", b"h2c"):
        status, headers, _ = await raw(
            one,
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: " + upgrade + b"\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        assert (status, "upgrade" in headers) == (200, False)


@pytest.mark.req("GATE-09.2")
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault(
    one: House, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with connection(one) as (_, writer):
        writer.write(POST + b"Content-Length: 1000\r\n\r\n{")
        await writer.drain()
    label = {"method": "POST", "route": "/v1/jobs", "status": "499"}
    await eventually(lambda: _sample(one, label), LATE_S)
    assert "request_failed" not in caplog.text + "".join(capfd.readouterr())


async def _sample(one: House, label: dict[str, str]) -> bool:
    return one.gateway.registry.get_sample_value("groundplane_gateway_requests_total", label) == 1


NAMES: list[tuple[bytes, list[bytes], int]] = [
    (b"/livez", [b"Host: localhost"], 200),
    (b"/livez", [b"Host: LocalHost:9"], 200),
    (b"/livez", [b"Host: 127.0.0.1"], 200),
    (b"/livez", [b"Host: 127.8.9.1:65535"], 200),
    (b"/livez", [b"Host: [::1]"], 200),
    (b"/livez", [b"Host: [::1]:8080"], 200),
    (b"/livez", [b"Host: [0:0:0:0:0:0:0:1]:1"], 200),
    (b"/livez", [b"Host: GATE.example.com:443"], 200),
    (b"/livez", [b"Host: "], 421),
    (b"/livez", [b"Host: ::1"], 421),
    (b"/livez", [b"Host: [::2]"], 421),
    (b"/livez", [b"Host: [::1"], 421),
    (b"/livez", [b"Host: [::1].example.com"], 421),
    (b"/livez", [b"Host: example.com"], 421),
    (b"/livez", [b"Host: gate.example.com.evil.org"], 421),
    (b"/livez", [b"Host: localhost.evil.org"], 421),
    (b"/livez", [b"Host: evil.localhost"], 421),
    (b"/livez", [b"Host: localhost."], 421),
    (b"/livez", [b"Host: localhost, evil.org"], 421),
    (b"/livez", [b"Host: user@localhost"], 421),
    (b"/livez", [b"Host: localhost/evil"], 421),
    (b"/livez", [b"Host: localhost#"], 421),
    (b"/livez", [b"Host: localhost:port"], 421),
    (b"/livez", [b"Host: localhost:123456"], 421),
    (b"/livez", [b"Host: 127.1"], 421),
    (b"/livez", [b"Host: 0.0.0.0"], 421),
    (b"/livez", [b"Host: 192.168.1.1"], 421),
    (b"/livez", [b"Host: l\xc3\xb6calhost"], 421),
    (b"/livez", [b"Host: localhost", b"Host: localhost"], 400),
    (b"/livez", [b"Host: localhost", b"Origin: http://localhost:3000"], 200),
    (b"/livez", [b"Host: localhost", b"Origin: HTTPS://Gate.example.com"], 200),
    (b"/livez", [b"Host: localhost", b"Origin: http://[::1]:3000"], 200),
    (b"/livez", [b"Host: localhost", b"Origin: null"], 403),
    (b"/livez", [b"Host: localhost", b"Origin: "], 403),
    (b"/livez", [b"Host: localhost", b"Origin: localhost"], 403),
    (b"/livez", [b"Host: localhost", b"Origin: file://localhost"], 403),
    (b"/livez", [b"Host: localhost", b"Origin: http://localhost.evil.org"], 403),
    (b"/livez", [b"Host: localhost", b"Origin: http://localhost@evil.org"], 403),
    (b"/livez", [b"Host: localhost", b"Origin: http://localhost/path"], 403),
    (b"/livez", [b"Host: localhost", b"Origin: https://evil.org"], 403),
    (b"/livez", [b"Host: localhost", b"Origin: http://localhost", b"Origin: https://evil.org"], 403),
    (b"/livez", [b"Host: localhost", b"Origin: https://evil.org", b"Origin: http://localhost"], 403),
    (b"http://localhost/livez", [b"Host: localhost"], 200),
    (b"HTTP://[::1]:80/livez?", [b"Host: localhost"], 200),
    (b"http://localhost/v1/nothing", [b"Host: localhost"], 404),
    (b"http://localhost", [b"Host: localhost"], 200),
    (b"http://evil.org/livez", [b"Host: localhost"], 421),
    (b"http://localhost@evil.org/livez", [b"Host: localhost"], 421),
    (b"http://localhost/livez", [b"Host: evil.org"], 421),
    (b"ftp://localhost/livez", [b"Host: localhost"], 400),
    (b"localhost/livez", [b"Host: localhost"], 400),
    (b"//evil.org/livez", [b"Host: localhost"], 404),
]


@pytest.mark.req("GATE-09.3")
async def test_host_origin_and_target_must_all_name_this_gateway(tmp_path: Path) -> None:
    async with house(tmp_path, allowed_hosts=("gate.example.com",)) as one:
        for target, headers, status in NAMES:
            request = b"\r\n".join([b"GET " + target + b" HTTP/1.1", *headers, b"", b""])
            found, answered, _ = await raw(one, request)
            assert found == status, request
            assert not [name for name in answered if name.startswith("access-control")]
