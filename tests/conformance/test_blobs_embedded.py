"""The suite of blobs on the folder driver, and what is that driver's own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.blobs import Blobs
from groundplane.blobs.conformance import BlobConformance
from groundplane.blobs.drivers.folder import Folder, Incoming
from groundplane.blobs.port import BlobInfo
from groundplane.core.errors import (
    AlreadyExists,
    Conflict,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[Blobs]:
    async with Blobs.open(state=tmp_path) as opened:
        yield opened


class TestFileBlobs(BlobConformance):
    @pytest.fixture
    async def blobs(self, tmp_path: Path) -> AsyncIterator[Blobs]:
        async with Blobs.open(state=tmp_path) as opened:
            yield opened


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.parent.name != "locks"]


@pytest.mark.req("BLOB-04.1")
@pytest.mark.parametrize("damage", ["content", "trailer", "short"])
async def test_damaged_bytes_are_never_returned(blobs: Blobs, tmp_path: Path, damage: str) -> None:
    await blobs.put("k", b"x" * 5000)
    (path,) = _files(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "content":
        data[100] ^= 1
    elif damage == "trailer":
        data[-1] ^= 1
    else:
        del data[:10]
    path.write_bytes(data)
    with pytest.raises(Internal) as caught:
        await blobs.get("k")
    assert caught.value.reason == "checksum_mismatch"


@pytest.mark.req("BLOB-03.1", "BLOB-04.1")
async def test_small_objects_that_come_together_are_put_together_each_with_its_own_outcome(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await blobs.put("d/there", b"1")
    synced: list[Path] = []
    monkeypatch.setattr("groundplane.blobs.drivers.synced.sync_folder", synced.append)
    outcomes = await asyncio.gather(
        *(blobs.put(f"d/{n}", b"%d" % n) for n in range(20)),
        blobs.put("d/there", b"2", create=True),
        blobs.put("d/there", b"2", if_match="another"),
        return_exceptions=True,
    )
    assert synced == [tmp_path / "blobs" / "objects" / "d"]
    assert [type(one) for one in outcomes[20:]] == [AlreadyExists, Conflict]
    assert [await blobs.get(f"d/{n}") for n in range(20)] == [b"%d" % n for n in range(20)]
    assert await blobs.get("d/there") == b"1"
    assert len(_files(tmp_path)) == 21


@pytest.mark.req("BLOB-04.1")
async def test_a_folder_that_cannot_be_synced_fails_its_objects_and_no_others(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in "ab":
        await blobs.put(f"{folder}/0", b"")

    def sync(folder: Path) -> None:
        if folder.name == "a":
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("groundplane.blobs.drivers.synced.sync_folder", sync)
    puts = [blobs.put(key, b"") for key in ("a/1", "b/1", "a/2")]
    outcomes = [type(one).__name__ for one in await asyncio.gather(*puts, return_exceptions=True)]
    assert outcomes == ["ResourceExhausted", "BlobInfo", "ResourceExhausted"]


@pytest.fixture
def go(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No object is begun before it is set."""
    driver: Any = blobs.driver
    go, incoming = threading.Event(), driver._folder.incoming

    def held() -> Incoming:
        assert go.wait(20)
        found: Incoming = incoming()
        return found

    monkeypatch.setattr(driver._folder, "incoming", held)
    return go


@pytest.mark.req("BLOB-04.1")
async def test_of_objects_that_are_put_together_one_may_be_cancelled(
    blobs: Blobs, tmp_path: Path, go: threading.Event
) -> None:
    driver: Any = blobs.driver
    tasks = [asyncio.create_task(blobs.put(f"d/{n}", b"x")) for n in range(3)]
    while not driver._small:
        await asyncio.sleep(0)
    (_, (second, _), _) = driver._small
    tasks[1].cancel()
    while not second._cancelled:
        await asyncio.sleep(0)
    go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert [info.key async for info in blobs.list()] == ["d/0", "d/2"]
    assert len(_files(tmp_path)) == 2


@pytest.mark.req("BLOB-04.1")
async def test_what_waits_for_its_turn_is_put_when_it_comes_unless_it_was_cancelled(
    blobs: Blobs, tmp_path: Path, go: threading.Event
) -> None:
    driver: Any = blobs.driver
    puts: list[asyncio.Task[BlobInfo]] = []

    async def put(*, lanes: int, waiting: int) -> None:
        puts.append(asyncio.create_task(blobs.put(f"d/{len(puts)}", b"x")))
        while (len(driver._lanes), len(driver._small)) != (lanes, waiting):
            await asyncio.sleep(0)

    async with asyncio.timeout(20):
        await put(lanes=1, waiting=0)
        await put(lanes=2, waiting=0)
        for waiting in range(1, 4):
            await put(lanes=2, waiting=waiting)
        puts[3].cancel()
        while not driver._small[1][0]._cancelled:
            await asyncio.sleep(0)
        go.set()
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert isinstance(outcomes[3], asyncio.CancelledError)
    assert [info.key async for info in blobs.list()] == ["d/0", "d/1", "d/2", "d/4"]
    assert len(_files(tmp_path)) == 4


@pytest.mark.req("BLOB-04.1")
async def test_nothing_but_the_object_is_left_on_the_disk(blobs: Blobs, tmp_path: Path) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * 3_000_000
        raise RuntimeError

    for _ in range(3):
        await blobs.put("a/b/c", b"1")
    with pytest.raises(RuntimeError):
        await blobs.put("a/d", failing())
    assert len(_files(tmp_path)) == 1
    await blobs.delete("a/b/c")
    assert _files(tmp_path) == []
    assert list((tmp_path / "blobs" / "objects").iterdir()) == []


@pytest.mark.req("BLOB-04.1")
async def test_a_full_disk_is_said_and_leaves_nothing(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await blobs.put("k", b"old")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: _full() if len(data) > 1_000_000 else real(fd, data))
    with pytest.raises(ResourceExhausted) as caught:
        await blobs.put("k", b"x" * 3_000_000)
    assert caught.value.reason == "disk_full"
    assert isinstance(caught.value.__cause__, OSError)
    assert await blobs.get("k") == b"old"
    assert len(_files(tmp_path)) == 1


@pytest.mark.req("BLOB-04.1")
async def test_nobody_replaces_an_object_between_the_look_at_its_etag_and_the_replacement(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_have_looked = threading.Barrier(2)
    look = Folder._check_etag

    def look_and_wait(folder: Folder, key: str, etag: str) -> None:
        look(folder, key, etag)
        with contextlib.suppress(threading.BrokenBarrierError):
            both_have_looked.wait(0.5)  # with the lock held, the other never comes

    seen = await blobs.put("k", b"seen")
    monkeypatch.setattr(Folder, "_check_etag", look_and_wait)
    results = await asyncio.gather(
        *(blobs.put("k", bytes([n]), if_match=seen.etag) for n in range(2)), return_exceptions=True
    )
    assert sum(isinstance(one, Conflict) for one in results) == 1


def _full() -> int:
    raise OSError(errno.ENOSPC, "no space")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_folder_that_cannot_be_written_is_permission_denied(tmp_path: Path) -> None:
    await asyncio.to_thread(tmp_path.chmod, 0o500)
    with pytest.raises(PermissionDenied):
        async with Blobs.open(state=tmp_path):
            pass


@pytest.mark.parametrize("url", ["nothing://x", "embedded://host/x", "embedded:///x?a=b", "s4"])
async def test_a_bad_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^blobs: "):
        async with Blobs.open(url, state=tmp_path):
            pass


async def test_a_url_with_a_folder_names_the_state_folder(tmp_path: Path) -> None:
    async with Blobs.open(f"embedded://{tmp_path}/a b") as one:
        await one.put("k", b"1")
        assert (tmp_path / "a b" / "blobs" / "objects" / "k@").is_file()
    async with Blobs.open(state=tmp_path / "a b") as other:
        assert await other.get("k") == b"1"


_WRITER = """
import asyncio, sys
from groundplane.blobs import Blobs
async def main():
    async def pieces():
        yield b"x" * 2_000_000
        print("half", flush=True)
        await asyncio.Event().wait()
    async with Blobs.open(state=sys.argv[1]) as blobs:
        await blobs.put("k", pieces())
asyncio.run(main())
"""


@pytest.mark.fault
@pytest.mark.req("BLOB-04.1")
async def test_a_killed_writer_leaves_no_object_and_its_part_is_removed_at_the_next_open(tmp_path: Path) -> None:
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert writer.stdout is not None
        assert await writer.stdout.readline() == b"half\n"
        async with Blobs.open(state=tmp_path):  # a living writer keeps its part
            assert len(_files(tmp_path)) == 1
    finally:
        writer.kill()
        await writer.wait()
    async with Blobs.open(state=tmp_path) as blobs:
        assert [info.key async for info in blobs.list()] == []
        assert _files(tmp_path) == []
