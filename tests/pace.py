"""Bounds of time that tell "at once" from "by a timeout", also on a machine that is busy with other work."""

from __future__ import annotations

import os

_STRETCH_MIN, _STRETCH_MAX = 2.0, 4.0


def at_most(seconds: float) -> float:
    """The bound on this machine now: twice `seconds`, for a disk or a host that stalls, and longer by as much as more
    wants to run than there are processors; four times at most, below what the broken behaviour takes. For bounds of a
    few seconds and less: what is promised (closing within 10 s) is not stretched.
    """
    return seconds * min(_STRETCH_MAX, max(_STRETCH_MIN, os.getloadavg()[0] / (os.cpu_count() or 1)))
