"""Who is alive: one session for each process that consumes, and the sweep that notices the end of the others.

Death is told by the kernel: a session holds a lock on a file of its own, which is free once its process has ended. A
process that is stopped or hangs keeps the lock but not its beat. Whoever sweeps adds up only the time in which it ran
itself, so that a pause of the whole machine makes nobody dead.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from groundplane.backends.sqlite import Database, Transaction
from groundplane.backends.sqlite.alive import AliveFile, owner_has_ended
from groundplane.core.clock import Clock
from groundplane.core.errors import GroundplaneError
from groundplane.queues.drivers.embedded import rows

SWEEP_S = 0.4
_BEATS_PER_LIFE = 6
_LEASES_AT_ONCE = 1000


class _Seen(NamedTuple):
    beat: int
    still_s: float


class Session:
    """This process among the consumers of the file. `run` beats and sweeps until it is cancelled."""

    def __init__(self, database: Database, folder: Path, clock: Clock, heartbeat_s: float) -> None:
        self.id = 0
        self.taken_for_dead = 0
        self.sweeps_failed = 0
        self.last_failure: Exception | None = None
        self._database = database
        self._folder = folder
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._file: AliveFile | None = None
        self._free: list[int] = []
        self._slots = 0
        self._seen: dict[int, _Seen] = {}
        self._turn = asyncio.Lock()
        self._on_lost: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Join, unless it has; then take back at once what dead processes held."""
        async with self._turn:
            if self._file is not None:
                return
            self._file = AliveFile(self._folder)
            await self._join()
        await self.sweep(0.0)
        await self._tidy()

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` when this session was taken for dead; returns how to stop that."""
        self._on_lost.append(callback)
        return lambda: self._on_lost.remove(callback)

    def take_slots(self) -> tuple[int, int]:
        """Two free places for claims; give each back with `free_slot` when nothing of its claim is held."""
        while len(self._free) < 2:
            self._slots += 1
            self._free.append(self._slots)
        return self._free.pop(), self._free.pop()

    def free_slot(self, slot: int) -> None:
        self._free.append(slot)

    async def rejoin(self, lost: int) -> None:
        """Session `lost` is no more: tell the consumers and begin a new one."""
        async with self._turn:
            if self.id != lost or self._file is None:
                return
            self.taken_for_dead += 1
            self._free, self._slots = [], 0
            for callback in list(self._on_lost):
                callback()
            await self._join()

    async def run(self) -> None:
        """Beat and sweep. Failures (a full disk, a busy file) are counted, and it goes on."""
        loop = asyncio.get_running_loop()
        beat_every_s = min(self._heartbeat_s / _BEATS_PER_LIFE, 5.0)
        last = next_beat = loop.time()
        while True:
            await asyncio.sleep(min(SWEEP_S, beat_every_s))
            now = loop.time()
            try:
                if now >= next_beat:
                    await self._beat()
                    next_beat = now + beat_every_s
                await self.sweep(min(now - last, 2 * SWEEP_S))
            except (GroundplaneError, OSError) as error:
                self.sweeps_failed += 1
                self.last_failure = error
            last = now

    async def sweep(self, elapsed_s: float) -> None:
        """Take back what ended sessions and expired leases held; `elapsed_s` since the last sweep."""
        due = int(self._clock.monotonic() * 1000)
        others, leased = await self._database.read(lambda tx: _others(tx, self.id, due))
        before, self._seen = self._seen, {}
        for session, file, beat in others:
            seen = before.get(session)
            still_s = seen.still_s + elapsed_s if seen is not None and seen.beat == beat else 0.0
            self._seen[session] = _Seen(beat, still_s)
            path = self._folder / file
            ended = owner_has_ended(path)
            if ended or still_s > self._heartbeat_s:
                take_back = partial(reclaim, session=session, now_ms=self._clock.now_ms())
                await self._database.write(take_back, durable=False, essential=True)
                if ended:
                    path.unlink(missing_ok=True)
        if leased:
            now_ms = self._clock.now_ms()
            await self._database.write(lambda tx: _end_leases(tx, due, now_ms), durable=False, essential=True)

    async def aclose(self) -> None:
        """Leave. What consumers of this process still hold counts as lost, so close them first."""
        async with self._turn:
            if self._file is None:
                return
            file, self._file = self._file, None
            session, now_ms = self.id, self._clock.now_ms()
            try:
                await self._database.write(lambda tx: reclaim(tx, session, now_ms), durable=False, essential=True)
            finally:
                file.close()

    async def _join(self) -> None:
        assert self._file is not None
        name = self._file.name
        insert = "INSERT INTO queue_sessions (file, pid) VALUES (?, ?) RETURNING id"
        joined = await self._database.write(lambda tx: tx.execute(insert, (name, os.getpid())), durable=False)
        self.id = joined[0][0]

    async def _beat(self) -> None:
        session = self.id
        beat = "UPDATE queue_sessions SET beat = beat + 1 WHERE id = ? RETURNING id"
        if not await self._database.write(lambda tx: tx.execute(beat, (session,)), durable=False):
            await self.rejoin(session)

    async def _tidy(self) -> None:
        """Remove the files of ended processes that no session names any more."""
        named = await self._database.read(lambda tx: tx.execute("SELECT file FROM queue_sessions"))
        known = {row[0] for row in named}
        for path in self._folder.glob("*.alive"):
            if path.name not in known and owner_has_ended(path):
                path.unlink(missing_ok=True)


def _others(tx: Transaction, own: int, due: int) -> tuple[list[tuple[int, str, int]], bool]:
    others = tx.execute("SELECT id, file, beat FROM queue_sessions WHERE id <> ?", (own,))
    leased = tx.execute("SELECT EXISTS (SELECT 1 FROM queue_leases WHERE due <= ?)", (due,))
    return others, bool(leased[0][0])


def reclaim(tx: Transaction, session: int, now_ms: int) -> int:
    """End a session: what it held goes back with its attempt raised. How many messages; 0 when others were faster."""
    tx.execute("DELETE FROM queue_sessions WHERE id = ?", (session,))
    if not tx.changes():
        return 0
    returned = 0
    claims = tx.execute("DELETE FROM queue_claims WHERE session = ? RETURNING first, last", (session,))
    for first, last in sorted(claims):
        tx.execute("DELETE FROM queue_leases WHERE id BETWEEN ? AND ?", (first, last))
        returned += rows.give_back(tx, first, last, now_ms, counts=True)
    return returned


def _end_leases(tx: Transaction, due: int, now_ms: int) -> None:
    sql = "SELECT id FROM queue_leases WHERE due <= ? ORDER BY due LIMIT ?"
    expired = [row[0] for row in tx.execute(sql, (due, _LEASES_AT_ONCE))]
    for held in expired:
        rows.give_back(tx, held, held, now_ms, counts=True)
    rows.end_leases(tx, expired)
