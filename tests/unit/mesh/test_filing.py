"""Filing outcomes: many at once, a moment late, and each with an outcome of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.blobs.store import Blobs
from groundplane.core.errors import InvalidArgument
from groundplane.mesh.filing import BATCH, Filing

pytestmark = pytest.mark.anyio


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[Blobs]:
    async with Blobs.open(state=tmp_path) as opened:
        yield opened


class Gated:
    """Blobs that take nothing until the gate opens."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.gate = asyncio.Event()
        self.under_way = 0

    async def put(self, *args: Any, **kwargs: Any) -> Any:
        self.under_way += 1
        await self.gate.wait()
        return await self._blobs.put(*args, **kwargs)


@pytest.mark.req("MESH-16.1")
async def test_every_outcome_is_there_when_its_put_returns(blobs: Blobs) -> None:
    filing = Filing(blobs)
    keys = [f"out/{number}" for number in range(2 * BATCH + 5)]

    async def put(key: str) -> None:
        await filing.put(key, key.encode())
        assert await blobs.get(key) == key.encode()

    async with asyncio.timeout(10):
        await asyncio.gather(*(put(key) for key in keys))
        await put("out/last")


@pytest.mark.req("MESH-16.1")
async def test_an_outcome_is_not_filed_before_the_blobs_have_taken_it(blobs: Blobs) -> None:
    gated = Gated(blobs)
    filing = Filing(gated)  # type: ignore[arg-type]
    putting = asyncio.create_task(filing.put("out/1", b"1"))
    async with asyncio.timeout(10):
        while not gated.under_way:
            await asyncio.sleep(0.001)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not putting.done()
        gated.gate.set()
        await putting
    assert await blobs.get("out/1") == b"1"


@pytest.mark.req("MESH-16.2")
async def test_one_that_cannot_be_filed_fails_alone(blobs: Blobs) -> None:
    filing = Filing(blobs)
    puts = [filing.put("out/1", b"1"), filing.put("../climbs", b"2"), filing.put("out/3", b"3")]
    async with asyncio.timeout(10):
        first, second, third = await asyncio.gather(*puts, return_exceptions=True)
    assert (first, third) == (None, None)
    assert isinstance(second, InvalidArgument)
    assert [await blobs.get(f"out/{n}") for n in (1, 3)] == [b"1", b"3"]
