"""What people see of data: text that cannot disguise itself, JSON, times, lengths. Escaping is the templates'."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from groundplane.core.clock import from_iso

TEXT_MAX = 64 * 1024
"""Characters of one value on a page; the REST API has all of it."""
_DISGUISES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def text(value: object, most: int = TEXT_MAX) -> str:
    """As text in which what would not be seen, or would turn the order of what follows around, is written out."""
    whole = str(value)
    cut = _DISGUISES.sub(_written, whole[:most])
    return cut if len(whole) <= most else f"{cut}… ({len(whole):,} characters)"


def pretty(value: object, most: int = TEXT_MAX) -> str:
    """A value as indented JSON."""
    return text(json.dumps(value, indent=2, ensure_ascii=False, default=str), most)


def brief(value: object, most: int = 120) -> str:
    """One line of it."""
    cut = text(" ".join(str(value)[: most * 4].split()), most * 4)
    return cut if len(cut) <= most else cut[: most - 1] + "…"


def moment(value: int | str | None) -> datetime | None:
    """Unix milliseconds, or a time as on the wire."""
    if value is None:
        return None
    unix_ms = from_iso(value) if isinstance(value, str) else value
    return datetime.fromtimestamp(unix_ms / 1000, UTC)


def length(seconds: float | None) -> str:
    """A duration in one or two units: `340 ms`, `4.2 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for unit, small, size in ((3600.0, 60.0, "min s"), (86400.0, 3600.0, "h min"), (float("inf"), 86400.0, "d h")):
        if seconds < unit:
            first, second = size.split()
            rest = (seconds % small) / {"min": 1, "h": 60, "d": 3600}[first]
            return f"{int(seconds // small)} {first} {int(rest)} {second}"
    raise AssertionError("every duration is below infinity")


def _written(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\u{code:04x}"


def as_json(value: Any) -> str:
    """Compact JSON for an attribute that a script reads."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, default=str)
