"""Durations as people write them in settings: `30`, `30s`, `1.5m`, `250ms`, `1h30m`, `90d`."""

from __future__ import annotations

import math
import re

from groundplane.core.errors import InvalidArgument

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(field: str, value: float | str) -> float:
    """Seconds, positive and finite. A bare number is seconds. Raises `InvalidArgument` that names `field`."""
    seconds = _seconds(value)
    if seconds is None or not math.isfinite(seconds) or seconds <= 0:
        raise InvalidArgument(
            f"{field}: {value!r} is not a positive duration; write seconds (30) or 250ms, 30s, 5m, 1h30m, 90d"
        )
    return seconds


def _seconds(value: float | str) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    text = value.strip().lower()
    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        return float(text)
    except ValueError:
        return None
