"""Writes with conditions: prepared, stored, and when one was refused, told why, or prepared anew.

A condition names the sequence of the last message of its subject, and that may be a removal: so a refusal says only
that something else is there, and the keys are read again. A write whose answer was lost is recognized by its id in the
message that it stored.

In a cluster both the leader of a stream and one that was deposed while it stood still, and does not know yet, take and
answer the same message. So a refusal counts only if it met a later message than the condition names: who has that one
would have known the id of this write, had it been done (a replicated stream asks for ids first). After any other the
same message is sent again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from groundplane.backends.nats import JetStream, Stored, sequence_met
from groundplane.core.errors import Conflict, GroundplaneError, InvalidArgument, Unavailable
from groundplane.kv.drivers.nats.fencing import Fences
from groundplane.kv.drivers.nats.messages import Names, Outgoing, condition, id_of, is_final, is_removal, outgoing
from groundplane.kv.drivers.nats.storing import Doubt, Storing
from groundplane.kv.port import Write, WriteKind, WriteOptions
from groundplane.kv.refusals import outcome_unknown, refused

TRIES = 20
DOUBTS_MAX = 10_000
VALUES_MAX = 10_000
BATCH_REPEATED = 10201

Last = dict[str, Stored]


class Writing:
    """The writes of one bucket."""

    def __init__(self, jetstream: JetStream, names: Names, *, deep: bool) -> None:
        self._jetstream = jetstream
        self._names = names
        self._deep = deep
        self._storing = Storing(jetstream)
        self._fences = Fences(jetstream, names, self._storing)
        self._doubts: dict[str, None] = {}
        self._values: set[int] = set()

    async def write(self, writes: Sequence[Write], options: WriteOptions) -> list[int]:
        """See the port."""
        doubted = options.repeated and options.id in self._doubts
        blind = not doubted and all(self._is_plain(write) for write in writes)
        now = last = None if blind else await self.last_of(writes)
        for tried in range(TRIES):
            if now is not None and (doubted or tried):
                done = self._done(writes, options, now)
                if done is not None:
                    return done
            if last is not None:
                self._check(writes, last, doubted=doubted)
            try:
                return await self._attempt(writes, options, last)
            except Conflict as error:
                if error.reason != "wrong_sequence":
                    raise
                refusal = error
            except InvalidArgument as error:
                if error.details.get("err_code") != BATCH_REPEATED:
                    raise
                return self._repeated(writes, options, await self.last_of(writes))
            except Doubt:
                self._doubt(options.id)
                raise
            if self._jetstream.clustered:
                self._doubt(options.id)
            if options.fence is not None:
                self._fences.forget(options.fence)
            if tried:
                await asyncio.sleep((0.5 + random.random()) * 0.015 * tried)
            now = await self.last_of(writes)
            if self._counts(refusal, writes, last, now):
                self._doubts.pop(options.id, None)
                last = now
        self._check(writes, now or {}, doubted=doubted)
        raise Unavailable(
            f"kv: {writes[0].key!r} was changed by others in each of {TRIES} attempts; try again",
            reason="contended",
            details={"key": writes[0].key},
        )

    def _counts(self, refusal: Conflict, writes: Sequence[Write], before: Last | None, now: Last) -> bool:
        """Whether the leader that refused knows all that could have been stored of this write."""
        if not self._jetstream.clustered:
            return True
        met = sequence_met(refusal)
        return met is not None and any(
            met > condition(write, (before or {}).get(write.key))
            and (len(writes) == 1 or (write.key in now and now[write.key].seq == met))
            for write in writes
            if write.expected is not None
        )

    def live(self, revision: int) -> None:
        """That revision is of a value: an update that expects it needs not look whether it is of a removal."""
        if revision not in self._values:
            if len(self._values) >= VALUES_MAX:
                self._values.clear()
            self._values.add(revision)

    def _is_plain(self, write: Write) -> bool:
        """Whether the server's own check is all that it needs."""
        return write.kind is WriteKind.PUT and (not write.expected or write.expected in self._values)

    async def last_of(self, writes: Sequence[Write]) -> Last:
        """The last messages of the keys, removals too."""
        if len(writes) == 1:
            message = await self._jetstream.get_last(self._names.stream, self._names.subject(writes[0].key))
            return {} if message is None else {writes[0].key: message}
        subjects = {self._names.subject(write.key): write.key for write in writes}
        found = await self._jetstream.get_last_many(self._names.stream, list(subjects))
        return {subjects[message.subject]: message for message in found}

    async def _attempt(self, writes: Sequence[Write], options: WriteOptions, last: Last | None) -> list[int]:
        """Store what changes anything. Revisions of all, 0 for what does not."""
        chosen = [at for at, write in enumerate(writes) if last is None or self._changes(write, last.get(write.key))]
        messages = [
            outgoing(
                self._names,
                writes[at],
                self._name(options, at, writes),
                deep=self._deep,
                last=None if last is None else last.get(writes[at].key),
            )
            for at in chosen
        ]
        messages = await self._tied(messages, options)
        stored = await self._storing.store(messages) if messages else []
        self._doubts.pop(options.id, None)
        revisions = [0] * len(writes)
        for at, seq in zip(chosen, stored, strict=False):
            revisions[at] = seq
            if writes[at].kind is WriteKind.PUT:
                self.live(seq)
        return revisions

    async def _tied(self, messages: list[Outgoing], options: WriteOptions) -> list[Outgoing]:
        if options.fence is None:
            return messages
        if not messages:  # nothing is written, but an old term is refused all the same
            self._fences.forget(options.fence)
        seq = await self._fences.pass_through(options.fence)
        return self._fences.tie(options.fence, seq, messages) if messages else messages

    def _changes(self, write: Write, last: Stored | None) -> bool:
        if write.kind is WriteKind.PUT:
            return True
        if last is None:
            return False
        return not is_removal(last) or (write.kind is WriteKind.PURGE and self._deep and not is_final(last))

    def _check(self, writes: Sequence[Write], last: Last, *, doubted: bool) -> None:
        """Raise for the first condition that does not hold."""
        for write in writes:
            message = last.get(write.key)
            live = message.seq if message is not None and not is_removal(message) else 0
            refusal: GroundplaneError | None = refused(write, live)
            if refusal is not None:
                raise outcome_unknown(write.key) if doubted else refusal

    def _done(self, writes: Sequence[Write], options: WriteOptions, last: Last) -> list[int] | None:
        """The revisions of a call that was done before its answer was lost; None where that cannot be seen."""
        names = {self._name(options, at, writes): at for at in range(len(writes))}
        found = {names[id_of(message)]: message.seq for message in last.values() if id_of(message) in names}
        if not found:
            return None
        if all(write.kind is WriteKind.PUT for write in writes):  # stored one behind the other
            at, seq = next(iter(found.items()))
            return [seq - at + one for one in range(len(writes))]
        return [found.get(at, 0) for at in range(len(writes))]

    def _repeated(self, writes: Sequence[Write], options: WriteOptions, last: Last) -> list[int]:
        """The server has this batch already."""
        done = self._done(writes, options, last)
        if done is None:
            raise outcome_unknown(writes[0].key)
        return done

    def _name(self, options: WriteOptions, at: int, writes: Sequence[Write]) -> str:
        return options.id if len(writes) == 1 else f"{options.id}.{at}"

    def _doubt(self, name: str) -> None:
        while len(self._doubts) >= DOUBTS_MAX:
            del self._doubts[next(iter(self._doubts))]
        self._doubts[name] = None
