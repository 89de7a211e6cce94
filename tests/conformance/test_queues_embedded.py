"""The embedded queues pass the suite; so does a driver of somebody else that subclasses it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest

from groundplane.queues import Queues
from groundplane.queues.conformance import QueueConformance
from pace import at_most
from queue_processes import child


class TestEmbeddedQueues(QueueConformance):
    """Through `Queues.open`, with real processes that die."""

    inline = False
    death_noticed_s = at_most(2.0)

    @pytest.fixture
    async def queues(self, tmp_path: Path) -> AsyncIterator[Queues]:
        self.state = tmp_path / "state"
        async with AsyncExitStack() as stack:
            self.stack = stack
            yield await stack.enter_async_context(self.another_client())

    def another_client(self) -> AbstractAsyncContextManager[Queues]:
        return Queues.open(state=self.state, namespace="test", inline=self.inline)

    def other_namespace(self) -> AbstractAsyncContextManager[Queues]:
        return Queues.open(f"embedded://{self.state}", namespace="other")

    async def restart(self, queues: Queues) -> Queues:
        await queues.aclose()
        return await self.stack.enter_async_context(self.another_client())

    async def die_holding(self, queue: str, count: int) -> list[str]:
        async with child("hold", self.state, "test", queue, count) as process:
            held: list[str] = await process.read()
            await process.kill()
        return held


class TestEmbeddedQueuesInline(TestEmbeddedQueues):
    """The same with the database run in the loop."""

    inline = True


_THIRD_PARTY = """
import pytest

from groundplane.queues import Queues
from groundplane.queues.conformance import QueueConformance
from groundplane.queues.drivers.embedded import EmbeddedQueues


class TestMyQueue(QueueConformance):
    @pytest.fixture
    async def queues(self, tmp_path):
        async with EmbeddedQueues.open(state=tmp_path) as driver:
            yield Queues(driver)
"""


@pytest.mark.slow
@pytest.mark.req("KIT-05.1")
def test_a_stranger_needs_one_fixture_to_test_a_driver(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(_THIRD_PARTY)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-k", "not delay", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    summary = done.stdout.splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) > 60
    assert "failed" not in summary
