"""The dead letters of a namespace."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from groundplane.core.clock import Clock
from groundplane.core.dead_letters import DeadLetter, DeadLetterPage, DeadLetterSource
from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.queues.drivers.rabbitmq import messages
from groundplane.queues.drivers.rabbitmq.desk import LINGER_S, Desk, Letter
from groundplane.queues.drivers.rabbitmq.link import Link
from groundplane.queues.drivers.rabbitmq.names import Names
from groundplane.queues.drivers.rabbitmq.registry import Registry
from groundplane.queues.drivers.rabbitmq.sending import Sender, missing

_KEY = re.compile(r"[0-9a-f]{32}")
_OPEN_S = 600.0
"""How long a desk stays open in one piece: the broker ends who holds a message for longer than 30 minutes."""


class RabbitDeadLetters:
    """See `DeadLetterSource`. An id is `<key>.<queue>`; keys grow with the time of death."""

    def __init__(self, link: Link, names: Names, registry: Registry, sender: Sender, clock: Clock) -> None:
        self._link = link
        self._names = names
        self._registry = registry
        self._sender = sender
        self._clock = clock
        self._desks: dict[str, _Lent] = {}

    async def list_dead(
        self, queue: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> DeadLetterPage:
        """See `DeadLetterSource.list_dead`. Reads all letters of the queues, and shows a page."""
        if cursor is not None and not _KEY.fullmatch(cursor):
            raise InvalidArgument(f"cursor: {cursor!r} is not of an earlier page; begin without one")
        await self._registry.fresh()
        found: list[DeadLetter] = []
        more = False
        for name in [queue] if queue is not None else [spec.name for spec in self._registry.all()]:
            if not await self._has_some(name, required=queue is not None):
                continue
            async with self._desk(name) as desk:
                keys = sorted(key for key in desk.letters if cursor is None or key > cursor)
                more = more or len(keys) > limit
                found += [await _letter(desk, name, desk.letters[key]) for key in keys[:limit]]
        found.sort(key=lambda letter: letter.id)
        more = more or len(found) > limit
        found = found[:limit]
        return DeadLetterPage(items=found, cursor=found[-1].id[:32] if more else None)

    async def get_dead(self, dead_id: str) -> DeadLetter:
        """See `DeadLetterSource.get_dead`."""
        key, queue = self._parse(dead_id)
        async with self._desk(queue, dead_id) as desk:
            if key not in desk.letters:
                raise _gone(dead_id)
            return await _letter(desk, queue, desk.letters[key])

    async def redrive(self, dead_id: str, *, payload: bytes | None = None) -> None:
        """See `DeadLetterSource.redrive`. Published, confirmed, then taken away: a crash between doubles it."""
        key, queue = self._parse(dead_id)
        async with self._desk(queue, dead_id) as desk:
            if key not in desk.letters:
                raise _gone(dead_id)
            body = await desk.body(desk.letters[key]) if payload is None else payload
            note = desk.letters[key].note
            again = messages.again(
                note,
                now_ms=self._clock.now_ms(),
                attempt=1,
                redrives=note.redrives + 1,
                repeat=False,
                error=None,
                death=None,
            )
            copy = messages.encode(self._names.exchange, self._names.ready(queue), again, body)
            await self._sender.send_again(queue, [copy], bounded=True)
            desk.remove(key)

    async def purge(self, dead_ids: list[str]) -> int:
        """See `DeadLetterSource.purge`."""
        by_queue: dict[str, set[str]] = {}
        for dead_id in dead_ids:
            key, dot, queue = dead_id.partition(".")
            if dot and _KEY.fullmatch(key):
                by_queue.setdefault(queue, set()).add(key)
        purged = 0
        for queue, keys in by_queue.items():
            if not await self._has_some(queue, required=False):
                continue
            async with self._desk(queue) as desk:
                for key in keys & desk.letters.keys():
                    desk.remove(key)
                    purged += 1
        return purged

    @asynccontextmanager
    async def still(self, queue: str) -> AsyncIterator[None]:
        """Within this block no desk of this process gives letters back: they are nowhere for a while then."""
        lent = self._desks.get(queue)
        if lent is None:
            yield
            return
        if lent.closing is not None:
            await asyncio.wait([lent.closing])
        lent.watched += 1
        try:
            yield
        finally:
            lent.watched -= 1

    async def aclose(self) -> None:
        """Give back what lies on desks."""
        await asyncio.gather(*(lent.aclose() for lent in self._desks.values()))

    def _parse(self, dead_id: str) -> tuple[str, str]:
        key, dot, queue = dead_id.partition(".")
        if not dot or not _KEY.fullmatch(key):
            raise _gone(dead_id)
        return key, queue

    async def _has_some(self, queue: str, *, required: bool) -> bool:
        session = await self._link.ready()
        state = await session.state(self._names.dead(queue))
        if state is None and required:
            raise missing(queue)
        return state is not None and (state.ready > 0 or state.consumers > 0)

    @asynccontextmanager
    async def _desk(self, queue: str, dead_id: str | None = None) -> AsyncIterator[Desk]:
        session = await self._link.ready()
        if dead_id is not None and await session.state(self._names.dead(queue)) is None:
            raise _gone(dead_id)
        lent = self._desks.get(queue)
        if lent is None:
            lent = self._desks[queue] = _Lent(self._link, self._names, self._names.dead(queue))
        async with lent.lock:
            try:
                yield await lent.desk()
            finally:
                lent.linger()


class _Lent:
    """The desk of one queue in this process: one caller at a time, kept open between calls that follow each other."""

    def __init__(self, link: Link, names: Names, broker_queue: str) -> None:
        self.lock = asyncio.Lock()
        self.closing: asyncio.Task[None] | None = None
        self.watched = 0
        self._link = link
        self._names = names
        self._queue = broker_queue
        self._desk: Desk | None = None
        self._opened_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def desk(self) -> Desk:
        """Open, with every letter that is there."""
        if self._timer is not None:
            self._timer.cancel()
        if self.closing is not None:
            await asyncio.wait([self.closing])
        session, now = await self._link.ready(), asyncio.get_running_loop().time()
        desk = self._desk
        if desk is not None and (not desk.is_open or desk.session is not session or now - self._opened_at > _OPEN_S):
            self._desk = None
            await desk.aclose()
        if self._desk is None:
            self._desk = await Desk.open(session, self._names, self._queue)
            self._opened_at = now
        else:
            await self._desk.read()
        return self._desk

    def linger(self) -> None:
        """Close after a while without another call."""
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._close_unless_used)

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.closing is not None:
            await asyncio.wait([self.closing])
        if self._desk is not None:
            desk, self._desk = self._desk, None
            await desk.aclose()

    def _close_unless_used(self) -> None:
        if self.watched:
            self.linger()
        elif not self.lock.locked() and self._desk is not None:
            desk, self._desk = self._desk, None
            self.closing = asyncio.create_task(desk.aclose(), name="groundplane-rabbitmq-desk-close")
            self.closing.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self.closing = None


def _gone(dead_id: str) -> NotFound:
    return NotFound(
        f"dead_id: {dead_id!r} is no dead letter, or was redriven or purged; list the dead letters",
        details={"dead_id": dead_id},
    )


async def _letter(desk: Desk, queue: str, letter: Letter) -> DeadLetter:
    note, death = letter.note, letter.note.death
    return DeadLetter(
        id=f"{letter.key}.{queue}",
        queue=queue,
        message_id=note.id,
        payload=await desk.body(letter),
        headers=note.headers,
        reason=death.reason if death is not None else "unknown",
        error=note.error,
        attempts=death.attempts if death is not None else note.attempt,
        redrives=note.redrives,
        enqueued_at=note.enqueued_at,
        died_at=death.died_at if death is not None else note.since,
        trace=note.headers.get("traceparent", ""),
    )


def _conforms(source: RabbitDeadLetters) -> DeadLetterSource:
    return source
