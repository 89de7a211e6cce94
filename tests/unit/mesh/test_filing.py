"""Filing outcomes: many at once, a moment late, and each with an outcome of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.blobs.port import Capability
from groundplane.blobs.store import Blobs
from groundplane.core.errors import InvalidArgument
from groundplane.mesh import filing as filing_module
from groundplane.mesh.filing import BATCH, LINGER_S, Filing

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["embedded", pytest.param("s3", marks=pytest.mark.integration)])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Blobs]:
    url = request.getfixturevalue("s3_url") if request.param == "s3" else "embedded://"
    async with Blobs.open(url, state=tmp_path) as opened:
        yield opened


class Gated:
    """Blobs that take nothing until the gate opens."""

    def __init__(self, blobs: Blobs, capabilities: Capability | None = None) -> None:
        self._blobs = blobs
        self.capabilities = blobs.capabilities if capabilities is None else capabilities
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


@pytest.mark.req("MESH-16.1")
async def test_where_puts_share_a_sync_they_go_together_and_elsewhere_each_as_it_comes(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filing_module, "LINGER_S", 3600.0)
    together, at_once = Gated(blobs, Capability.SHARES_SYNC), Gated(blobs, Capability.NONE)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        gathering, filing = Filing(together), Filing(at_once)  # type: ignore[arg-type]
        for number in range(BATCH - 1):
            group.create_task(gathering.put(f"out/a{number}", b"1"))
        group.create_task(filing.put("out/b", b"1"))
        while not at_once.under_way:
            await asyncio.sleep(0)
        assert together.under_way == 0
        group.create_task(gathering.put("out/enough", b"1"))
        while together.under_way < BATCH:
            await asyncio.sleep(0)
        assert together.under_way == BATCH
        together.gate.set()
        at_once.gate.set()


@pytest.mark.req("MESH-16.1")
@pytest.mark.parametrize("capability", [Capability.SHARES_SYNC, Capability.NONE])
async def test_no_more_than_a_batch_is_under_way_at_once(blobs: Blobs, capability: Capability) -> None:
    gated = Gated(blobs, capability)
    filing = Filing(gated)  # type: ignore[arg-type]
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for number in range(2 * BATCH):
            group.create_task(filing.put(f"out/{number}", b"1"))
        while gated.under_way < BATCH:
            await asyncio.sleep(0.001)
        await asyncio.sleep(2 * LINGER_S)
        assert gated.under_way == BATCH
        gated.gate.set()
    assert gated.under_way == 2 * BATCH


@pytest.mark.req("MESH-16.1")
async def test_a_put_that_is_cancelled_takes_no_other_along(blobs: Blobs) -> None:
    filing = Filing(blobs)
    cancelled, other = (asyncio.create_task(filing.put(f"out/{n}", b"1")) for n in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    async with asyncio.timeout(10):
        await other
    assert await blobs.get("out/1") == b"1"
    assert cancelled.cancelled()
