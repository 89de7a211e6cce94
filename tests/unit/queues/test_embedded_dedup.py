"""De-duplication by key: the window, its edges, and that old keys are forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundplane.queues import OutgoingMessage, Queues, QueueSpec
from groundplane.queues.drivers.embedded import EmbeddedQueues

pytestmark = [pytest.mark.anyio, pytest.mark.req("MESH-12.3")]

START_MS = 1_700_000_100_000


class HandClock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.ms = START_MS

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000


async def _arrives(queues: Queues, key: str) -> bool:
    before = (await queues.depth("q")).ready
    await queues.send(OutgoingMessage(queue="q", id="m", payload=b"", dedup_key=key))
    return (await queues.depth("q")).ready > before


@pytest.mark.parametrize("offset_ms", [0, 1, 299_999, 150_000])
async def test_a_key_is_repeated_for_ten_minutes_and_new_after_them(tmp_path: Path, offset_ms: int) -> None:
    clock = HandClock()
    clock.ms += offset_ms
    async with EmbeddedQueues.open(state=tmp_path, clock=clock) as driver:
        queues = Queues(driver)
        await queues.declare(QueueSpec(name="q"))
        assert await _arrives(queues, "k")
        for passed_ms in (1, 299_999, 300_000, 300_001, 599_999):
            clock.ms = START_MS + offset_ms + passed_ms
            assert not await _arrives(queues, "k"), passed_ms
        clock.ms = START_MS + offset_ms + 600_000
        assert await _arrives(queues, "k")
        assert not await _arrives(queues, "k")


async def test_a_clock_that_steps_back_still_drops_the_repeat(tmp_path: Path) -> None:
    clock = HandClock()
    async with EmbeddedQueues.open(state=tmp_path, clock=clock) as driver:
        queues = Queues(driver)
        await queues.declare(QueueSpec(name="q"))
        assert await _arrives(queues, "k")
        clock.ms -= 60_000
        assert not await _arrives(queues, "k")


async def test_keys_survive_reopening(tmp_path: Path) -> None:
    for expected in (True, False):
        async with EmbeddedQueues.open(state=tmp_path) as driver:
            queues = Queues(driver)
            await queues.declare(QueueSpec(name="q"))
            assert await _arrives(queues, "k") is expected


async def test_keys_of_the_past_are_forgotten_while_new_ones_come(tmp_path: Path) -> None:
    clock = HandClock()
    async with EmbeddedQueues.open(state=tmp_path, clock=clock) as driver:
        queues = Queues(driver)
        await queues.declare(QueueSpec(name="q"))

        async def send(name: str) -> None:
            keys = [f"{name}-{n}" for n in range(1000)]
            await queues.send(*(OutgoingMessage(queue="q", id=key, payload=b"", dedup_key=key) for key in keys))

        async def stored() -> int:
            rows = await driver.native.read(lambda tx: tx.execute("SELECT count(*) FROM queue_dedup"))
            return int(rows[0][0])

        await send("old")
        clock.ms += 2_000_000
        await send("new")
        assert await stored() <= 1000 + 64
        await send("newer")
        assert await stored() == 2000
