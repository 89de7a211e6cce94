"""Handling in an actor that joins: children are kept until their siblings are there, or the time is over."""

from __future__ import annotations

import asyncio
import weakref

from groundplane.core import failpoints
from groundplane.core.envelope import Envelope
from groundplane.mesh.joins import Gathered, is_join, is_timer, joined, key_of, pack, report, timer, unpack
from groundplane.mesh.ledger.port import JoinKey, Ledger
from groundplane.mesh.repeats import marked
from groundplane.mesh.routing import COMPLETED, note
from groundplane.mesh.sidecar.handling import Handling, Parts
from groundplane.mesh.sidecar.outgoing import message_of
from groundplane.mesh.sidecar.work import Work, token_of
from groundplane.queues.port import Ack, Delivery, OutgoingMessage
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces


class FanIn:
    """Wraps `Handling`. What is no child of a fan-out is handled as everywhere."""

    def __init__(self, parts: Parts, handling: Handling) -> None:
        self._p = parts
        self._handling = handling
        self._locks: weakref.WeakValueDictionary[JoinKey, asyncio.Lock] = weakref.WeakValueDictionary()

    async def handle(self, delivery: Delivery) -> None:
        """See `Handling.handle`."""
        envelope = await self._handling.opened(delivery)
        if envelope is not None:
            await self.handle_envelope(delivery, envelope)

    async def handle_envelope(self, delivery: Delivery, envelope: Envelope) -> None:
        """Handle what was opened."""
        if not is_join(self._p.router.spec, envelope) or self._p.ledger is None:
            await self._handling.run(self._handling.work_of(delivery, envelope))
            return
        key = key_of(self._p.router.spec, envelope)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            step = self._timer if is_timer(envelope) else self._child
            await self._handling.guarded(delivery, lambda: step(delivery, envelope, key))

    async def _child(self, delivery: Delivery, envelope: Envelope, key: JoinKey) -> None:
        """A child arrived: durable first; the one that completes the join carries the call."""
        work = self._handling.work_of(delivery, envelope)
        if not await self._handling.admitted(work):
            return
        envelope = work.envelope
        refused = self._p.router.refuse(envelope, attempt=delivery.attempt, now_ms=self._p.clock.now_ms())
        if refused is not None:
            await self._handling.finish(work, refused)
            return
        branch = envelope.branches[-1]
        ledger = self._ledger()
        state = await ledger.join_add(key, branch.index, branch.total, pack(envelope))
        failpoints.hit("joined")
        if state.released:
            await self._late(work)
        elif state.arrived < state.total:
            traces.current().event(names.CHILD, {names.JOINED: state.arrived, names.CHILDREN: state.total})
            work.telling.post(self._p.router.progress(envelope, COMPLETED, "completed", attempt=delivery.attempt))
            await self._handling.settle(work, Ack(delivery), self._timers(work, state.arrived == 1))
        else:
            await self._call(work, key, state.total)

    def _timers(self, work: Work, first: bool) -> list[OutgoingMessage]:
        """The timer that this child sends. Queues that drop repeats keep one of all of them; where they do not, the
        first child sends it, and whoever cannot know that it is not the first.
        """
        staged = self._p.staged is not None
        if staged and not first and not work.doubtful:
            return []
        send = timer(self._p.router.spec, work.envelope)
        messages = [message_of(send, send.envelope, send.envelope.to_bytes())]
        return marked(messages) if staged else messages

    async def _timer(self, delivery: Delivery, envelope: Envelope, key: JoinKey) -> None:
        """The time is over: what is there is handled, unless everything is, or it was handled already."""
        work = self._handling.work_of(delivery, envelope)
        total = envelope.branches[-1].total
        items = await self._ledger().join_items(key)
        if not items or len(items) >= total:
            await self._handling.settle(work, Ack(delivery))
            return
        if await self._handling.admitted(work):
            await self._call(work, key, total)

    async def _call(self, work: Work, key: JoinKey, total: int) -> None:
        gathered = Gathered(joined(work.envelope), await self._ledger().join_items(key), total)
        _told_of(gathered)
        if self._p.reporter is not None:
            changes = [*work.telling.take(), *report(work.envelope, gathered.envelope)]
            await self._p.reporter.apply(changes, token_of(work.envelope))
        done = await self._handling.run(
            Work(
                delivery=work.delivery,
                envelope=gathered.envelope,
                payload=await self._payloads(gathered),
                join=gathered.info(),
                resolve=False,
                claims=gathered.claims(),
                attempt=work.attempt,
                telling=work.telling,
                key=work.key,
                doubtful=work.doubtful,
            )
        )
        if done:
            await self._ledger().join_release(key)

    async def _payloads(self, gathered: Gathered) -> list[object]:
        """The children's payloads in order, those that are missing left out."""
        found: list[object] = []
        for _, data in sorted(gathered.items.items()):
            claim, payload = unpack(data)
            if claim is not None and self._p.claims is not None:
                payload = await self._p.claims.resolve(claim)
            found.append(payload)
        return found

    async def _late(self, work: Work) -> None:
        """The join was released before: recorded, and gone."""
        branch = work.envelope.branches[-1]
        data = {"actor": self._p.router.spec.name, "index": branch.index, "parent_id": branch.parent_id}
        work.telling.post(note(work.envelope, "late_child", data))
        await self._handling.settle(work, Ack(work.delivery))
        await self._handling.release_claims(work)

    def _ledger(self) -> Ledger:
        assert self._p.ledger is not None
        return self._p.ledger


def _told_of(gathered: Gathered) -> None:
    """The current span handles all children: it is linked with what sent each."""
    span = traces.current()
    if span.recording:
        span.set({names.CHILDREN: gathered.total, names.MISSING: len(gathered.missing) or None})
        for context in gathered.traces():
            span.link(context)


__all__ = ["FanIn"]
