"""This bus among those of one file: joining, leaving, and taking back what others held that died or hang."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from groundplane.backends.sqlite import Database, Transaction
from groundplane.backends.sqlite.alive import AliveFile, owner_has_ended
from groundplane.bus.drivers.embedded import rows
from groundplane.bus.drivers.embedded.consumer import EmbeddedConsumer
from groundplane.bus.drivers.embedded.switch import Interest
from groundplane.bus.port import EVENTS_KEPT_S, RESULTS_KEPT_S
from groundplane.core.clock import Clock
from groundplane.core.errors import GroundplaneError

SWEEP_S = 0.5
TIDY_S = 30.0


class Session:
    """One opened bus. `run` sweeps until it is cancelled."""

    def __init__(self, database: Database, namespace: str, folder: Path, clock: Clock) -> None:
        self.id = 0
        self.folder = folder
        self.consumers: set[EmbeddedConsumer] = set()
        self.last_failure: Exception | None = None
        self._database = database
        self._namespace = namespace
        self._clock = clock
        self._file: AliveFile | None = None

    @property
    def socket(self) -> str:
        """Name of the socket of this session."""
        assert self._file is not None
        return socket_of(self._file.name)

    def lock(self) -> None:
        """Make the file that tells that this process lives."""
        self._file = AliveFile(self.folder)

    async def join(self) -> None:
        """Be known to others."""
        assert self._file is not None
        insert = "INSERT INTO bus_sessions (namespace, file) VALUES (?, ?) RETURNING id"
        values = (self._namespace, self._file.name)
        self.id = (await self._database.write(lambda tx: tx.execute(insert, values), durable=False))[0][0]

    async def others(self) -> tuple[dict[int, str], list[Interest]]:
        """The sockets of the other sessions of this plane, and what they subscribe to."""
        return await self._database.read(self._read_others)

    async def set_interest(self, pattern: str, team: str, members: int) -> None:
        """Tell how many here subscribe to a pattern."""
        values = (self.id, pattern, team, members)
        await self._database.write(lambda tx: _set_interest(tx, values), durable=False)

    async def run(self, ended: Callable[[], Awaitable[None]]) -> None:
        """Sweep for ever; `ended` is awaited when others have gone. Failures are kept, and it goes on."""
        loop = asyncio.get_running_loop()
        tidied = loop.time() - TIDY_S
        while True:
            try:
                if await self.sweep():
                    await ended()
                if loop.time() - tidied >= TIDY_S:
                    tidied = loop.time()
                    await self.tidy()
            except (GroundplaneError, OSError) as error:
                self.last_failure = error
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> bool:
        """Take back what dead processes held, and what was not extended; whether a session has ended."""
        due = round(self._clock.monotonic() * 1000)
        sessions, expired = await self._database.read(lambda tx: _look(tx, self.id, due))
        ended = [(session, file) for session, file in sessions if owner_has_ended(self.folder / file)]
        now_ms = self._clock.now_ms()
        for session, file in ended:
            await self._end(session, now_ms)
            for name in (file, socket_of(file)):
                (self.folder / name).unlink(missing_ok=True)
        if expired:
            take_back = partial(rows.take_back, batches=expired, now_ms=now_ms, counts=True)
            await self._database.write(take_back, durable=False, essential=True)
        return bool(ended)

    async def tidy(self) -> None:
        """Delete what is too old, and consumers that nobody uses; keep those that are used here."""
        now_ms = self._clock.now_ms()
        used = [(now_ms, one.number) for one in self.consumers]
        events, results = now_ms - int(EVENTS_KEPT_S * 1000), now_ms - int(RESULTS_KEPT_S * 1000)

        def work(tx: Transaction) -> None:
            tx.executemany("UPDATE bus_consumers SET touched_at = ? WHERE id = ?", used)
            sql = "SELECT id FROM bus_consumers WHERE expires_s IS NOT NULL AND touched_at + expires_s * 1000 < ?"
            for (consumer,) in tx.execute(sql, (now_ms,)):
                rows.forget_consumer(tx, consumer)
            rows.forget_keys(tx, now_ms)
            rows.trim(tx, events, results)

        await self._database.write(work, durable=False, essential=True)

    async def leave(self) -> None:
        """Be forgotten; what is still held counts as lost."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            if self.id:
                await self._end(self.id, self._clock.now_ms())
        finally:
            file.close()

    async def _end(self, session: int, now_ms: int) -> None:
        await self._database.write(lambda tx: _end(tx, session, now_ms), durable=False, essential=True)

    def _read_others(self, tx: Transaction) -> tuple[dict[int, str], list[Interest]]:
        sql = "SELECT id, file FROM bus_sessions WHERE namespace = ? AND id <> ?"
        sockets = {row[0]: socket_of(row[1]) for row in tx.execute(sql, (self._namespace, self.id))}
        found = [Interest(*row) for row in tx.execute("SELECT session, pattern, team, members FROM bus_interest")]
        return sockets, [one for one in found if one.session in sockets]


def socket_of(file: str) -> str:
    """The socket of the session with this file."""
    return file.removesuffix(".alive") + ".sock"


def _look(tx: Transaction, own: int, due: int) -> tuple[list[tuple[int, str]], list[int]]:
    sessions = tx.execute("SELECT id, file FROM bus_sessions WHERE id <> ?", (own,))
    expired = tx.execute("SELECT id FROM bus_batches WHERE due <= ?", (due,))
    return [(row[0], row[1]) for row in sessions], [row[0] for row in expired]


def _end(tx: Transaction, session: int, now_ms: int) -> None:
    tx.execute("DELETE FROM bus_sessions WHERE id = ?", (session,))
    if not tx.changes():
        return
    tx.execute("DELETE FROM bus_interest WHERE session = ?", (session,))
    held = [row[0] for row in tx.execute("SELECT id FROM bus_batches WHERE session = ?", (session,))]
    rows.take_back(tx, held, now_ms, counts=True)


def _set_interest(tx: Transaction, values: tuple[int, str, str, int]) -> None:
    if values[-1]:
        tx.execute("INSERT OR REPLACE INTO bus_interest VALUES (?, ?, ?, ?)", values)
    else:
        tx.execute("DELETE FROM bus_interest WHERE session = ? AND pattern = ? AND team = ?", values[:-1])
