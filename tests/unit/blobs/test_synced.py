"""What a put has synced when it returns: the bytes, their name, and the names of the folders above them."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.blobs import Blobs

pytestmark = pytest.mark.anyio


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file and folder that was synced, in order, under the name that it had then."""
    found: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        found.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[Blobs]:
    async with Blobs.open(state=tmp_path) as opened:
        yield opened


def _folders(synced: list[Path]) -> list[Path]:
    return [path for path in synced if path.is_dir()]


@pytest.mark.req("BLOB-04.1")
@pytest.mark.parametrize("size", [3, 3_000_000])
async def test_the_bytes_are_synced_before_they_have_their_name_and_then_every_new_name(
    blobs: Blobs, tmp_path: Path, synced: list[Path], size: int
) -> None:
    objects = tmp_path / "blobs" / "objects"
    synced.clear()
    await blobs.put("a/b/c", b"x" * size)
    assert synced[0].parent.name == "incoming"
    assert set(synced[1:]) >= {objects / "a" / "b", objects / "a", objects}
    synced.clear()
    await blobs.put("a/b/d", b"x" * size)
    assert synced[1:] == [objects / "a" / "b"]


@pytest.mark.req("BLOB-04.1")
async def test_a_folder_that_somebody_else_made_is_synced_all_the_same(
    blobs: Blobs, tmp_path: Path, synced: list[Path]
) -> None:
    objects = tmp_path / "blobs" / "objects"
    (objects / "a" / "b").mkdir(parents=True)
    synced.clear()
    await blobs.put("a/b/c", b"1")
    assert set(_folders(synced)) >= {objects / "a" / "b", objects / "a", objects}


@pytest.mark.req("BLOB-04.1")
async def test_a_folder_that_was_away_is_a_new_one(blobs: Blobs, tmp_path: Path, synced: list[Path]) -> None:
    objects = tmp_path / "blobs" / "objects"
    await blobs.put("a/b/c", b"1")
    shutil.rmtree(objects / "a")
    (objects / "a" / "b").mkdir(parents=True)
    synced.clear()
    await blobs.put("a/b/c", b"1")
    assert set(_folders(synced)) >= {objects / "a" / "b", objects / "a", objects}


@pytest.mark.req("BLOB-04.1")
async def test_a_removal_is_synced(blobs: Blobs, tmp_path: Path, synced: list[Path]) -> None:
    await blobs.put("a/b", b"1")
    await blobs.put("a/c", b"1")
    synced.clear()
    await blobs.delete("a/b")
    assert synced == [tmp_path / "blobs" / "objects" / "a"]
