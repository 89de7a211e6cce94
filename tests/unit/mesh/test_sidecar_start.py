"""What a sidecar waits for before it begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import Unavailable
from groundplane.core.retry import RetryPolicy
from groundplane.mesh.sidecar.process import consume_patiently
from groundplane.queues import OutgoingMessage, Queues, QueueSpec
from groundplane.queues.drivers import open_driver

pytestmark = pytest.mark.anyio


class Starting:
    """A broker that tells of its queues, and lets them be consumed only when it was asked `times`."""

    def __init__(self, driver: Any, times: int) -> None:
        self._driver = driver
        self.left = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def consume(self, *given: Any, **more: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            raise Unavailable("queues: a queue of the broker is not up", reason="broker_error")
        return self._driver.consume(*given, **more)


@pytest.fixture
async def queues(tmp_path: Path) -> AsyncIterator[Queues]:
    options: dict[str, Any] = {"namespace": "default", "state": tmp_path, "inline": True, "upgrade": False}
    async with open_driver("embedded://", **options) as driver:
        found = Queues(Starting(driver, times=10), retry=RetryPolicy(attempts=2, base_s=0.001))
        await found.declare(QueueSpec(name="double"))
        yield found
        await found.aclose()


@pytest.mark.req("MESH-25.2")
async def test_a_queue_that_cannot_be_consumed_yet_is_waited_for(queues: Queues) -> None:
    await queues.send(OutgoingMessage(queue="double", id="1", payload=b"21"))
    async with AsyncExitStack() as stack:
        consumer = await consume_patiently(stack, queues, "double", 4, asyncio.Event(), 30.0)
        assert [one.id for one in await consumer.receive(1, 5)] == ["1"]


@pytest.mark.req("MESH-25.2", "MESH-25.3")
async def test_one_that_stays_so_is_an_error_by_name(queues: Queues) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(Unavailable, match=r"queue double: was not there within 0.01 s: .* not up") as caught:
            await consume_patiently(stack, queues, "double", 4, asyncio.Event(), 0.01)
    assert caught.value.reason == "queue_not_ready"
