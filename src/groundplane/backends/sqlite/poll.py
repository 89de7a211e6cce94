"""The safety poll: noticing commits whose bell was lost, because its sender died or the receiver's queue was full."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import apsw

from groundplane.backends.sqlite.wake import WakeHub


class DataVersion:
    """Whether the file has changed, as `PRAGMA data_version` tells on a connection of its own. Never waits."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self._cursor = connection.cursor()
        self._lock = threading.Lock()

    def read(self) -> int | None:
        """A number that differs after each commit of any process, or None where it cannot be had at once."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            rows: list[tuple[Any, ...]] = self._cursor.execute("PRAGMA data_version").fetchall()
            return int(rows[0][0])
        except apsw.Error:
            return None
        finally:
            self._lock.release()


class SafetyPoll:
    """One timer for all listeners of a loop; it ends by itself when none is left."""

    def __init__(self, hub: WakeHub, version: DataVersion, loop: asyncio.AbstractEventLoop, period_s: float) -> None:
        self._hub = hub
        self._version = version
        self._loop = loop
        self._period_s = period_s
        self._seen: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.rings = 0

    def start(self) -> None:
        """Begins, unless it runs already."""
        if self._timer is None:
            self._seen = self._version.read()
            self._timer = self._loop.call_later(self._period_s, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        if not self._hub.listening(self._loop):
            return
        seen = self._version.read()
        if seen is not None and seen != self._seen:
            self._seen = seen
            self.rings += 1
            self._hub.ring_loop(self._loop)
        self._timer = self._loop.call_later(self._period_s, self._tick)
