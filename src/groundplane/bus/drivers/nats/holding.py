"""What a consumer has been handed and has not settled: settled with the server's word for it, extended, handed back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from groundplane.backends.nats import JetStream, place_of
from groundplane.backends.nats import Message as Arrived
from groundplane.backends.nats.burst import Burst
from groundplane.bus.drivers.nats.dead_letters import NatsDeadLetters
from groundplane.bus.drivers.nats.naming import Naming
from groundplane.bus.drivers.nats.sparing import Spared
from groundplane.bus.port import Ack, ConsumerSpec, Delivery, Nack, Reject, Settlement
from groundplane.core.errors import FailedPrecondition, Unavailable

WINDOW = 500
_ACK, _IN_PROGRESS = b"+ACK", b"+WPI"


class Holding:
    """The deliveries of one consumer. `tag` of a delivery is the subject on which it is settled."""

    def __init__(
        self,
        jetstream: JetStream,
        naming: Naming,
        spec: ConsumerSpec,
        dead_letters: NatsDeadLetters,
        let_go: Callable[[int], None],
    ) -> None:
        self._jetstream, self._link = jetstream, jetstream.link
        self._naming = naming
        self._spec = spec
        self._dead_letters = dead_letters
        self._let_go = let_go
        self._loop = asyncio.get_running_loop()
        self._due: dict[str, float] = {}
        self._spared = Spared(jetstream, naming, spec.name)

    def __len__(self) -> int:
        return len(self._due)

    def hold(self, message: Arrived) -> None:
        """One more is held, from now on for a lease."""
        self._due[message.reply] = self._loop.time() + self._spec.lease_s

    def delivery(self, message: Arrived) -> Delivery:
        """What the port calls it."""
        place = place_of(message.reply)
        redrives, stored_at = self._naming.redriven_from(message)
        return Delivery(
            tag=message.reply,
            message=self._naming.delivered(message),
            attempt=place.deliveries,
            stored_at=stored_at or place.time_ns // 1_000_000,
            redrives=redrives,
        )

    async def counted(self, deliveries: list[Delivery]) -> list[Delivery]:
        """The same with their true attempts: of those that were handed out before, others know how often it counted."""
        if all(one.attempt == 1 for one in deliveries):
            return deliveries
        return await self._spared.counted(deliveries)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Dead letters first, then all at once; returns when the server has taken each, or does not know it."""
        for one in settlements:
            if isinstance(one, Reject) and one.delivery.tag in self._due:
                await self._dead_letters.bury(self._spec, one)
        now = self._loop.time()
        # others may have what is no longer ours: to hand that out again would let it run twice at once
        told = [one for one in settlements if not isinstance(one, Nack) or self._due.get(one.delivery.tag, 0.0) > now]
        free = [one.delivery.tag for one in told if isinstance(one, Nack) and not one.counts]
        if free:
            await self._spared.spare(free)
        await self._tell([(one.delivery.tag, _words(one)) for one in self._last_of_each(told)])
        self._forget([one.delivery.tag for one in settlements])

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Their leases begin anew. `failed_precondition` (`delivery_lost`) where one had ended by our own clock."""
        now = self._loop.time()
        lost = [one.tag for one in deliveries if self._due.get(one.tag, 0.0) <= now]
        kept = [one.tag for one in deliveries if one.tag not in lost]
        await self._tell([(tag, _IN_PROGRESS) for tag in kept])
        for tag in kept:
            if tag in self._due:
                self._due[tag] = now + self._spec.lease_s
        if lost:
            self._forget(lost)
            raise FailedPrecondition(
                f"extend: {self._spec.name!r} no longer holds a delivery; stop its work, others have it",
                reason="delivery_lost",
            )

    def extend_unread(self, messages: Sequence[Arrived]) -> None:
        """The same for what nobody has received yet, without an answer."""
        now = self._loop.time()
        for message in messages:
            if self._due.get(message.reply, 0.0) - now < self._spec.lease_s / 2 and self._link.is_connected:
                self._link.publish_raw(message.reply, _IN_PROGRESS)
                self._due[message.reply] = now + self._spec.lease_s

    async def hand_back(self) -> None:
        """All that is held goes to the others, and costs no attempt."""
        tags = list(self._due)
        if not tags or not self._link.is_connected:
            return
        try:
            await self._spared.spare(tags)
        finally:  # if need be it costs one
            self._forget(tags)
            await self._tell([(tag, b"-NAK") for tag in tags])

    def _last_of_each(self, settlements: Sequence[Settlement]) -> Sequence[Settlement]:
        """In a cluster, of several deliveries of one message the last: of two that are under way at once, the server
        answers one.
        """
        if not self._link.info.cluster:
            return settlements
        return list({place_of(one.delivery.tag).stream_seq: one for one in settlements}.values())

    async def _tell(self, words: Sequence[tuple[str, bytes]]) -> None:
        """Say all in one go, and wait until the server has taken each."""
        asked = words if self._link.info.cluster else self._said_before_the_last(words)
        if asked:
            burst = Burst(self._link, what="settle", window=WINDOW, timeout_s=self._link.address.request_timeout_s)
            answers = await burst.run((tag, word, b"") for tag, word in asked)
            if any(answer.status == 503 for answer in answers):
                raise Unavailable(
                    f"settle: the consumer {self._spec.name!r} is not there now: it elects a leader, or is made anew",
                    reason="jetstream_unavailable",
                )

    def _said_before_the_last(self, words: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """Say all but the last word of each consumer: a server by itself takes what a connection says of a consumer in
        its order, and its answer to the last is one to all. In a cluster the leader may change in between.
        """
        last: dict[str, tuple[str, bytes]] = {}
        for tag, word in words:
            consumer = tag.rsplit(".", 5)[0]
            if consumer in last:
                self._link.publish_raw(*last[consumer])
            last[consumer] = tag, word
        return list(last.values())

    def _forget(self, tags: Sequence[str]) -> None:
        count = 0
        for tag in tags:
            count += self._due.pop(tag, None) is not None
            self._spared.forget(tag)
        if count:
            self._let_go(count)


def _words(settlement: Settlement) -> bytes:
    match settlement:
        case Nack(delay_s=delay_s):
            return b'-NAK {"delay": %d}' % round(delay_s * 1e9) if delay_s > 0 else b"-NAK"
        case Ack() | Reject():
            return _ACK
