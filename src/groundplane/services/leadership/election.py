"""Who leads: the decisions of one member, without input or output, over any store with compare-and-set.

The store holds one record under one key. Whoever writes it holds the lease; the revision of the write that began a term
is the term. The shell (`leadership.py`, or a simulation) asks `step` what to do, does it, and tells what came of it.

Why no two members are active at once
-------------------------------------
Fault model: members crash, are paused for any length at any instruction, messages are lost, doubled, delayed for any
length; reads may be stale. Each member has a monotonic clock whose rate is within 1 % of true time, and which goes on
while the member is paused. The store's writes are atomic: `update(revision=r)` succeeds only while `r` is the newest
revision. Nobody else writes or deletes the key.

Let A be active by the record of revision `r`, and B the next to get a term, by an update of `r` or of a later one.

1. A is active only while its own clock shows less than `sent + stop_s`, where `sent` was read *before* the write that
   became `r` left A. An answer that comes late, or is found by reading, counts from that same moment (`_sent`, by the
   number of the attempt that the record carries), so nothing that happens to an answer makes the lease longer.
2. B writes over a record of somebody else only after `lease_s` (as the record says) by its own clock since *it* first
   saw that revision: that is after `r` was written, which is after A read `sent`.
3. Were a later revision than the one that B saw in the store, B's update would fail. So when B succeeds, A's last
   successful write is the one that B saw, and no earlier write of A reaches further (1).
4. In true time A stops at most `stop_s / 0.99` after `sent`, B starts at least `lease_s / 1.01` after it, and
   `stop_s <= lease_s * 0.99 / 1.01` (`Policy` refuses anything else). So A has stopped before B starts.
5. B does not wait where the record is released, which A writes after it has stopped, or where it is B's own and B is
   not active: nobody else acts by a record of B. A key that was never there is taken at once; one that has vanished is
   waited for like a silent leader.

Instances are told apart by an `incarnation`, new with each start, not by their names.

What this cannot promise: that an effect of A which was under way when A was paused is not *applied* after B has
started. No clock can; the term does: stores that take a `Fence` refuse a term older than the newest they have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from groundplane.services.leadership.policies import LEASE_S_MAX, LEASE_S_MIN, Policy

_REMEMBERED_MAX = 64
"""Attempts whose moment of sending is kept; the answer to an older one brings no lease."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the key holds, as JSON. `term` is absent in the record that begins a term: its revision is the term.
    `since_ms`, Unix milliseconds by the leader's clock, is for people to read: nothing is decided by it.
    """

    schema: int = 1
    member: str
    incarnation: str
    attempt: int
    lease_ms: int
    term: int | None = None
    released: bool = False
    since_ms: int | None = None


EventKind: TypeAlias = Literal["LeaderElected", "LeaderLost", "ElectionStarted", "ElectionFailed"]


class ElectionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, as this member sees it. `leader` is who was elected or lost (empty for an election that is not
    decided), `term` theirs; `reason` of a loss: `released`, `expired`, `lease_ended`, `taken` or `missing`; of a failed
    election: `refused` or `no_answer`.
    """

    kind: EventKind
    member: str
    leader: str = ""
    term: int | None = None
    reason: str = ""


class Leader(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads by what this member knows, and since which revision."""

    member: str
    term: int
    is_self: bool


class Read(msgspec.Struct, frozen=True):
    """Read the key, then call `saw(…, read=True)` or `unreachable`."""


class Write(msgspec.Struct, frozen=True):
    """Write the record over this revision (None: create it), then call `written`, `refused` or `unanswered`."""

    expected: int | None
    record: Record


class Wait(msgspec.Struct, frozen=True):
    """Do nothing until this moment of the member's clock, or until something was seen."""

    until: float


Step: TypeAlias = Read | Write | Wait

_decode = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.Encoder().encode


def encoded(record: Record) -> bytes:
    """The record at rest."""
    return _encode(record)


def decoded(value: bytes) -> Record | None:
    """The record of a value, or None where it is none: such a holder is waited for like a silent one."""
    try:
        record = _decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return record if LEASE_S_MIN <= record.lease_ms / 1000 <= LEASE_S_MAX else None


class Election:
    """One member of one election. Not thread-safe; `clock` tells monotonic seconds, `notify` gets what happens."""

    def __init__(
        self,
        member: str,
        incarnation: str,
        policy: Policy,
        clock: Callable[[], float],
        notify: Callable[[ElectionEvent], None] = lambda event: None,
    ) -> None:
        self.member = member
        self.policy = policy
        self._incarnation = incarnation
        self._clock = clock
        self._notify = notify
        # the record as last seen, and since when by the own clock
        self._known = self._ever = False
        self._revision: int | None = None
        self._record: Record | None = None
        self._seen_at = 0.0
        # the own lease
        self._term: int | None = None
        self._until = self._renew_at = 0.0
        # attempts without an answer that was understood
        self._attempt = 0
        self._sent: dict[int, float] = {}
        self._must_read = True
        self._outrun = False
        self._refusals = 0
        self._pause_until = self._rest_until = 0.0
        # what was told
        self._campaign: tuple[int | None] | None = None
        self._told: tuple[str, int] | None = None

    @property
    def is_active(self) -> bool:
        """Whether this member may act now, by its own clock."""
        return self._term is not None and self._lease_runs()

    @property
    def term(self) -> int | None:
        """The present term, or None where this member is not active."""
        return self._term if self.is_active else None

    @property
    def until(self) -> float:
        """When the present lease ends by the own clock, unless it is renewed."""
        return self._until

    @property
    def in_doubt(self) -> bool:
        """Whether a write of this member has no answer, so that the record may have become its own."""
        return bool(self._sent)

    def leader(self) -> Leader | None:
        """Who leads by what is known here, or None where nobody does or nothing is known."""
        if self._term is not None:
            return Leader(member=self.member, term=self._term, is_self=True) if self.is_active else None
        record, revision = self._record, self._revision
        if record is None or revision is None or self._clock() >= self._free_at():
            return None
        return Leader(member=record.member, term=record.term or revision, is_self=False)

    def lapse(self) -> None:
        """Note that the lease has ended, where it has: `is_active` is false from that moment on in any case."""
        if self._term is not None and not self._lease_runs():
            self._lose("lease_ended")

    def step(self) -> Step:
        """What is to be done now. Call it again after whatever happened since."""
        now = self._clock()
        self.lapse()
        if now < self._pause_until:
            return Wait(min(self._pause_until, self._until) if self._term is not None else self._pause_until)
        if self._must_read or not self._known:
            self._outrun = False
            return Read()
        if self._term is not None:
            return self._renewal(self._term) if now >= self._renew_at else Wait(min(self._renew_at, self._until))
        free_at = max(self._free_at(), self._rest_until)
        if now < free_at:
            return Wait(free_at)
        return self._candidacy()

    def sent(self, write: Write) -> None:
        """Call it right before the write leaves: its lease, if it gets one, counts from here."""
        self._sent[write.record.attempt] = self._clock()
        while len(self._sent) > _REMEMBERED_MAX:
            del self._sent[next(iter(self._sent))]

    def written(self, write: Write, revision: int) -> None:
        """The write succeeded. What was seen meanwhile may be later."""
        if self._revision is None or revision > self._revision:
            self._take(revision, write.record)

    def refused(self, write: Write) -> None:
        """The store has another revision: read, unless it was seen meanwhile."""
        self._refusals += 1
        self._must_read = True
        if self._refusals > 1:  # a reader that lags behind gives time to catch up
            self._pause()
        self._failed(write, "refused")

    def unanswered(self, write: Write) -> None:
        """No answer, or one that says nothing: the write may have happened, and may still happen."""
        self._pause()
        self._failed(write, "no_answer")

    def unreachable(self) -> None:
        """The key could not be read."""
        self._pause()

    def saw(self, revision: int | None, record: Record | None, *, read: bool = False) -> None:
        """What the store has, or had a moment ago: None, None where the key is missing. `read` is the answer to `Read`,
        else it was watched. An answer that something else was watched during may be older than that: `step` asks again.
        """
        if read and self._outrun and revision != self._revision:
            return
        self._outrun = not read
        self._must_read = self._must_read and not read
        if self._term is not None:
            self._saw_leading(revision, record, read=read)
        elif not self._known or (revision != self._revision and (read or _is_later(revision, self._revision))):
            self._follow(revision, record)

    def rest(self, seconds: float) -> None:
        """Be no candidate for so long."""
        self._rest_until = self._clock() + seconds

    def release(self) -> Write | None:
        """Stop being active, at once. The write that tells the others, once nothing acts any more; None where the
        record is not this member's.
        """
        if self._term is not None:
            self._lose("released")
        record = self._record
        if record is None or not self._is_own(record) or record.released:
            return None
        return Write(self._revision, self._new_record(released=True))

    def _lease_runs(self) -> bool:
        return self._clock() < self._until

    def _is_own(self, record: Record) -> bool:
        return record.incarnation == self._incarnation

    def _free_at(self) -> float:
        """From when on this member may write over what it saw."""
        record = self._record
        if record is not None and (record.released or self._is_own(record)):
            return 0.0
        if self._revision is None and not self._ever:
            return 0.0
        return self._seen_at + (record.lease_ms / 1000 if record is not None else self.policy.lease_s)

    def _renewal(self, term: int) -> Write:
        return Write(self._revision, self._new_record(term=term))

    def _candidacy(self) -> Write:
        record = self._record
        if self._told is not None:
            released = record is not None and record.released
            self._tell_lost("released" if released else "expired")
        if self._campaign != (self._revision,):
            self._campaign = (self._revision,)
            self._notify(ElectionEvent(kind="ElectionStarted", member=self.member))
        return Write(self._revision, self._new_record())

    def _new_record(self, *, term: int | None = None, released: bool = False) -> Record:
        self._attempt += 1
        return Record(
            member=self.member,
            incarnation=self._incarnation,
            attempt=self._attempt,
            lease_ms=round(self.policy.lease_s * 1000),
            term=term,
            released=released,
        )

    def _saw_leading(self, revision: int | None, record: Record | None, *, read: bool) -> None:
        if revision is None:
            if read:
                self._lose("missing")
                self._follow(None, None)
        elif self._revision is not None and revision <= self._revision:
            return  # an own write, seen late
        elif record is not None and self._is_own(record):
            self._take(revision, record)
        else:
            self._lose("taken")
            self._follow(revision, record)

    def _follow(self, revision: int | None, record: Record | None) -> None:
        if record is not None and self._is_own(record):
            self._take(revision or 0, record)
            return
        self._ever = self._ever or revision is not None
        self._remember(revision, record)
        if record is None or revision is None or record.released:
            self._tell_lost("released" if record is not None else "missing")
            return
        told = (record.member, record.term or revision)
        if told != self._told:
            self._tell_lost("expired")
            self._tell_elected(*told)

    def _take(self, revision: int, record: Record) -> None:
        """A record of this member is in the store: it carries a lease as far as its sending is remembered."""
        until = self._sent.get(record.attempt, float("-inf")) + self.policy.stop_s
        self._ever = True
        self._remember(revision, record)
        self._sent = {number: at for number, at in self._sent.items() if number > record.attempt}
        if self._term is None and record.term is None and not record.released and self._clock() < until:
            self._term, self._campaign = revision, None
            self._set_until(until)
            self._tell_elected(self.member, revision)
        elif self._term is not None and record.term == self._term:
            self._set_until(max(self._until, until))

    def _remember(self, revision: int | None, record: Record | None) -> None:
        self._known, self._refusals = True, 0
        self._revision, self._record, self._seen_at = revision, record, self._clock()

    def _set_until(self, until: float) -> None:
        self._until = until
        self._renew_at = until - self.policy.stop_s + self.policy.renew_s

    def _lose(self, reason: str) -> None:
        self._term = None
        self._must_read = True
        self._tell_lost(reason)

    def _pause(self) -> None:
        self._pause_until = self._clock() + self.policy.renew_s / 4

    def _failed(self, write: Write, reason: str) -> None:
        if self._campaign is not None and write.record.term is None and self._term is None:
            self._campaign = None
            self._notify(ElectionEvent(kind="ElectionFailed", member=self.member, reason=reason))

    def _tell_elected(self, leader: str, term: int) -> None:
        self._told = (leader, term)
        self._notify(ElectionEvent(kind="LeaderElected", member=self.member, leader=leader, term=term))

    def _tell_lost(self, reason: str) -> None:
        if self._told is not None:
            leader, term = self._told
            self._told = None
            self._notify(ElectionEvent(kind="LeaderLost", member=self.member, leader=leader, term=term, reason=reason))


def _is_later(revision: int | None, than: int | None) -> bool:
    return revision is None or than is None or revision > than
