"""Garbage collection in a process that serves for long."""

from __future__ import annotations

import gc


def ease_collection() -> None:
    """Leave what is loaded now out of every later collection, and collect less often: requests and messages make many
    short-lived objects and hardly any cycles. For processes of ours alone; call it again after loading more.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
