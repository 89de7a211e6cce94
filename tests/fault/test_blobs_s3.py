"""Blobs on S3 while the network or the store fails: told in time, nothing half there, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from groundplane.blobs import Blobs
from groundplane.blobs.drivers.s3 import ABANDONED_S, S3Blobs
from groundplane.core.clock import SYSTEM_CLOCK
from groundplane.core.errors import Closed, GroundplaneError, NotFound, ResourceExhausted, Unavailable
from groundplane.testing import History, Proxy, VirtualClock, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

_MIB = 1024 * 1024
TIMEOUT_S = 2.0


async def pieces(count: int, *, then: Callable[[], Any] | None = None) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number]) * _MIB
    if then is not None:
        await then()


@pytest.fixture
async def proxy(s3_url: str) -> AsyncIterator[Proxy]:
    endpoint = urlsplit(parse_qs(urlsplit(s3_url).query)["endpoint"][0])
    async with Proxy.to(endpoint.hostname or "", endpoint.port or 0) as opened:
        yield opened


@pytest.fixture
async def blobs(s3_url: str, proxy: Proxy) -> AsyncIterator[Blobs]:
    """Through the proxy."""
    endpoint = parse_qs(urlsplit(s3_url).query)["endpoint"][0]
    url = f"{s3_url.partition('?')[0]}?endpoint={quote(proxy.through(endpoint), safe=':/@')}"
    async with Blobs.open(f"{url}&timeout={TIMEOUT_S}&connect_timeout=1") as opened:
        yield opened


@pytest.fixture
async def direct(s3_url: str) -> AsyncIterator[Blobs]:
    """Past the proxy."""
    async with Blobs.open(s3_url) as opened:
        yield opened


def driver_of(blobs: Blobs) -> S3Blobs:
    return cast(S3Blobs, blobs.driver)


async def uploads(blobs: Blobs) -> list[str]:
    return [one.name for one in await driver_of(blobs).bucket.uploads("", "test")]


async def unavailable(call: Any) -> Unavailable:
    start = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await call
    assert time.monotonic() - start < TIMEOUT_S + 3
    assert caught.value.retryable
    assert caught.value.__cause__ is not None
    return caught.value


@pytest.mark.req("BLOB-05.1")
@pytest.mark.parametrize("fault", ["cut", "refuse", "half_open", "pause_accept", "deaf"])
async def test_each_call_is_unavailable_in_time_and_goes_on_by_itself(blobs: Blobs, proxy: Proxy, fault: str) -> None:
    await blobs.put("k", b"1")
    if fault == "cut":
        proxy.cut(new=True)
    elif fault == "refuse":
        proxy.down()
    elif fault == "pause_accept":
        proxy.cut()
        proxy.pause_accept()
    elif fault == "deaf":
        proxy.half_open("to_client")
    else:
        proxy.half_open()
    calls = [
        blobs.get("k"),
        blobs.head("k"),
        blobs.put("new", b"1"),
        blobs.list_page(),
        blobs.delete("k"),
        blobs.put("big", pieces(10)),
    ]
    for error in await asyncio.gather(*map(unavailable, calls)):
        assert error.reason == "store_unreachable"
    proxy.restore()
    assert await blobs.get("k") == b"1"
    await blobs.put("new", b"2")
    assert await blobs.get("new") == b"2"


@pytest.mark.req("BLOB-05.1")
async def test_a_download_that_is_cut_in_the_middle_is_unavailable_and_never_short(blobs: Blobs, proxy: Proxy) -> None:
    await blobs.put("k", bytes(5 * _MIB))
    proxy.drop_after(2 * _MIB, direction="to_client", times=1)
    error = await unavailable(blobs.get("k"))
    assert error.message.startswith("key: reading 'k'")
    assert await blobs.get("k") == bytes(5 * _MIB)


@pytest.mark.req("BLOB-05.1")
async def test_a_download_that_stalls_in_the_middle_is_unavailable(blobs: Blobs, proxy: Proxy) -> None:
    await blobs.put("k", bytes(5 * _MIB))
    proxy.drop_after(2 * _MIB, direction="to_client", then="swallow", times=1)
    await unavailable(blobs.get("k"))


@pytest.mark.req("BLOB-05.1")
async def test_a_slow_store_is_not_a_dead_one(blobs: Blobs, proxy: Proxy) -> None:
    await blobs.put("k", bytes(_MIB))
    proxy.throttle(300_000)
    start = time.monotonic()
    assert await blobs.get("k") == bytes(_MIB)
    assert time.monotonic() - start > TIMEOUT_S


@pytest.mark.req("BLOB-05.2")
@pytest.mark.parametrize("size_mib", [3, 30])
async def test_an_upload_that_is_cut_leaves_neither_object_nor_parts(
    blobs: Blobs, direct: Blobs, proxy: Proxy, size_mib: int
) -> None:
    await blobs.put("warm", pieces(9))
    await blobs.put("old", b"old")
    proxy.drop_after(_MIB, direction="to_server", times=1)
    await unavailable(blobs.put("old", pieces(size_mib)))
    assert await direct.get("old") == b"old"
    assert await uploads(direct) == []
    assert (await blobs.put("old", pieces(size_mib))).size == size_mib * _MIB


@pytest.mark.req("BLOB-05.2")
async def test_a_cancelled_upload_leaves_neither_object_nor_parts(blobs: Blobs, direct: Blobs, proxy: Proxy) -> None:
    await blobs.put("warm", pieces(9))
    proxy.throttle(2_000_000, direction="to_server")
    put = asyncio.create_task(blobs.put("k", pieces(40)))
    await eventually(lambda: uploads(direct))
    sent = proxy.traffic().to_server_bytes
    await eventually(lambda: proxy.traffic().to_server_bytes > sent + 500_000)
    put.cancel()
    proxy.restore()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert await uploads(direct) == []
    with pytest.raises(NotFound):
        await direct.head("k")


@pytest.mark.req("BLOB-05.2")
async def test_an_upload_that_is_under_way_when_the_store_is_closed_leaves_neither_object_nor_parts(
    blobs: Blobs, direct: Blobs, proxy: Proxy
) -> None:
    await blobs.put("warm", pieces(9))
    proxy.throttle(2_000_000, direction="to_server")
    put = asyncio.create_task(blobs.put("k", pieces(40)))
    await eventually(lambda: uploads(direct))
    async with asyncio.timeout(10):
        await blobs.aclose()
    with pytest.raises(Closed):
        await put
    assert await uploads(direct) == []
    with pytest.raises(NotFound):
        await direct.head("k")


@pytest.mark.req("BLOB-05.2")
async def test_a_stream_that_fails_has_sent_nothing(blobs: Blobs, direct: Blobs, proxy: Proxy) -> None:
    before = proxy.traffic().to_server_bytes

    async def broken() -> None:
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        await blobs.put("k", pieces(20, then=broken))
    assert proxy.traffic().to_server_bytes == before
    assert await uploads(direct) == []


@pytest.mark.req("BLOB-05.2")
async def test_what_could_not_be_thrown_away_is_collected_when_it_is_old(
    blobs: Blobs, direct: Blobs, proxy: Proxy
) -> None:
    await blobs.put("warm", pieces(9))
    proxy.throttle(4_000_000, direction="to_server")
    put = asyncio.create_task(blobs.put("k", pieces(40)))
    await eventually(lambda: uploads(direct))
    sent = proxy.traffic().to_server_bytes
    await eventually(lambda: proxy.traffic().to_server_bytes > sent + 500_000)
    proxy.down()
    with pytest.raises(Unavailable):
        await put
    assert len(await uploads(direct)) == 1
    assert await driver_of(direct).collect_abandoned() == 0
    assert len(await uploads(direct)) == 1
    driver_of(direct)._clock = VirtualClock(SYSTEM_CLOCK.now_ms() + round((ABANDONED_S + 60) * 1000))
    await direct.put("another", pieces(9))
    assert await uploads(direct) == []
    with pytest.raises(NotFound):
        await direct.head("k")


_WRITER = """
import asyncio, sys
from groundplane.blobs import Blobs
async def main():
    async def pieces():
        for _ in range(64):
            yield bytes(1 << 20)
    async with Blobs.open(sys.argv[1]) as blobs:
        part = blobs.driver.bucket.part
        async def told(name, upload, number, body, doing):
            if number == 4:
                print("half", flush=True)
                await asyncio.Event().wait()
            return await part(name, upload, number, body, doing)
        blobs.driver.bucket.part = told
        await blobs.put("k", pieces())
asyncio.run(main())
"""


@pytest.mark.req("BLOB-05.2")
async def test_a_killed_writer_leaves_no_object_and_its_parts_are_collected(direct: Blobs, s3_url: str) -> None:
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", _WRITER, s3_url, stdout=asyncio.subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert await writer.stdout.readline() == b"half\n"
    finally:
        writer.send_signal(signal.SIGKILL)
        await writer.wait()
    assert [info.key async for info in direct.list()] == []
    assert len(await uploads(direct)) == 1
    assert await driver_of(direct).collect_abandoned(older_than_s=-60) == 1
    assert await uploads(direct) == []


@pytest.mark.req("BLOB-05.1", "BLOB-05.2")
@pytest.mark.slow
async def test_a_store_that_is_killed_and_started_again_keeps_every_object_that_was_acknowledged(
    own_server: Callable[..., Any], unique_name: str
) -> None:
    server = own_server("s3")
    url = f"s3://{unique_name}?create=true&timeout=3&connect_timeout=1&endpoint={quote(server.url, safe=':/@')}"
    stored: dict[str, bytes] = {}
    refusals: list[GroundplaneError] = []
    stop = asyncio.Event()

    async def write(blobs: Blobs, lane: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            key, data = f"{lane}/{number}", os.urandom(64) * (1 if number % 5 else 4000)
            try:
                await blobs.put(key, data)
                stored[key] = data
            except Unavailable as error:
                refusals.append(error)
                await asyncio.sleep(0.05)

    async with Blobs.open(url) as blobs, asyncio.TaskGroup() as group:
        for lane in range(4):
            group.create_task(write(blobs, lane))
        for _ in range(3):
            count = len(stored)
            await eventually(lambda: len(stored) > count + 20, timeout_s=30)  # noqa: B023
            refused = len(refusals)
            await asyncio.to_thread(server.kill)
            await eventually(lambda: len(refusals) > refused, timeout_s=30)  # noqa: B023
            await asyncio.to_thread(server.start)
        count = len(stored)
        await eventually(lambda: len(stored) > count + 20, timeout_s=30)
        stop.set()
    async with Blobs.open(url) as blobs:
        there = [info.key async for info in blobs.list()]
        history = History()
        history.sent(*stored)
        history.done(*there)
        history.check_nothing_lost()
        history.check_no_effect_twice()
        for key, data in stored.items():
            assert await blobs.get(key) == data
        for key in set(there) - stored.keys():  # not acknowledged: there as a whole, or not
            assert len(await blobs.get(key)) in (64, 256_000)


@pytest.mark.req("BLOB-05.2")
@pytest.mark.slow
@pytest.mark.parametrize("small_disk", [160], indirect=True)
async def test_a_full_disk_of_the_store_is_told_and_leaves_what_was_there(
    own_server: Callable[..., Any], unique_name: str, small_disk: Path
) -> None:
    server = own_server("s3", data=str(small_disk / "data"))
    others = small_disk / "others"
    others.write_bytes(bytes(100 * _MIB))
    url = f"s3://{unique_name}?create=true&endpoint={quote(server.url, safe=':/@')}"
    async with Blobs.open(url) as blobs:
        await blobs.put("old", b"old")
        full = await filled(blobs)
        assert full.retryable  # MinIO has several words for a full disk
        with pytest.raises((ResourceExhausted, Unavailable)):
            await blobs.put("old", pieces(40))
        assert await blobs.get("old") == b"old"
        assert await uploads(blobs) == []
        others.unlink()  # MinIO keeps what is deleted in the second in which a disk fills up for five minutes more
        await eventually(lambda: blobs.put("old", pieces(10)), timeout_s=30, tolerate=(ResourceExhausted, Unavailable))


async def filled(blobs: Blobs) -> GroundplaneError:
    for number in range(60):
        try:
            await blobs.put(f"fill/{number}", bytes(5 * _MIB))
        except (ResourceExhausted, Unavailable) as error:
            return error
    pytest.fail("the disk never filled")
