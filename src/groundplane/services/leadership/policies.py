"""How long a lease lasts, when it is renewed, when a leader that cannot renew stops: by three names, or your own."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import msgspec

from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean

CLOCK_RATE_ERROR = 0.01
"""Of the fault model: a second by any member's monotonic clock is 0.99 to 1.01 s."""
LEASE_S_MIN, LEASE_S_MAX = 0.1, 3600.0
_STOP_SHARE_MAX = (1 - CLOCK_RATE_ERROR) / (1 + CLOCK_RATE_ERROR)

PolicyName: TypeAlias = Literal["aggressive", "balanced", "conservative"]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """`lease_s` is how long the others wait since they saw the last renewal; `renew_s` after each renewal comes the
    next (and so long one attempt may take); `stop_s` after the last successful one was sent, its sender stops acting.

    What lies between `stop_s` and `lease_s` covers the clocks (2 %) and the time that a cancelled handler needs to end.
    Left out, they are a third and nine tenths of the lease. `invalid_argument` for what would not be safe.
    """

    lease_s: float
    renew_s: float = 0.0
    stop_s: float = 0.0

    def __post_init__(self) -> None:
        if not _is_number(self.lease_s) or not LEASE_S_MIN <= self.lease_s <= LEASE_S_MAX:
            raise InvalidArgument(f"lease_s: {self.lease_s!r} must be {LEASE_S_MIN:g} to {LEASE_S_MAX:g} seconds")
        msgspec.structs.force_setattr(self, "renew_s", self.renew_s or self.lease_s / 3)
        msgspec.structs.force_setattr(self, "stop_s", self.stop_s or self.lease_s * 0.9)
        if not _is_number(self.stop_s) or not 0 < self.stop_s <= self.lease_s * _STOP_SHARE_MAX:
            raise InvalidArgument(
                f"stop_s: {self.stop_s!r} must be more than 0 and at most {self.lease_s * _STOP_SHARE_MAX:.4g}: "
                "clocks whose rates differ by 2 % must not bring the next leader before the last one has stopped"
            )
        if not _is_number(self.renew_s) or not 0 < self.renew_s <= self.stop_s / 2:
            raise InvalidArgument(
                f"renew_s: {self.renew_s!r} must be more than 0 and at most half of stop_s ({self.stop_s / 2:.4g}), "
                "so that one lost renewal does not end the term"
            )


# seven seconds are to outlive the election of a stream's leader: the later the last renewal before it, the longer
POLICIES: dict[str, Policy] = {
    "aggressive": Policy(lease_s=0.8),
    "balanced": Policy(lease_s=1.5),
    "conservative": Policy(lease_s=7.0, renew_s=0.5),
}


def chosen(policy: str | Policy) -> Policy:
    """The policy of that name, or the one given. `invalid_argument` for an unknown name."""
    if isinstance(policy, Policy):
        return policy
    if policy not in POLICIES:
        raise InvalidArgument(
            f"policy: {policy!r} must be one of {', '.join(POLICIES)}, or a Policy{did_you_mean(str(policy), POLICIES)}"
        )
    return POLICIES[policy]
