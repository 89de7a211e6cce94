"""Checkers: a history of what was sent and done, and the promises that it must keep.

    history = History()
    history.sent("m-1")          # once `send` has returned
    history.done("m-1")          # once its effect is there
    history.check_nothing_lost()
    history.check_no_effect_twice()

`EventLog` does the same for the log of a store of jobs, `States` for states that were seen one by one,
`check_queues_empty` for the end of a run, `check_nothing_leaked` and `Memory` for what a process keeps. A checker
fails with the ids that break the promise, not with a count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from groundplane.testing.leaks import Snapshot, resident_bytes

_SHOWN = 10
_TERMINAL = frozenset({"succeeded", "failed", "cancelled", "timed_out"})


class BrokenPromise(AssertionError):
    """What a history says contradicts what was promised. `ids` are the witnesses."""

    def __init__(self, promise: str, ids: Sequence[str]) -> None:
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        super().__init__(f"{promise}: {', '.join(ids[:_SHOWN])}{more}")
        self.promise = promise
        self.ids = list(ids)


class History:
    """What happened, in the order in which it was noted.

    `sent` notes what was acknowledged to the sender, `maybe_sent` what was tried without an answer; `done` notes an
    effect, `ended` an ordered end other than an effect (a dead letter).
    """

    def __init__(self) -> None:
        self._sent: list[str] = []
        self._maybe: set[str] = set()
        self._done: list[str] = []
        self._ended: list[str] = []
        self._attempts: defaultdict[str, list[int]] = defaultdict(list)

    def sent(self, *ids: str) -> None:
        """The sender was told that these are durable."""
        self._sent += ids

    def maybe_sent(self, *ids: str) -> None:
        """The sender got no answer or an error: they may be there."""
        self._maybe.update(ids)

    def done(self, *ids: str) -> None:
        """These had their effect."""
        self._done += ids

    def ended(self, *ids: str) -> None:
        """These ended in the open without an effect."""
        self._ended += ids

    def attempt(self, message_id: str, attempt: int) -> None:
        """The message was handed out as this attempt."""
        self._attempts[message_id].append(attempt)

    def check_nothing_lost(self) -> None:
        """Everything acknowledged had its effect or ended in the open."""
        there = {*self._done, *self._ended}
        _raise("lost", (one for one in self._sent if one not in there))

    def check_nothing_invented(self) -> None:
        """Nothing happened that nobody sent."""
        known = {*self._sent, *self._maybe}
        _raise("never sent", (one for one in (*self._done, *self._ended) if one not in known))

    def check_no_effect_twice(self) -> None:
        """Each effect happened at most once."""
        _raise("done more than once", (one for one, count in Counter(self._done).items() if count > 1))

    def check_order(self, of: Callable[[str], object] | None = None) -> None:
        """Effects happened in the order of sending; with `of`, within each group that it puts ids into (a key, a
        partition, a session) and no further.
        """
        place = {one: n for n, one in enumerate(self._sent)}
        groups: defaultdict[object, list[str]] = defaultdict(list)
        for one in self._done:
            if one in place:
                groups[of(one) if of is not None else None].append(one)
        _raise("out of order", (b for group in groups.values() for a, b in pairwise(group) if place[b] < place[a]))

    def check_attempts_grow(self) -> None:
        """The attempts of each message are 1, 2, 3, … or repeats of one of them where it was handed back."""
        bad = (
            one
            for one, seen in self._attempts.items()
            if any(b - a not in (0, 1) for a, b in zip([1, *seen], seen, strict=False))
        )
        _raise("attempts jumped", bad)

    def check_attempts_never_fall(self) -> None:
        """The attempts of each message stay or rise; they may jump where an attempt ended before it was noted."""
        falls = (one for one, seen in self._attempts.items() if any(b < a for a, b in pairwise(seen)))
        _raise("attempts fell", falls)


class LoggedEvent(Protocol):
    """What `EventLog` needs to know of an event of a job."""

    @property
    def id(self) -> int:
        """Rises in the order of commit, over all jobs."""

    @property
    def job_id(self) -> str:
        """The job that it is about."""

    @property
    def kind(self) -> str:
        """`progress`, `split`…; the final one is called as the state that it ends in."""

    @property
    def data(self) -> Mapping[str, Any]:
        """With `state` and `progress` of the job where the event tells them."""


class EventLog:
    """The log of a store of jobs, in the order in which it was read, and the promises that it must keep."""

    def __init__(self, events: Iterable[LoggedEvent]) -> None:
        self._events = list(events)
        self._of_job: defaultdict[str, list[LoggedEvent]] = defaultdict(list)
        for event in self._events:
            self._of_job[event.job_id].append(event)

    def check_ids_rise(self) -> None:
        """Each id is above the one before: none is there twice, none came in below another."""
        _raise("ids do not rise", (str(b.id) for a, b in pairwise(self._events) if b.id <= a.id))

    def check_one_end(self, job_ids: Iterable[str]) -> None:
        """Each of these jobs, and no other, is in the log, with exactly one final event."""
        wanted = set(job_ids)
        _raise("in the log, not asked for", self._of_job.keys() - wanted)
        ends = {one: sum(event.kind in _TERMINAL for event in self._of_job[one]) for one in wanted}
        _raise("not exactly one end", (f"{one} ({count})" for one, count in ends.items() if count != 1))

    def check_terminal_states_never_change(self) -> None:
        """Every event from the final one on tells the state that the job ended in; none before tells a terminal one."""
        _raise("state changed after the end", (one for one in self._of_job if not self._ends_for_good(one)))

    def check_progress_never_decreases(self) -> None:
        """The progress that a job's events tell rises or stays."""
        bad = []
        for one, events in self._of_job.items():
            told = [event.data["progress"] for event in events if "progress" in event.data]
            bad += [one for a, b in pairwise(told) if b < a]
        _raise("progress went back", bad)

    def _ends_for_good(self, job_id: str) -> bool:
        end = ""
        for event in self._of_job[job_id]:
            end = end or (event.kind if event.kind in _TERMINAL else "")
            state = event.data.get("state")
            if state is not None and (state != end if end else state in _TERMINAL):
                return False
        return True


class States:
    """States of jobs as they were seen from outside, one look after the other."""

    def __init__(self) -> None:
        self._seen: defaultdict[str, list[str]] = defaultdict(list)

    def saw(self, job_id: str, state: str) -> None:
        """A look at the job found it in this state."""
        self._seen[job_id].append(state)

    def check_terminal_states_never_change(self) -> None:
        """After a terminal state no other was seen."""
        changed = (
            f"{one} ({a} → {b})"
            for one, seen in self._seen.items()
            for a, b in pairwise(seen)
            if a in _TERMINAL and b != a
        )
        _raise("state changed after the end", changed)

    def check_all_ended(self) -> None:
        """The last state seen of each job is terminal."""
        _raise("not ended", (f"{one} ({seen[-1]})" for one, seen in self._seen.items() if seen[-1] not in _TERMINAL))


class Depth(Protocol):
    """What `check_queues_empty` needs to know of a queue."""

    @property
    def ready(self) -> int:
        """Messages that may be handed out."""

    @property
    def in_flight(self) -> int:
        """Messages that were handed out and not settled."""

    @property
    def delayed(self) -> int:
        """Messages that wait for their time."""


def check_queues_empty(depths: Mapping[str, Depth]) -> None:
    """No queue holds a message: ready, in flight or delayed. Dead letters are not counted; look at them by name."""
    left = (
        f"{name} (ready {one.ready}, in flight {one.in_flight}, delayed {one.delayed})"
        for name, one in depths.items()
        if one.ready or one.in_flight or one.delayed
    )
    _raise("queues not empty", left)


def check_nothing_leaked(before: Snapshot) -> None:
    """No thread, socket, file or child process is there that was not when `before` was taken; waits up to 2 s."""
    _raise("left behind", before.leaked())


class Memory:
    """What a process (None: this one) has in RAM, against what it had when this was made, in bytes."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid
        self._start = resident_bytes(pid)

    def growth_bytes(self) -> int:
        """How much more there is now; less than 0 where memory was given back."""
        return resident_bytes(self._pid) - self._start

    def check_growth(self, bytes_max: int) -> None:
        """It has grown by no more than this."""
        growth = self.growth_bytes()
        if growth > bytes_max:
            raise BrokenPromise("memory grew", [f"by {growth} bytes, more than {bytes_max}"])


def _raise(promise: str, found: Iterable[str]) -> None:
    witnesses = list(dict.fromkeys(found))
    if witnesses:
        raise BrokenPromise(promise, witnesses)
