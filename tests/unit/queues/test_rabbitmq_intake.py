"""What a RabbitMQ consumer waits for before it ends: the broker counts as handed out what it is pushing just then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from groundplane.backends.amqp import Channel, Delivery, QueueState
from groundplane.queues.drivers.rabbitmq.intake import Intake

pytestmark = pytest.mark.anyio


class SlowBroker:
    """A channel of a broker whose disk is slow: the room that an acknowledgement makes is used `looks` looks later."""

    is_open = True

    def __init__(self, looks: int) -> None:
        self.done: list[str] = []
        self._looks = looks
        self._ready = 2
        self._push: Callable[[Delivery], None] | None = None

    async def qos(self, prefetch: int) -> None:
        assert prefetch == 1

    async def consume(self, queue: str, push: Callable[[Delivery], None], *, on_cancel: Any) -> str:
        self._push = push
        self._hand_over(1)
        return "tag"

    async def cancel(self, tag: str) -> None:
        self.done.append("cancel")
        self._push = None

    async def declare_queue(self, name: str, *, passive: bool) -> QueueState:
        self._looks -= 1
        if self._looks == 0:
            self._hand_over(2)
        return QueueState(name, self._ready, 1)

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        self.done.append(f"ack {tag}")

    def _hand_over(self, tag: int) -> None:
        assert self._push is not None, "pushed to a consumer that had ended: an attempt is lost"
        self._ready -= 1
        self.done.append(f"push {tag}")
        self._push(Delivery(tag, False, "", "q"))


@pytest.mark.req("MESH-18")
async def test_a_consumer_is_not_ended_while_the_room_it_made_is_about_to_be_used() -> None:
    broker = SlowBroker(looks=60)
    intake = Intake(cast("Channel", broker), "q", lambda: None)
    await intake.want(1)
    intake.ack(intake.take_buffer())
    await intake.pause()
    assert broker.done == ["push 1", "ack 1", "push 2", "cancel"]
    assert len(intake.take_buffer()) == 1
