"""W3C trace context: which trace a piece of work belongs to, and which span caused it.

It travels as two texts, `traceparent` and `tracestate`, in HTTP headers, in `_meta` of MCP, in the headers of envelopes
and of queue messages. Rules: https://www.w3.org/TR/trace-context/ (level 1, with the forward compatibility of 4.3).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import msgspec

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
NAMES = (TRACEPARENT, TRACESTATE)
TRACEPARENT_MAX = 512
"""Characters of a `traceparent`; those of versions to come may be longer than the 55 of version 00."""
TRACESTATE_MAX = 512
"""Characters of a `tracestate` that are carried (section 3.3.1.5); the oldest members that do not fit are left out."""
MEMBERS_MAX = 32
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_KEY = r"[a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13}"
_MEMBER = re.compile(rf"(?:{_KEY})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")


class TraceContext(msgspec.Struct, frozen=True):
    """A place in a trace. `traceparent` is valid; `tracestate` is empty or valid."""

    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits: the span that is the parent of what follows."""
        return self.traceparent[36:52]

    @property
    def flags(self) -> int:
        """The eight flags."""
        return int(self.traceparent[53:55], 16)

    @property
    def sampled(self) -> bool:
        """Whether the caller may have recorded the trace."""
        return bool(self.flags & 1)

    def headers(self) -> dict[str, str]:
        """The headers that carry it."""
        found = {TRACEPARENT: self.traceparent}
        if self.tracestate:
            found[TRACESTATE] = self.tracestate
        return found

    def onto(self, headers: Mapping[str, Any]) -> dict[str, Any]:
        """These headers with this context instead of the one they had."""
        kept = {key: value for key, value in headers.items() if key not in NAMES}
        return {**kept, **self.headers()}


def parse(traceparent: object, tracestate: object = "") -> TraceContext | None:
    """The context that the two texts say; None where `traceparent` is none, which callers treat as absent. A
    `tracestate` that is none is left out.
    """
    if not isinstance(traceparent, str) or len(traceparent) > TRACEPARENT_MAX or not _is_parent(traceparent):
        return None
    return TraceContext(traceparent, _state(tracestate) if tracestate else "")


def carried(headers: Mapping[str, Any]) -> TraceContext | None:
    """The context in the headers of an envelope or a message, or in `_meta`."""
    traceparent = headers.get(TRACEPARENT)
    return None if traceparent is None else parse(traceparent, headers.get(TRACESTATE))


@functools.lru_cache(maxsize=256)
def _is_parent(text: str) -> bool:
    found = _PARENT.fullmatch(text)
    return found is not None and not (found[1] == "00" and found[2] is not None)


def _state(text: object) -> str:
    if not isinstance(text, str):
        return ""
    members = [member for member in (part.strip(" \t") for part in text.split(",")) if member]
    if len(members) > MEMBERS_MAX or not all(map(_MEMBER.fullmatch, members)):
        return ""
    while len(",".join(members)) > TRACESTATE_MAX:
        members.pop()
    return ",".join(members)


__all__ = ["NAMES", "TRACEPARENT", "TRACESTATE", "TraceContext", "carried", "parse"]
