"""Which instance to ask: round robin, random, sticky by a key, or a preferred one. No input or output.

Of the healthy instances the ACTIVE ones are chosen from; standbys only where none is active, which then answer that
they are not.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

from groundplane.core.errors import InvalidArgument, Unavailable
from groundplane.core.names import did_you_mean
from groundplane.services.port import Instance, Status

Strategy = Literal["round_robin", "random", "sticky", "preferred"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
SERVICES_MAX = 10_000


class Selector:
    """Chooses; remembers for round robin whose turn it was, for up to 10,000 services."""

    def __init__(self, rand: random.Random | None = None) -> None:
        self._rand = rand or random.Random()
        self._last: OrderedDict[str, str] = OrderedDict()

    def select(
        self,
        service: str,
        instances: Sequence[Instance],
        strategy: Strategy = "round_robin",
        *,
        key: str | None = None,
        preferred: str | None = None,
    ) -> Instance:
        """One of `instances` that is healthy.

        `round_robin` takes them in turn by instance id, also while others come and go. `sticky` takes the same one for
        the same `key`, and another only for keys whose instance went (rendezvous hashing). `preferred` takes the
        instance of that id where it is healthy, else round robin. Raises `unavailable` (`no_instance`) where none is
        healthy, `invalid_argument` for a strategy without what it needs.
        """
        _check(strategy, key, preferred)
        candidates = _candidates(instances)
        if not candidates:
            raise Unavailable(
                f"service: {service!r} has no healthy instance; {len(instances)} in all",
                reason="no_instance",
                details={"service": service, "instances": len(instances)},
            )
        if strategy == "random":
            return self._rand.choice(candidates)
        if strategy == "sticky":
            return max(candidates, key=lambda one: _weight(str(key), one.instance_id))
        if strategy == "preferred":
            found = [one for one in instances if one.healthy and one.instance_id == preferred]
            if found:
                return found[0]
        return self._next(service, candidates)

    def _next(self, service: str, candidates: list[Instance]) -> Instance:
        last = self._last.pop(service, "")
        place = bisect_right(candidates, last, key=lambda one: one.instance_id)
        chosen = candidates[place % len(candidates)]
        self._last[service] = chosen.instance_id
        if len(self._last) > SERVICES_MAX:
            self._last.popitem(last=False)
        return chosen


def _candidates(instances: Sequence[Instance]) -> list[Instance]:
    healthy = [one for one in instances if one.healthy]
    active = [one for one in healthy if one.status is Status.ACTIVE]
    return sorted(active or healthy, key=lambda one: one.instance_id)


def _weight(key: str, instance_id: str) -> bytes:
    return hashlib.blake2b(f"{key}\0{instance_id}".encode(), digest_size=8).digest()


def _check(strategy: str, key: str | None, preferred: str | None) -> None:
    if strategy not in STRATEGIES:
        raise InvalidArgument(
            f"strategy: {strategy!r} is none of {', '.join(STRATEGIES)}{did_you_mean(str(strategy), STRATEGIES)}"
        )
    if strategy == "sticky" and not key:
        raise InvalidArgument(f"key: {key!r} does not say whom 'sticky' sticks to; give a key, as a customer's id")
    if strategy == "preferred" and not preferred:
        raise InvalidArgument(f"preferred: {preferred!r} names no instance; give an instance id")


__all__ = ["STRATEGIES", "Selector", "Strategy"]
