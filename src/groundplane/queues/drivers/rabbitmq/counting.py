"""How many messages a queue has: what the broker says is ready, and what its holders say they hold.

Both are read until two readings of the broker agree, so that nothing that moved between them counts twice. Under a
steady stream they never do: then the last is as good as any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from groundplane.backends.amqp import Channel, QueueState
from groundplane.core.clock import Clock
from groundplane.core.errors import GroundplaneError
from groundplane.queues.drivers.rabbitmq import messages
from groundplane.queues.drivers.rabbitmq.asking import Asker, Share
from groundplane.queues.drivers.rabbitmq.link import Link, Session
from groundplane.queues.drivers.rabbitmq.names import Names
from groundplane.queues.drivers.rabbitmq.returns import Returns
from groundplane.queues.port import Depth

_ROUNDS = 5
_HEAD_S = 5.0


class _States(NamedTuple):
    ready: QueueState
    delayed: QueueState
    dead: QueueState


class _Head(NamedTuple):
    copy: bytes
    since: int
    ready: int
    at: float


class Counting:
    """Depths of the queues of a namespace."""

    def __init__(self, link: Link, names: Names, returns: Returns, clock: Clock) -> None:
        self._link = link
        self._names = names
        self._returns = returns
        self._clock = clock
        self._asker = Asker(link, names)
        self._heads: dict[str, _Head] = {}
        self._peeking = asyncio.Lock()
        self._peeker: Channel | None = None
        self._session: Session | None = None

    async def depth(self, queue: str) -> Depth | None:
        """Counts now; None where there is no such queue."""
        found = await self._read(queue)
        if found is None:
            return None
        states, shares = found
        since = await self._oldest(queue, states.ready, shares)
        return Depth(
            queue=queue,
            ready=states.ready.ready + sum(share.ready for share in shares),
            in_flight=sum(share.in_flight for share in shares),
            delayed=states.delayed.ready + sum(share.delayed for share in shares),
            dead=states.dead.ready + sum(share.dead for share in shares),
            oldest_age_s=max(0, self._clock.now_ms() - since) / 1000 if since else 0.0,
        )

    async def total(self, queue: str) -> int | None:
        """Ready, in flight and delayed."""
        found = await self._read(queue)
        if found is None:
            return None
        states, shares = found
        held = sum(share.ready + share.in_flight + share.delayed for share in shares)
        return states.ready.ready + states.delayed.ready + held

    async def _read(self, queue: str) -> tuple[_States, list[Share]] | None:
        session = await self._link.ready()
        before, shares = await self._states(session, queue), list[Share]()
        for _ in range(_ROUNDS):
            if before is None:
                return None
            shares = await self._asker.ask(self._names.ready(queue), before.delayed.consumers)
            shares += await self._asker.ask(self._names.dead(queue), before.dead.consumers)
            if not shares:
                return before, shares
            after = await self._states(session, queue)
            if after is not None and _same(before, after):
                return after, shares
            before = after
        return None if before is None else (before, shares)

    async def _states(self, session: Session, queue: str) -> _States | None:
        names = self._names
        ready = await session.state(names.ready(queue))
        if ready is None:
            return None
        delayed, dead = await session.state(names.delayed(queue)), await session.state(names.dead(queue))
        nothing = QueueState("", 0, 0)
        return _States(ready, delayed or nothing, dead or nothing)

    async def _oldest(self, queue: str, state: QueueState, shares: Sequence[Share]) -> int:
        """Since when (Unix ms) the oldest ready message is ready, 0 for none.

        Of consumers that have ready ones it is known; where they get others all the time, the next waits about as long
        as the last did; else it is looked at, which the broker counts as a hand-out and is recorded as none.
        """
        known = [share.oldest for share in shares if share.oldest]
        if known:
            return min(known)
        if not state.ready:
            return 0
        waited = [share.waited_ms for share in shares if share.waited_ms >= 0]
        if waited:  # who takes the head away now lets the next overtake it
            return self._clock.now_ms() - max(waited)
        head, now = self._heads.get(queue), asyncio.get_running_loop().time()
        same = head is not None and now - head.at < _HEAD_S and state.ready >= head.ready
        if head is not None and same and not any(share.last_copy >= head.copy for share in shares):
            return head.since
        return await self._peek(queue, state)

    async def _peek(self, queue: str, state: QueueState) -> int:
        broker_queue, now = self._names.ready(queue), asyncio.get_running_loop().time()
        async with self._peeking:
            session = await self._link.ready()
            channel = self._peeker
            if channel is None or not channel.is_open or self._session is not session:
                channel = self._peeker = await session.consuming.channel()
                self._session = session
            delivered = await channel.get(broker_queue)
            if delivered is None:
                return 0
            if not messages.since(delivered):  # of a newer version: its age is not known here
                channel.nack(delivered.tag)
                return 0
            try:
                note, count = messages.note_of(delivered), messages.count_of(delivered)
                if count:
                    await self._returns.read()
                attempt, seen = self._returns.attempt(note.copy, note.attempt, count)
                await self._returns.record(session, [(note.copy, attempt, count, not seen)])
            finally:
                if channel.is_open:
                    channel.nack(delivered.tag)
            await self._visible(channel, broker_queue, state)
        self._heads[queue] = _Head(note.copy, note.since, state.ready, now)
        return note.since

    async def _visible(self, channel: Channel, broker_queue: str, before: QueueState) -> None:
        try:
            for _ in range(10):
                state = await channel.declare_queue(broker_queue, passive=True)
                if state.ready >= before.ready or state.consumers:
                    return
                await asyncio.sleep(0.002)
        except GroundplaneError:
            return  # the queue or the channel is gone, and the answer with it


def _same(before: _States, after: _States) -> bool:
    return all(one.ready == other.ready for one, other in zip(before, after, strict=True))
