"""Times and bounds of services, each with its default."""

from __future__ import annotations

import math

import msgspec

from groundplane.core.errors import InvalidArgument


class RegistrationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one registered instance, in seconds. The entry is gone `ttl_s` after the last heartbeat; `failures_max`
    heartbeats in a row that fail make the instance UNHEALTHY; a readiness that says nothing for `readiness_s` is red.
    """

    ttl_s: float = 30.0
    heartbeat_s: float = 10.0
    failures_max: int = 3
    readiness_s: float = 5.0

    def __post_init__(self) -> None:
        for field in ("ttl_s", "heartbeat_s", "readiness_s"):
            _check_seconds(field, getattr(self, field))
        if self.heartbeat_s * 2 > self.ttl_s:
            raise InvalidArgument(
                f"heartbeat_s: {self.heartbeat_s!r} is over half of ttl_s {self.ttl_s!r}: one lost heartbeat would end "
                "the entry; use a third of it"
            )
        _check_count("failures_max", self.failures_max)


class DiscoverySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one discovery, in seconds. What was looked up is used for `cache_s`, and for at most `stale_s` more where the
    source does not answer; `cache_entries` services are kept, those that were asked for last. A source has `timeout_s`
    for an answer. A watch that was lost is begun again after `retry_base_s`, doubling to `retry_cap_s`, with jitter.
    """

    cache_s: float = 10.0
    cache_entries: int = 1000
    stale_s: float = 300.0
    timeout_s: float = 5.0
    watch: bool = True
    retry_base_s: float = 0.1
    retry_cap_s: float = 5.0

    def __post_init__(self) -> None:
        for field in ("cache_s", "stale_s", "timeout_s", "retry_base_s", "retry_cap_s"):
            _check_seconds(field, getattr(self, field))
        _check_count("cache_entries", self.cache_entries)


def _check_seconds(field: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    if not number:
        raise InvalidArgument(f"{field}: {value!r} must be a finite number of seconds above 0")


def _check_count(field: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise InvalidArgument(f"{field}: {value!r} must be a whole number of at least 1")


__all__ = ["DiscoverySettings", "RegistrationSettings"]
