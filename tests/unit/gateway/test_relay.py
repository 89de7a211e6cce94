"""From outbox to queues: a queue that is not there yet is declared, and nothing is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from groundplane.core.envelope import ERROR_END, HAPPY_END
from groundplane.gateway.metrics import GatewayMetrics
from groundplane.gateway.relay import Relay, declare_missing
from groundplane.jobs.port import OutboxMessage
from groundplane.queues import Queues
from groundplane.queues.port import MAY_REPEAT, QueueSpec
from groundplane.telemetry.metrics import new_registry

pytestmark = pytest.mark.anyio


def message(queue: str, name: str) -> OutboxMessage:
    return OutboxMessage(queue=queue, id=name, payload=b"x", dedup_key=f"{name}:0")


@pytest.mark.req("JOB-02")
async def test_a_queue_that_is_not_there_is_declared_and_gets_its_message_once(tmp_path: Path) -> None:
    async with Queues.open(state=tmp_path, upgrade=True) as queues:
        await queues.declare(QueueSpec(name="there"))
        relay = Relay(queues, GatewayMetrics(new_registry()))
        batch = [message("there", "a"), message("missing", "b")]
        await relay.send(batch)
        await relay.send(batch)  # the relay may repeat a batch whose end it did not record
        assert [(await queues.depth(name)).ready for name in ("there", "missing")] == [1, 1]


async def test_queues_that_are_there_keep_their_limits(tmp_path: Path) -> None:
    async with Queues.open(state=tmp_path, upgrade=True) as queues:
        await queues.declare(QueueSpec(name="there", attempts_max=9))
        await declare_missing(queues, ["there", "new"])
        declared = {spec.name: spec.attempts_max for spec in await queues.queues()}
    assert declared["there"] == 9
    assert set(declared) == {"there", "new", HAPPY_END, ERROR_END}
    assert declared[HAPPY_END] == declared[ERROR_END] >= 1000  # an end is tried until it is persisted


@pytest.mark.req("MESH-12")
async def test_what_may_have_been_sent_before_says_so_in_its_queue_and_nothing_else_does(tmp_path: Path) -> None:
    async with Queues.open(state=tmp_path, upgrade=True) as queues:
        await queues.declare(QueueSpec(name="there"))
        relay = Relay(queues, GatewayMetrics(new_registry()))
        await relay.send(
            [message("there", "first"), msgspec.structs.replace(message("there", "second"), taken_before=True)]
        )
        await relay.send([message("there", "third"), message("missing", "fourth")])  # sent again once it is declared
        async with queues.consume("there") as consumer:
            found = await consumer.receive(10, 5)
    assert {one.id: MAY_REPEAT in one.headers for one in found} == {"first": False, "second": True, "third": True}
