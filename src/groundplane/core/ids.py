"""Identifiers: UUIDv7 (RFC 9562), monotonic within a process, and UUIDv5 where an id must be deterministic."""

from __future__ import annotations

import functools
import os
import threading
import time
import uuid

_NAMESPACE = uuid.UUID("5a0c9b8e-6a54-5f0f-9d0b-67706c616e65")
_VARIANT = bytes(0x80 | byte & 0x3F for byte in range(256))
_AT_ONCE = 256
"""Random digits are asked of the system for so many at once: each time gives up the interpreter's lock."""
_lock = threading.Lock()
_last = 0
_tails: list[str] = []
_traces: list[str] = []


def new_id() -> str:
    """A new UUIDv7 in its usual text form; ids of one process sort in the order in which they were made."""
    global _last
    with _lock:
        # 48 bits of milliseconds and 12 of their fraction, raised by one where the clock stands still or goes back
        ticks = time.time_ns() * 4096 // 1_000_000
        if ticks <= _last:
            ticks = _last + 1
        _last = ticks
        if not _tails:
            random = bytearray(os.urandom(8 * _AT_ONCE))
            random[::8] = random[::8].translate(_VARIANT)
            _tails.extend(random.hex("-", 8).split("-"))
        tail = _tails.pop()
    return f"{_front(ticks >> 12)}{ticks & 0xFFF:03x}-{tail[:4]}-{tail[4:]}"


def new_traceparent() -> str:
    """The `traceparent` (W3C trace context) of a new trace that nobody records."""
    with _lock:
        if not _traces:
            _traces.extend(os.urandom(24 * _AT_ONCE).hex("-", 24).split("-"))
        digits = _traces.pop()
    return f"00-{digits[:32]}-{digits[32:]}-00"


@functools.lru_cache(maxsize=16)
def _front(unix_ms: int) -> str:
    digits = f"{unix_ms & (1 << 48) - 1:012x}"
    return f"{digits[:8]}-{digits[8:]}-7"


def child_id(parent_id: str, hop: int, index: int) -> str:
    """The id of the child `index` that `parent_id` fans out to at `hop`: the same whenever the parent is repeated."""
    return str(uuid.uuid5(_NAMESPACE, f"{parent_id}/{hop}/{index}"))


def joined_id(parent_id: str, hop: int) -> str:
    """The id of the envelope that a join at `hop` makes of the children of `parent_id`."""
    return str(uuid.uuid5(_NAMESPACE, f"{parent_id}/{hop}/join"))


def call_id(session_id: str, request_id: str | int) -> str:
    """The id of the job of a session's request: whoever knows both finds the job. `7` and `"7"` are one request."""
    return str(uuid.uuid5(_NAMESPACE, f"call/{session_id}/{request_id}"))


def message_id(scope: str) -> str:
    """The id of what the work `scope` sends: the same whenever that work is repeated."""
    return str(uuid.uuid5(_NAMESPACE, f"message/{scope}"))


def _after_fork() -> None:
    """A child never gives what its parent gives."""
    global _lock
    _lock = threading.Lock()
    _tails.clear()
    _traces.clear()


os.register_at_fork(after_in_child=_after_fork)
