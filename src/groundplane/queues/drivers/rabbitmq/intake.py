"""What a consumer has taken from its queue: on one channel, as much as it was asked for.

The broker pushes up to a prefetch, and what it pushed nobody else can have. So the prefetch is what `receive` wants, no
more: it is raised by consuming anew, and what then lies in the buffer unasked for goes back after a while.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from groundplane.backends.amqp import Channel, Delivery, QueueState
from groundplane.core.errors import GroundplaneError
from groundplane.queues.drivers.rabbitmq import messages
from groundplane.queues.drivers.rabbitmq.messages import Note

RUN_QUIET_S = 0.01
"""How long to wait for more of a run of returned messages, so that it is handed out in its old order."""

_PUSHED_S = 2.0
"""How long what the broker may push already is waited for; longer, and its attempt is lost."""
_LOOK_S = 0.005


class Taken:
    """One copy of a message as the broker handed it over. `attempt` is 0 until it is known.

    `copied`: the copy that its settlement makes (a retry, a dead letter) was confirmed.
    """

    __slots__ = ("_note", "attempt", "copied", "delivered", "grant", "intake", "seen", "shown")

    def __init__(self, intake: Intake, grant: int, delivered: Delivery) -> None:
        self.intake = intake
        self.grant = grant
        self.delivered = delivered
        self.attempt = 0
        self.copied = False
        self.seen = False
        self.shown = False
        self._note: Note | None = None

    @property
    def note(self) -> Note:
        if self._note is None:
            self._note = messages.note_of(self.delivered)
        return self._note

    @property
    def since(self) -> int:
        """Unix ms of its publishing; 0 where its note cannot be read."""
        return self._note.since if self._note is not None else messages.since(self.delivered)

    @property
    def count(self) -> int:
        """How often the broker handed it out before."""
        return messages.count_of(self.delivered) if self.delivered.redelivered else 0


class Intake:
    """The consuming half of one channel. It ends with the channel; what it holds then comes again."""

    def __init__(self, channel: Channel, broker_queue: str, wake: Callable[[], None]) -> None:
        self.channel = channel
        self.buffer: deque[Taken] = deque()
        self.granted = 0
        self.last_copy = b""
        self.last_at = 0.0
        self.last_wait_ms = 0
        self.handed_at = 0.0
        self.listened_at = asyncio.get_running_loop().time()
        self.deaf = 0
        self.on_end: Callable[[], None] | None = None
        self.cancelled: GroundplaneError | None = None
        self.left = False
        self._queue = broker_queue
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._outstanding: dict[int, Taken | None] = {}
        self._grant = 0
        self._unsettled = 0
        self._tag: str | None = None
        self._adjusting: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return self.channel.is_open and self.cancelled is None

    @property
    def holds(self) -> bool:
        """Whether what was taken here can be settled still; not once the broker took it back, or is about to."""
        return self.channel.is_open and not self.left

    @property
    def free(self) -> int:
        """How many more the broker may push now."""
        return self.granted - self._unsettled if self._tag is not None else 0

    async def want(self, count: int) -> None:
        """See to it that the broker pushes up to `count` more; returns when it knows.

        What it may push already is waited for first: the broker counts what it is pushing to a consumer that ends in
        that moment as handed out.
        """
        while self._adjusting is not None:
            await asyncio.wait([self._adjusting])
        if not self.buffer and self.free <= 0:
            await self._adjust(count)

    async def pause(self) -> None:
        """No more is pushed when this returns. As with `want`, what it may push already is waited for: a slow disk
        holds up an acknowledgement, and what that makes room for comes after it.
        """
        while self._adjusting is not None:
            await asyncio.wait([self._adjusting])
        until = self._loop.time() + _PUSHED_S
        while self.free > 0 and (await self.barrier()).ready and self._loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)  # the broker tells nobody
        if self._tag is not None:
            await self._adjust(0)

    async def barrier(self) -> QueueState:
        """What the queue has left; all that the broker pushed before is in the buffer then.

        Asked twice: the broker's channel answers the first before it passes on what waits in it.
        """
        await self.channel.declare_queue(self._queue, passive=True)
        return await self.channel.declare_queue(self._queue, passive=True)

    def run_is_open(self) -> bool:
        """Whether the buffer begins with returned messages of which more may be on their way."""
        if not self.buffer or not self.buffer[0].delivered.redelivered or self.free <= 0:
            return False
        if not all(one.delivered.redelivered for one in self.buffer):
            return False
        return self._loop.time() - self.last_at < RUN_QUIET_S

    def sort_run(self) -> None:
        """The broker puts what returns behind what returned before: restore the order of publishing."""
        run = 0
        for one in self.buffer:
            if not one.delivered.redelivered:
                break
            run += 1
        if run > 1:
            returned = sorted((self.buffer.popleft() for _ in range(run)), key=_by_copy)
            self.buffer.extendleft(reversed(returned))

    def hold_aside(self, tag: int) -> None:
        """A delivery of this channel that is none of the queue's: it is not to be settled with its neighbours."""
        self._outstanding[tag] = None

    def drop_aside(self, tag: int, *, requeue: bool) -> None:
        """Settle such a one."""
        del self._outstanding[tag]
        if requeue:
            self.channel.nack(tag)
        else:
            self.channel.ack(tag)

    def ack(self, taken: Sequence[Taken]) -> None:
        """They are done; neighbours at the head of what is held are acknowledged by one frame."""
        done = {one.delivered.tag for one in taken}
        prefix = 0
        for tag in self._outstanding:
            if tag not in done:
                break
            prefix = tag
        if prefix:
            self.channel.ack(prefix, multiple=True)
        for one in taken:
            if one.delivered.tag > prefix:
                self.channel.ack(one.delivered.tag)
        self._release(taken)

    def requeue(self, taken: Sequence[Taken]) -> None:
        """Back to the queue in this order."""
        for one in taken:
            self.channel.nack(one.delivered.tag)
        self._release(taken)

    def end(self, error: GroundplaneError) -> None:
        """The broker ended a consumer of this channel: its queue was deleted, or lost its leader."""
        self._tag = None
        self.cancelled = error
        if self.on_end is not None:
            self.on_end()
        self._wake()

    def tags_held(self) -> int:
        """How many consumers, ended ones included, the broker still counts here for what they hold."""
        return len({one.grant for one in self._outstanding.values() if one is not None})

    def take_buffer(self) -> list[Taken]:
        """Everything that nobody asked for yet."""
        found = list(self.buffer)
        self.buffer.clear()
        return found

    def _release(self, taken: Iterable[Taken]) -> None:
        for one in taken:
            del self._outstanding[one.delivered.tag]
            if one.grant == self._grant:
                self._unsettled -= 1

    async def _adjust(self, count: int) -> None:
        """Shielded: a caller that is cancelled must not leave a consumer whose tag nobody knows."""
        self._adjusting = asyncio.create_task(self._consume(count), name="groundplane-rabbitmq-credit")
        self._adjusting.add_done_callback(self._adjusted)
        await asyncio.shield(self._adjusting)

    def _adjusted(self, task: asyncio.Task[None]) -> None:
        self._adjusting = None
        if not task.cancelled():
            task.exception()  # the caller has it, or the channel is gone anyway

    async def _consume(self, count: int) -> None:
        if self._tag is not None:
            tag, self._tag = self._tag, None
            await self.channel.cancel(tag)
        if not count or self.buffer:
            return
        self._grant += 1
        self._unsettled, self.granted, grant = 0, count, self._grant
        await self.channel.qos(count)
        self._tag = await self.channel.consume(
            self._queue, lambda delivered: self._receive(grant, delivered), on_cancel=self.end
        )

    def _receive(self, grant: int, delivered: Delivery) -> None:
        taken = Taken(self, grant, delivered)
        self._outstanding[delivered.tag] = taken
        if grant == self._grant:
            self._unsettled += 1
        self.buffer.append(taken)
        self.last_at = self._loop.time()
        self._wake()


def _by_copy(taken: Taken) -> bytes:
    return taken.note.copy
