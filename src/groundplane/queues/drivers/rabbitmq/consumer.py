"""A consumer: receives, settles, hands back; lives through every restart of the broker."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from groundplane.core.errors import Closed, FailedPrecondition, GroundplaneError, NotFound, Unavailable, Unsupported
from groundplane.queues.drivers.rabbitmq import asking
from groundplane.queues.drivers.rabbitmq.asking import Share
from groundplane.queues.drivers.rabbitmq.delays import Delays
from groundplane.queues.drivers.rabbitmq.held import Held
from groundplane.queues.drivers.rabbitmq.intake import RUN_QUIET_S, Intake, Taken
from groundplane.queues.drivers.rabbitmq.link import Session, check_is_missing
from groundplane.queues.drivers.rabbitmq.parts import Parts
from groundplane.queues.drivers.rabbitmq.sending import missing
from groundplane.queues.port import Carried, Delivery, OutgoingMessage, QueueConsumer, Settlement

IDLE_S = 0.25
"""How long messages lie in the buffer while nobody receives, before they go back to others."""

_CLOSE_S = 8.0
"""For all of closing. Half of it for what is being settled, a quarter at least for handing back."""
_DEAF_S = 3.0
_DEAF_LOOKS = 2
_VISIBLE_S = 0.5
_RATE_S = 1.0
_FRESH_S = 5.0
"""How long after a hand-out the queue is not looked at for its oldest message: who looks takes it away for a moment."""

_ADJUSTMENTS_MAX = 3
_AGAIN_S = 0.2
_GIVEN_BACK_S = 0.25


class RabbitConsumer:
    """One consumer of one queue. `tag` of its deliveries is a number of its own."""

    def __init__(self, parts: Parts, queue: str, max_in_flight: int) -> None:
        self._parts = parts
        self._queue = queue
        self._max_in_flight = max_in_flight
        self._who = os.urandom(12)
        self._loop = asyncio.get_running_loop()
        self._intake: Intake | None = None
        self._delays: Delays | None = None
        self._changed = asyncio.Event()
        self._held = Held(parts, queue, kept=self._watch_idle, changed=self._changed.set)
        self._receiving = False
        self._giving_back = False
        self._received_at = 0.0
        self._adjusted: deque[float] = deque(maxlen=_ADJUSTMENTS_MAX)
        self._idle_check: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._keeping: asyncio.Task[None] | None = None
        self._failure: GroundplaneError | None = None
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{len(self._held)} of {self._max_in_flight} in flight"
        return f"<RabbitConsumer of {self._queue!r}, {state}>"

    async def start(self) -> None:
        """Attach to the broker for the first time. `not_found` for a queue that is not there."""
        await self._attach(await self._parts.link.ready())
        self._keeping = asyncio.create_task(self._keep(), name=f"groundplane-consumer-{self._queue}")

    async def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        """See `QueueConsumer.receive`. While the broker is away it waits, and goes on by itself."""
        self._check_open()
        if self._receiving:
            raise FailedPrecondition(f"receive: the consumer of {self._queue!r} is receiving; one caller at a time")
        self._receiving = True
        try:
            return await self._receive(limit, timeout_s)
        finally:
            self._receiving = False
            self._received_at = self._loop.time()
            self._watch_idle()

    async def settle(
        self,
        settlements: Sequence[Settlement],
        sends: Sequence[OutgoingMessage] = (),
        carry: Sequence[Carried] = (),
    ) -> None:
        """See `QueueConsumer.settle`: sends, then settles; not one transaction."""
        self._check_open()
        if carry:
            raise Unsupported("carry: RabbitMQ has no transaction with other stores; leave it out")
        await self._held.settle(settlements, sends)

    async def extend(self, deliveries: Sequence[Delivery], lease_s: float) -> None:
        """Not with RabbitMQ: a delivery is held as long as its connection lives."""
        raise Unsupported("lease_s: RabbitMQ has no leases; a delivery is held as long as its connection lives")

    async def aclose(self) -> None:
        """See `QueueConsumer.aclose`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"groundplane-consumer-{self._queue}-close")
        await asyncio.shield(self._closing)

    # -- receiving -----------------------------------------------------------------------------------------------------

    async def _receive(self, limit: int, timeout_s: float | None) -> list[Delivery]:
        deadline = None if timeout_s is None else self._loop.time() + timeout_s
        looked = False
        if self._giving_back and not await self._given_back(deadline):
            return []
        while True:
            self._check_open()
            self._changed.clear()
            intake = self._intake
            if intake is not None and not intake.channel.is_open:
                intake = None  # closed in this moment: `_detached` wakes us
            if intake is None and self._failure is not None:
                raise self._failure
            wanted = min(limit, self._max_in_flight - len(self._held))
            pause_s = _DEAF_S
            if intake is not None and wanted > 0:
                try:
                    if intake.buffer:
                        deliveries = await self._hand_out(intake, wanted)
                        if deliveries:
                            return deliveries
                        continue
                    await self._want(intake, wanted)
                    if not intake.buffer and (timeout_s == 0 or self._is_long_quiet(intake)):
                        looked = True
                        await self._listen(intake)
                except GroundplaneError:
                    if intake.alive:
                        raise
                    continue  # the channel broke; it is opened again
                if intake.buffer:
                    continue
            left_s = None if deadline is None else deadline - self._loop.time()
            if left_s is not None and left_s <= 0 and (looked or timeout_s != 0 or wanted <= 0):
                return []
            if timeout_s == 0 and intake is None:
                return []
            pause_s = pause_s if left_s is None else min(pause_s, max(left_s, 0.0))
            await self._wait(pause_s)

    async def _given_back(self, deadline: float | None) -> bool:
        """Until what nobody asked for is in the queue again, before what follows it; False when that takes long."""
        until = max(deadline or 0.0, self._loop.time() + _GIVEN_BACK_S)
        while self._giving_back:
            left_s = until - self._loop.time()
            if left_s <= 0 and deadline is not None:
                return False
            self._check_open()
            self._changed.clear()
            await self._wait(max(left_s, _GIVEN_BACK_S))
        return True

    async def _wait(self, seconds: float) -> None:
        """Until something changes, or that time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _is_long_quiet(self, intake: Intake) -> bool:
        return self._loop.time() - max(intake.last_at, intake.listened_at) >= _DEAF_S

    async def _listen(self, intake: Intake) -> None:
        """Look what the queue has. One that has messages for a consumer with room that hears none, time after time, is
        consumed anew.
        """
        long_quiet = self._is_long_quiet(intake)
        state = await intake.barrier()
        if not long_quiet:
            return
        intake.listened_at = self._loop.time()
        intake.deaf = intake.deaf + 1 if state.ready and not intake.buffer and intake.free > 0 else 0
        if intake.deaf >= _DEAF_LOOKS:
            intake.end(Unavailable("queues: the consumer heard nothing; it is opened again"))

    async def _want(self, intake: Intake, wanted: int) -> None:
        if intake.free > 0:
            return
        now = self._loop.time()
        often = len(self._adjusted) == _ADJUSTMENTS_MAX and now - self._adjusted[0] < _RATE_S
        self._adjusted.append(now)
        await intake.want(wanted + (len(self._held) if often else 0))

    async def _hand_out(self, intake: Intake, wanted: int) -> list[Delivery]:
        while intake.run_is_open():
            await self._wait(RUN_QUIET_S)
            self._changed.clear()
        while True:
            intake.sort_run()
            chosen = list(itertools.islice(intake.buffer, wanted))
            if not any(one.delivered.redelivered and not one.attempt for one in chosen):
                break
            await self._resolve(intake)  # others may have come meanwhile
        if self._intake is not intake or not intake.channel.is_open:
            return []
        attempts_max = self._parts.registry.spec(self._queue).attempts_max
        for one in chosen:
            _ = one.note  # raises for one that cannot be read, before any is taken
        deliveries: list[Delivery] = []
        worn: list[Taken] = []
        for one in chosen:
            intake.buffer.popleft()
            if not one.attempt:
                one.attempt = one.note.attempt
            if one.attempt > attempts_max:
                worn.append(one)
            else:
                deliveries.append(self._held.hand_out(one))
        if chosen:
            self._follow(intake, chosen)
        if worn:
            self._spawn(self._held.bury(worn))
        return deliveries

    async def _resolve(self, intake: Intake) -> None:
        """Find out at which attempt returned messages are."""
        returned = [one for one in intake.buffer if one.delivered.redelivered and not one.attempt]
        if any(one.count for one in returned):
            await self._parts.returns.read()
        for one in returned:
            note = one.note
            one.attempt, one.seen = self._parts.returns.attempt(note.copy, note.attempt, one.count)

    def _follow(self, intake: Intake, chosen: Sequence[Taken]) -> None:
        newest = chosen[-1].note
        if newest.copy > intake.last_copy:
            intake.last_copy = newest.copy
        intake.handed_at = self._loop.time()
        intake.last_wait_ms = max(0, self._parts.clock.now_ms() - newest.since)

    # -- what lies unasked for -----------------------------------------------------------------------------------------

    def _woken(self) -> None:
        self._changed.set()
        if not self._receiving:
            self._watch_idle()

    def _watch_idle(self) -> None:
        if self._idle_check is None and self._intake is not None and self._intake.buffer and self._closing is None:
            self._idle_check = self._loop.call_later(IDLE_S, self._check_idle)

    def _check_idle(self) -> None:
        self._idle_check = None
        intake = self._intake
        if intake is None or not intake.buffer or self._closing is not None:
            return
        if self._receiving or self._loop.time() - self._received_at < IDLE_S:
            self._watch_idle()
        else:
            self._spawn(self._give_back_buffer(intake))

    async def _give_back_buffer(self, intake: Intake) -> None:
        with suppress(GroundplaneError):  # the channel broke: they are back already
            await intake.pause()
            if self._receiving or self._closing is not None:
                return
            self._giving_back, taken = True, intake.take_buffer()
            try:
                await self._give_back(intake, taken)
            except BaseException:
                if intake.alive:  # nobody else can have them until they are given back: next time
                    intake.buffer.extendleft(reversed(taken))
                raise
            finally:
                self._giving_back = False
                self._woken()

    async def _give_back(self, intake: Intake, taken: Sequence[Taken]) -> None:
        """Return them in their order, at no cost."""
        session = self._parts.link.session
        if not taken or session is None:
            return
        unreadable = [one for one in taken if not one.since]
        ordered = sorted((one for one in taken if one.since), key=lambda one: one.note.copy)
        if any(one.delivered.redelivered and not one.attempt for one in ordered):
            await self._parts.returns.read()
        back = []
        for one in ordered:
            note, count = one.note, one.count
            if not one.attempt:
                one.attempt, one.seen = self._parts.returns.attempt(note.copy, note.attempt, count)
            back.append((note.copy, one.attempt, count, not one.seen and not one.shown))
        await self._parts.returns.record(session, back)
        intake.requeue([*unreadable, *ordered])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"groundplane-consumer-{self._queue}-background")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- the channel ---------------------------------------------------------------------------------------------------

    def share(self) -> Share:
        """What this consumer has, for those who ask for the depth."""
        intake = self._intake
        buffer = intake.buffer if intake is not None else ()
        fresh = intake is not None and intake.handed_at and self._loop.time() - intake.handed_at < _FRESH_S
        return Share(
            who=self._who,
            ready=len(buffer),
            in_flight=self._held.in_flight,
            delayed=self._delays.held if self._delays is not None else 0,
            oldest=min((since for one in buffer if (since := one.since)), default=0),
            waited_ms=intake.last_wait_ms if intake is not None and fresh else -1,
            last_copy=intake.last_copy if intake is not None else b"",
        )

    async def _attach(self, session: Session) -> None:
        names, queue = self._parts.names, self._queue
        if await session.state(names.ready(queue)) is None:
            raise missing(queue)
        await self._parts.registry.fresh()
        channel = await session.consuming.channel()
        intake = Intake(channel, names.ready(queue), self._woken)
        channel.on_closed(lambda error: self._detached(intake))
        try:
            await asking.answer_on(session, channel, names, names.ready(queue), self.share)
            delays = Delays(
                intake,
                source=names.delayed(queue),
                exchange=names.exchange,
                target=names.ready(queue),
                publish=lambda copies: self._parts.sender.send_again(queue, copies),
                clock=self._parts.clock,
            )
            await delays.start()
        except BaseException as error:
            await channel.aclose()
            if isinstance(error, NotFound):
                check_is_missing(error)
            raise
        self._intake, self._delays, self._failure = intake, delays, None
        self._changed.set()

    def _detached(self, intake: Intake) -> None:
        """The channel is gone, and with it everything that was held on it."""
        if self._intake is not intake:
            return
        self._intake = None
        if self._delays is not None:
            self._delays.end()
            self._delays = None
        self._held.lose(intake)
        self._changed.set()

    async def _keep(self) -> None:
        """Attach again whenever the channel was lost, for as long as this is open."""
        while True:
            intake = self._intake
            if intake is not None and intake.alive:
                await self._parts_lost(intake)
            if intake is not None and intake.channel.is_open:
                with suppress(GroundplaneError):
                    await intake.channel.aclose()
            if intake is not None:
                self._detached(intake)
            try:
                await self._attach(await self._parts.link.ready())
            except NotFound as error:
                with suppress(Unavailable):
                    check_is_missing(error)
                    self._failure = error
                    self._changed.set()
                await asyncio.sleep(_AGAIN_S)
            except Closed:
                return
            except GroundplaneError:
                await asyncio.sleep(_AGAIN_S)

    async def _parts_lost(self, intake: Intake) -> None:
        ended = asyncio.Event()
        intake.channel.on_closed(lambda error: ended.set())
        intake.on_end = ended.set
        if intake.alive:
            await ended.wait()

    # -- closing -------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        self._changed.set()
        if self._idle_check is not None:
            self._idle_check.cancel()
        began = self._loop.time()
        until = began + _CLOSE_S
        with suppress(TimeoutError):  # what is still being settled keeps its outcome
            async with asyncio.timeout_at(began + _CLOSE_S / 2):
                await self._held.settled()
        if self._background:
            await asyncio.wait(self._background, timeout=until - _CLOSE_S / 4 - self._loop.time())
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        intake = self._intake
        if intake is not None and intake.alive:
            with suppress(GroundplaneError, TimeoutError):  # the broker gives back what is not handed back
                async with asyncio.timeout_at(until):
                    await self._hand_back(intake)
        if intake is not None:
            if self._delays is not None:
                self._delays.end()
            with suppress(GroundplaneError):
                await intake.channel.aclose()
        self._held.clear()
        for task in self._background:
            task.cancel()

    async def _hand_back(self, intake: Intake) -> None:
        """Everything goes back at no cost, and is seen in the queue when this returns."""
        await intake.pause()
        delays = self._delays
        if delays is not None:
            delayed, waiting = await delays.stop()
            await self._until_seen(lambda: delays.returned(delayed, waiting))
        back = [one for one in self._held.unsettled() if one.intake is intake] + intake.take_buffer()
        if not back:
            return
        before, own = await intake.barrier(), intake.tags_held()
        self._held.clear()
        await self._give_back(intake, back)

        async def seen() -> bool:
            state = await intake.barrier()
            return before.consumers > own or state.ready >= before.ready + len(back)

        await self._until_seen(seen)

    async def _until_seen(self, seen: Callable[[], Awaitable[bool]]) -> None:
        until = self._loop.time() + _VISIBLE_S
        while not await seen() and self._loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.002)  # the broker tells nobody

    def _check_open(self) -> None:
        if self._closing is not None:
            raise Closed(f"consumer: the consumer of {self._queue!r} is closed; open another")


def _conforms(consumer: RabbitConsumer) -> QueueConsumer:
    return consumer
