"""Checkers: a history of what was sent and done, and the promises that it must keep.

    history = History()
    history.sent("m-1")          # once `send` has returned
    history.done("m-1")          # once its effect is there
    history.check_nothing_lost()
    history.check_no_effect_twice()

A checker fails with the ids that break the promise, not with a count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

_SHOWN = 10


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

    def check_order(self) -> None:
        """Effects happened in the order of sending."""
        place = {one: n for n, one in enumerate(self._sent)}
        known = [one for one in self._done if one in place]
        _raise("out of order", (b for a, b in pairwise(known) if place[b] < place[a]))

    def check_attempts_grow(self) -> None:
        """The attempts of each message are 1, 2, 3, … or repeats of one of them where it was handed back."""
        bad = (
            one
            for one, seen in self._attempts.items()
            if any(b - a not in (0, 1) for a, b in zip([1, *seen], seen, strict=False))
        )
        _raise("attempts jumped", bad)


def _raise(promise: str, found: Iterable[str]) -> None:
    witnesses = list(dict.fromkeys(found))
    if witnesses:
        raise BrokenPromise(promise, witnesses)
