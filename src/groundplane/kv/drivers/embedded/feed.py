"""Changes as one watcher hears them, and the one task that tells watchers what has expired."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from groundplane.backends.sqlite import Database, Listener, Row, Transaction
from groundplane.core.clock import Clock
from groundplane.core.errors import GroundplaneError
from groundplane.kv.drivers.embedded import rows
from groundplane.kv.port import Change, ChangeFeed, ChangeKind, Changes, Selection

PAGE_ROWS = 500
AGAIN_S = 0.25
LOOK_S = 5.0
"""How long is slept at most before a value expires: the machine's clock may be set."""
_KINDS = {rows.PUT: ChangeKind.PUT, rows.DELETED: ChangeKind.DELETE, rows.EXPIRED: ChangeKind.EXPIRED}


class Place(NamedTuple):
    """A bucket in a file."""

    database: Database
    bucket_id: int
    clock: Clock


class EmbeddedFeed:
    """The feed of one watch. It reads rows behind its last revision whenever the bucket is rung."""

    def __init__(self, place: Place, selection: Selection, listener: Listener, revision: int) -> None:
        """`revision` is that of the bucket when the watch began."""
        self.flowing = True
        self._place = place
        self._selection = selection
        self._listener = listener
        self._began = revision
        self._seen = selection.after or 0
        self._synced = False

    async def receive(self) -> Changes:
        """See the port."""
        while True:
            found, last = await self._read()
            more = len(found) == PAGE_ROWS
            seen = found[-1][3] if more else last
            changes = [change for change in map(self._change, found) if change is not None]
            told, self._synced = self._synced, self._synced or not more or seen >= self._began
            self._seen = max(self._seen, seen)
            if changes or self._synced is not told:
                return Changes(changes=changes, synced=self._synced)
            if not more:
                await self._listener.wait()

    async def _read(self) -> tuple[list[Row], int]:
        while True:
            try:
                found = await self._place.database.read(self._page)
            except GroundplaneError as error:
                self.flowing = False
                if not error.retryable:
                    raise
                await asyncio.sleep(AGAIN_S)
            else:
                self.flowing = True
                return found

    def _page(self, tx: Transaction) -> tuple[list[Row], int]:
        wanted = (self._selection.key, self._selection.prefix)
        return rows.read_changes(tx, self._place.bucket_id, wanted, self._seen, PAGE_ROWS)

    def _change(self, row: Row) -> Change | None:
        key, kind, value, revision, until = row
        if self._selection.after is None and revision <= self._began:
            gone = kind != rows.PUT or (until is not None and until <= self._place.clock.now_ms())
            if gone:
                return None  # it was not there when the watch began
        return Change(kind=_KINDS[kind], key=key, value=value, revision=revision)


class Expiry:
    """Turns values that have expired into removals with revisions, so that watches of every process hear of them."""

    def __init__(self, place: Place) -> None:
        self._place = place

    async def run(self) -> None:
        """Until cancelled, or until the database is closed."""
        async with self._place.database.listen(rows.topic_of(self._place.bucket_id)) as listener:
            while True:
                try:
                    wait_s = await self._next_s()
                except GroundplaneError as error:
                    if not error.retryable:
                        raise
                    wait_s = AGAIN_S
                await listener.wait(wait_s)

    async def _next_s(self) -> float | None:
        """Expire what is due; seconds until the next is, None for never."""
        database, bucket_id, clock = self._place
        due = await database.read(lambda tx: rows.next_expiry(tx, bucket_id))
        if due is None:
            return None
        left_s = (due - clock.now_ms()) / 1000
        if left_s > 0:
            return min(left_s, LOOK_S)
        await database.write(lambda tx: rows.sweep(tx, bucket_id, clock.now_ms()))
        return 0.0


_: type[ChangeFeed] = EmbeddedFeed
