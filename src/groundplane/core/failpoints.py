"""Failpoints: named windows of a message's life where a test kills or stops this very process.

`GROUNDPLANE_FAILPOINTS="before_ack=kill@3,received=pause"` arms them at start: `kill` (SIGKILL) at the n-th hit (1 by
default), `pause` (SIGSTOP) at each n-th hit, `error` raises `Unavailable` at each hit from the n-th on. With
`GROUNDPLANE_FAILPOINTS_WHILE` they count and act only while that file exists. Not set, a hit costs one dictionary
look-up. `GROUNDPLANE_FAILPOINTS_LOG` names a file to which each action appends `name action pid` before it acts, so
that a run can count them.
"""

from __future__ import annotations

import os
import signal
from typing import Literal

from groundplane.core.errors import InvalidArgument, Unavailable

Window = Literal[
    "accepted",
    "unconfirmed",
    "relayed",
    "received",
    "handled",
    "asking",
    "asked",
    "child_sent",
    "before_ack",
    "final_report",
    "joined",
]  # in the order of a message's life; `unconfirmed`: it was written to a broker, which has not answered yet


class _Armed:
    def __init__(self, action: str, at: int) -> None:
        self.action = action
        self.at = at
        self.hits = 0

    def is_due(self) -> bool:
        """Whether this hit is one to act at."""
        if self.action == "pause":
            return self.hits % self.at == 0
        return self.hits == self.at or (self.action == "error" and self.hits > self.at)


def parse(text: str) -> dict[str, _Armed]:
    """The armed failpoints of an environment value; `InvalidArgument` for what it cannot read."""
    armed = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = part.partition("=")
        action, _, count = rest.partition("@")
        if action not in ("kill", "pause", "error") or not (count or "1").isdecimal() or count == "0":
            raise InvalidArgument(f"GROUNDPLANE_FAILPOINTS: {part!r} is not NAME=kill|pause|error[@N]")
        armed[name] = _Armed(action, int(count or 1))
    return armed


_armed = parse(os.environ.get("GROUNDPLANE_FAILPOINTS", ""))


def is_watched(name: Window) -> bool:
    """Whether a test asked for this window: to get there may need a step that nobody else pays for."""
    return name in _armed


def hit(name: Window) -> None:
    """Pass the window `name`; act when it is armed."""
    point = _armed.get(name)
    if point is None or not os.path.exists(os.environ.get("GROUNDPLANE_FAILPOINTS_WHILE", "/")):
        return
    point.hits += 1
    if point.is_due():
        _act(name, point.action)


def _act(name: str, action: str) -> None:
    log = os.environ.get("GROUNDPLANE_FAILPOINTS_LOG")
    if log:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{name} {action} {os.getpid()}\n".encode())
        os.close(descriptor)
    if action == "error":
        raise Unavailable(f"failpoint: {name!r} is armed to fail")
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
