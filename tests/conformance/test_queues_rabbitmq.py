"""The queues on RabbitMQ pass the suite that the embedded ones pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from groundplane.core.errors import GroundplaneError
from groundplane.core.ids import new_id
from groundplane.queues import Queues
from groundplane.queues.conformance import QueueConformance
from queue_processes import child

pytestmark = [pytest.mark.integration]


class TestRabbitQueues(QueueConformance):
    """Through `Queues.open`, with real processes that die."""

    death_noticed_s = 2.0

    @pytest.fixture
    async def queues(self, rabbitmq_url: str) -> AsyncIterator[Queues]:
        self.url = f"{rabbitmq_url}?guard=0"  # nobody kills the broker of these tests
        self.namespace = f"test-{new_id()}"
        async with self.another_client() as queues:
            yield queues

    def another_client(self) -> AbstractAsyncContextManager[Queues]:
        return Queues.open(self.url, namespace=self.namespace)

    def other_namespace(self) -> AbstractAsyncContextManager[Queues]:
        return Queues.open(self.url, namespace=f"other-{new_id()}")

    async def die_holding(self, queue: str, count: int) -> list[str]:
        async with child("hold", self.url, self.namespace, queue, count) as process:
            held: list[str] = await process.read()
            await process.kill()
        return held
