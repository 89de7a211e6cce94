"""Fencing: who acts on the strength of a lease shows its term, and stores refuse an older one.

    await kv.put("plan", data, fence=Fence("scheduler", lease.term))

A store remembers the highest term that it has seen for a name and refuses every lower one, in the same step in which
it writes. So a leader that was paused past its lease cannot overwrite what its successor did, once that has written.
A term is remembered with the first write that shows it and is done, at the latest.
"""

from __future__ import annotations

import msgspec

from groundplane.core.errors import Conflict, InvalidArgument
from groundplane.core.names import check_name

TERM_MAX = 2**63 - 1


class Fence(msgspec.Struct, frozen=True):
    """The name of what is led, and the term under which the caller leads it: a number that rises with each leader."""

    name: str
    term: int


def check_fence(fence: object) -> Fence:
    """`fence` when it is one. `invalid_argument`: no `Fence`, a name that is none, a term that is not 1 to 2⁶³-1."""
    if not isinstance(fence, Fence):
        raise InvalidArgument(f"fence: {fence!r} is no Fence; give Fence(name, term)")
    check_name("fence.name", fence.name)
    if type(fence.term) is not int or not 1 <= fence.term <= TERM_MAX:
        raise InvalidArgument(f"fence.term: {fence.term!r} is not a whole number from 1; give the term of the lease")
    return fence


def term_old(fence: Fence, actual: int) -> Conflict:
    """The refusal of a term that is lower than `actual`, the highest that the store has seen."""
    return Conflict(
        f"fence: {fence.name!r} is led under term {actual!r} by now, this write shows term {fence.term!r}; stop acting",
        reason="term_old",
        details={"name": fence.name, "term": fence.term, "actual": actual},
    )
