"""When to try again: exponential backoff with full jitter and a cap, as a pure function of the attempt.

Full jitter after https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import msgspec

from groundplane.core.errors import InvalidArgument


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """`attempts` in all (1 = never again); delay before attempt n+1 is uniform in 0 … min(cap_s, base_s ·
    factor^(n-1)).

    `non_retryable` names exception classes (bare or qualified); a subclass of one is not retried either.
    """

    attempts: int = 1
    base_s: float = 1.0
    factor: float = 2.0
    cap_s: float = 60.0
    jitter: bool = True
    non_retryable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise InvalidArgument(f"retry.attempts: {self.attempts!r} must be a whole number of at least 1")
        for field, least in (("base_s", 0.0), ("factor", 1.0), ("cap_s", 0.0)):
            value = getattr(self, field)
            if not math.isfinite(value) or value < least:
                raise InvalidArgument(f"retry.{field}: {value!r} must be a finite number of at least {least:g}")

    def delay_s(self, attempt: int, rand: Callable[[], float] = random.random) -> float:
        """Seconds to wait after `attempt` (1-based) has failed."""
        exponent = min(attempt - 1, 64)
        bound = min(self.cap_s, self.base_s * self.factor**exponent)
        return bound * rand() if self.jitter else bound

    def refuses(self, types: list[str] | tuple[str, ...]) -> bool:
        """Whether one of an exception's class names (its ancestry, bare or qualified) is listed as not retryable."""
        names = {*types, *(name.rpartition(".")[2] for name in types)}
        return any(listed in names for listed in self.non_retryable)
