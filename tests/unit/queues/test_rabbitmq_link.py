"""The link to the broker, against a broker that says what the test wants."""

from __future__ import annotations

import asyncio
import time

import pytest
from pamqp import commands

from amqp_peer import FakeBroker, method, served
from groundplane.backends.amqp import Address, Connection, Message
from groundplane.core.errors import FailedPrecondition, Unavailable
from groundplane.queues.drivers.rabbitmq import link
from groundplane.queues.drivers.rabbitmq.link import Session, check_is_up

pytestmark = pytest.mark.anyio


async def test_what_is_never_confirmed_is_not_kept_and_stops_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quorum queue without a leader confirms nothing; others on the same broker do."""

    def answer(channel: int, what: commands.Basic.Publish) -> bytes:
        confirm = method(channel, commands.Basic.Ack(publishing.published[channel]))
        return b"" if what.routing_key == "leaderless" else confirm

    publishing = FakeBroker(Basic_Publish=answer)
    async with served(publishing) as first, served() as second:
        connection = await Connection.open(Address.parse(first.url), name="publishing")
        session = Session(connection, await Connection.open(Address.parse(second.url), name="consuming"))
        try:
            before = await session.publisher()
            for _ in range(3):
                monkeypatch.setattr(link, "CONFIRM_S", 0.2)
                with pytest.raises(Unavailable) as caught:
                    await session.publish([Message("", "leaderless", bytes(1000))])
                monkeypatch.undo()
                assert (caught.value.reason, caught.value.retryable) == ("broker_slow", True)
                assert await session.publish([Message("", "sound", b"x")]) == [None]
            assert await session.publisher() is not before
            deadline = time.monotonic() + 20
            while session.publishing.statistics()["channels"] > 1:
                assert time.monotonic() < deadline, "channels with what is never confirmed stay open"
                await asyncio.sleep(0.02)
            assert session.publishing.statistics()["unconfirmed"] == 0
        finally:
            await session.aclose()


def test_a_stream_that_is_not_up_yet_is_unavailable_and_one_made_otherwise_is_not() -> None:
    """What RabbitMQ 3.10.8 says to who consumes a stream while it starts."""
    said = "PRECONDITION_FAILED - queue 'queue 'n::registry' in vhost '/'' does not have a replica on the local node"
    with pytest.raises(Unavailable) as caught:
        check_is_up(FailedPrecondition("consume", reason="precondition_failed", details={"reply_text": said}))
    assert (caught.value.reason, caught.value.retryable) == ("broker_error", True)
    check_is_up(FailedPrecondition("consume", reason="precondition_failed", details={"reply_text": "inequivalent arg"}))
