"""The queues on RabbitMQ pass the suite that the embedded ones pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from groundplane.core.errors import GroundplaneError
from groundplane.core.ids import new_id
from groundplane.queues import Queues
from groundplane.queues.conformance import Kit, QueueConformance
from groundplane.queues.conformance.faults import FaultConformance
from groundplane.queues.conformance.sending import SendingConformance
from groundplane.testing.servers.contract import Running
from pace import at_most
from queue_processes import child

pytestmark = [pytest.mark.integration]


class _OnRabbit(Kit):
    """The hooks. `url` is set by each class's fixture."""

    url: str
    namespace: str
    death_noticed_s = at_most(2.0)

    def another_client(self) -> AbstractAsyncContextManager[Queues]:
        return Queues.open(self.url, namespace=self.namespace)

    def other_namespace(self) -> AbstractAsyncContextManager[Queues]:
        return Queues.open(self.url, namespace=f"other-{new_id()}")

    async def die_holding(self, queue: str, count: int) -> list[str]:
        async with child("hold", self.url, self.namespace, queue, count) as process:
            held: list[str] = await process.read()
            await process.kill()
        return held


class TestRabbitQueues(_OnRabbit, QueueConformance):
    """Through `Queues.open`, with real processes that die."""

    @pytest.fixture
    async def queues(self, rabbitmq_url: str) -> AsyncIterator[Queues]:
        self.url = f"{rabbitmq_url}?guard=0"  # nobody kills the broker of these tests
        self.namespace = f"test-{new_id()}"
        async with self.another_client() as queues:
            yield queues

    # what restarts the broker is below, on a broker of its own
    test_a_delay_survives_a_restart_of_the_backend = None  # type: ignore[assignment]
    test_a_restart_of_the_backend_loses_nothing_and_a_waiting_consumer_goes_on = None  # type: ignore[assignment]
    test_restarts_while_messages_pass_lose_none = None  # type: ignore[assignment]


class TestRabbitQueuesThroughKills(_OnRabbit, FaultConformance):
    """The broker is killed and started again. It confirms no acknowledgement."""

    forgets_settlements = True

    @pytest.fixture
    async def queues(self, own_server_of_class: Callable[[str], Running]) -> AsyncIterator[Queues]:
        self.server = own_server_of_class("rabbitmq")
        self.url = self.server.url
        self.namespace = f"test-{new_id()}"
        async with self.another_client() as queues:
            yield queues

    async def restart(self, queues: Queues) -> Queues:
        await asyncio.to_thread(self.break_down)
        until = time.monotonic() + 20
        while True:
            try:
                await queues.queues()
                return queues
            except GroundplaneError as error:
                if not error.retryable or time.monotonic() > until:
                    raise

    def break_down(self) -> None:
        self.server.kill()
        self.server.start()

    test_a_delay_survives = SendingConformance.test_a_delay_survives_a_restart_of_the_backend


class TestRabbitQueuesThroughRestarts(TestRabbitQueuesThroughKills):
    """The broker is stopped in order and started again."""

    forgets_settlements = False

    def break_down(self) -> None:
        self.server.restart()

    test_what_a_killed_consumer_held_returns_with_its_attempt_raised = None  # type: ignore[assignment]
    test_a_consumer_that_opens_after_the_death_gets_them_too = None  # type: ignore[assignment]
    test_crashes_and_retries_are_counted_alike_up_to_the_dead_letter = None  # type: ignore[assignment]
