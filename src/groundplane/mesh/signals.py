"""Signals that tell a process of the mesh to drain."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_DRAIN = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def drained_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop` in the running loop."""
    loop = asyncio.get_running_loop()
    for number in _DRAIN:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in _DRAIN:
            loop.remove_signal_handler(number)
