"""Several processes on one state folder are one bus: requests, events, commands, and what a SIGKILL changes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from groundplane.bus import Bus
from groundplane.bus.conformance.kit import in_turn
from groundplane.core.errors import DeadlineExceeded, Unavailable

pytestmark = [pytest.mark.anyio, pytest.mark.integration]
CHILD = Path(__file__).parents[1] / "bus_child.py"


class Child:
    """A process on the bus, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            line = await self.process.stdout.readline()
        assert line, "the child ended"
        found: dict[str, Any] = json.loads(line)
        return found

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def child(state: Path, role: str, instance: str) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(state), role, instance,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    one = Child(process)
    try:
        assert await one.says() == {"ready": True}
        yield one
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(20):
                    await process.wait()
            except TimeoutError:
                await one.kill()
                raise


async def gone(bus: Bus, instance: str) -> None:
    """Return once a call of the instance is known to reach nobody; one that meets its end is told that it was sent."""
    async with asyncio.timeout(20):
        while True:
            with pytest.raises(Unavailable) as caught:
                await bus.request("people", "who", instance=instance)
            if caught.value.reason == "no_responder":
                return


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
async def bus(state: Path) -> AsyncIterator[Bus]:
    async with Bus.open(state=state, namespace="test", name="parent") as bus:
        yield bus


@pytest.mark.req("BUS-20.2", "BUS-02.1")
async def test_calls_reach_every_process_and_those_that_are_killed_no_more(bus: Bus, state: Path) -> None:
    async with AsyncExitStack() as stack:
        children = [await stack.enter_async_context(child(state, "serve", f"c{n}")) for n in range(2)]

        async def who() -> str:
            return "here"

        async with bus.serve("people", {"who": who}, instance="here"):
            await in_turn(bus, "people", 3)
            found = Counter([await bus.request("people", "who") for _ in range(30)])
            assert found == {"c0": 10, "c1": 10, "here": 10}
            assert {await bus.request("people", "who", instance="c1") for _ in range(3)} == {"c1"}
            await children[0].kill()
            await gone(bus, "c0")
            assert {await bus.request("people", "who") for _ in range(10)} == {"c1", "here"}


@pytest.mark.req("BUS-20.2", "BUS-03")
async def test_the_callers_end_reaches_a_handler_elsewhere_and_its_death_the_caller(bus: Bus, state: Path) -> None:
    async with child(state, "serve", "c0") as one:
        with pytest.raises(DeadlineExceeded):
            await bus.request("people", "hang", timeout_s=2.0)
        assert [await one.says(), await one.says()] == [{"called": "hang"}, {"cancelled": "hang"}]
        blocked = asyncio.create_task(bus.request("people", "hang", timeout_s=60))
        assert await one.says() == {"called": "hang"}
        await one.kill()
        with pytest.raises(Unavailable) as caught:
            await blocked
        assert caught.value.details == {"sent": True}
        with pytest.raises(Unavailable) as caught:
            await bus.request("people", "who")
        assert caught.value.reason == "no_responder"


@pytest.mark.req("BUS-20.2", "BUS-08", "BUS-07.1")
async def test_events_of_a_process_that_is_killed_go_to_those_left(bus: Bus, state: Path) -> None:
    async with child(state, "listen", "c0") as one:
        await bus.publish("orders", "created", "hang")
        assert await one.says() == {"event": "hang", "attempt": 1}
        await bus.publish("orders", "created", 1)
        assert await one.says() == {"event": 1, "attempt": 1}
        async with child(state, "listen", "c1") as two:
            await one.kill()
            assert await two.says() == {"event": "hang", "attempt": 2}


@pytest.mark.req("BUS-20.2", "BUS-13.1", "BUS-15.4")
async def test_a_command_is_done_elsewhere_also_when_its_process_is_killed(bus: Bus, state: Path) -> None:
    async with child(state, "handle", "c0") as one:
        async with bus.track("sums", "double", {"value": 4}) as tracked:
            assert [told.percent async for told in tracked.progress()] == [0, 50, 100]
            assert await tracked.result() == 8
        assert await one.says() == {"command": 4, "attempt": 1}
        async with bus.track("sums", "double", {"value": -1}) as tracked:
            assert await one.says() == {"command": -1, "attempt": 1}
            async with child(state, "handle", "c1") as two:
                await one.kill()
                assert await two.says() == {"command": -1, "attempt": 2}
                assert await tracked.result() == -2


@pytest.mark.req("BUS-20.1", "BUS-06.1")
async def test_what_was_published_and_sent_survives_that_everybody_ends(state: Path) -> None:
    async with Bus.open(state=state, namespace="test", name="first") as bus:
        async with child(state, "listen", "c0"):
            pass
        await bus.publish("orders", "created", "later")
        sent = await bus.send("sums", "double", {"value": 5})
    async with child(state, "listen", "c0") as one:
        assert await one.says() == {"event": "later", "attempt": 1}
    async with child(state, "handle", "c1") as two, Bus.open(state=state, namespace="test", name="second") as bus:
        assert await two.says() == {"command": 5, "attempt": 1}
        async with asyncio.timeout(20):
            while await bus.command_end(sent.command_id) is None:
                await asyncio.sleep(0.01)
        assert await bus.result(sent.command_id) == 10
