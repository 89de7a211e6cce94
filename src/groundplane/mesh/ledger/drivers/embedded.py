"""The ledger in the plane's SQLite file.

Address: `embedded://` (`<state>/plane.db`), or `embedded:///absolute/state/folder`.
Guarantee: a note that returned survives SIGKILL and a loss of power; processes see each other's notes in commit order.
Limits: a value or payload of at most 128 MiB; one local file.
Cannot: nothing of the port is left out.
Escape hatch: `native` is the `Database`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from groundplane.backends.sqlite import Database, MigrationSet, Transaction
from groundplane.core import codec
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import InvalidArgument
from groundplane.core.secrets import mask_url
from groundplane.mesh.ledger.port import HANDLED_WINDOW_S, JoinKey, JoinState, Ledger, Once, hashed

MIGRATIONS = MigrationSet(component="ledger", package="groundplane.mesh.ledger.sql.sqlite")

_FIND = "SELECT id, arrived, total, released FROM ledger_joins WHERE (namespace, parent_id, hop, actor) = (?, ?, ?, ?)"

_KNOWN = "SELECT 1 FROM ledger_handled WHERE key = ? AND handled_at >= ?"
_NOTE = (
    "INSERT INTO ledger_handled (key, handled_at) VALUES (?, ?) "
    "ON CONFLICT (key) DO UPDATE SET handled_at = excluded.handled_at"
)
_FORGET = (  # a little more than comes in, oldest first: the table stays as large as a window
    "DELETE FROM ledger_handled WHERE key IN "
    "(SELECT key FROM ledger_handled WHERE handled_at < ? ORDER BY handled_at LIMIT ?)"
)
_WINDOW_MS = round(HANDLED_WINDOW_S * 1000)


class EmbeddedLedger:
    """The driver."""

    def __init__(self, database: Database, namespace: str, stack: AsyncExitStack, clock: Clock = SYSTEM_CLOCK) -> None:
        self.native = database
        self._namespace = namespace
        self._stack = stack
        self._clock = clock

    async def once_begin(self, key: str) -> Once:
        """See the port."""

        def begin(tx: Transaction) -> Once:
            rows = tx.execute(
                "SELECT done, value FROM ledger_effects WHERE (namespace, key) = (?, ?)", (self._namespace, key)
            )
            if not rows:
                tx.execute(
                    "INSERT INTO ledger_effects (namespace, key, written_at) VALUES (?, ?, ?)",
                    (self._namespace, key, self._clock.now_ms()),
                )
                return Once("new")
            done, value = rows[0]
            return Once("done", _value(value)) if done else Once("begun")

        return await self.native.write(begin)

    async def once_end(self, key: str, value: Any) -> None:
        """See the port."""
        data = codec.encode({"value": value})

        def end(tx: Transaction) -> None:
            tx.execute(
                "INSERT INTO ledger_effects (namespace, key, done, value, written_at) VALUES (?, ?, 1, ?, ?) "
                "ON CONFLICT (namespace, key) DO UPDATE SET done = 1, value = excluded.value WHERE done = 0",
                (self._namespace, key, data, self._clock.now_ms()),
            )

        await self.native.write(end)

    async def join_add(self, key: JoinKey, index: int, total: int, payload: bytes) -> JoinState:
        """See the port."""
        if not 0 <= index < total:
            raise InvalidArgument(f"index: {index!r} is not one of {total} children")

        def add(tx: Transaction) -> JoinState:
            tx.execute(
                "INSERT INTO ledger_joins (namespace, parent_id, hop, actor, total, written_at) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (*self._where(key), total, self._clock.now_ms()),
            )
            join, arrived, known, released = tx.execute(_FIND, self._where(key))[0]
            if not released and index < int(str(known)):
                tx.execute(
                    "INSERT INTO ledger_children VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (join, index, payload)
                )
                if tx.changes():
                    tx.execute("UPDATE ledger_joins SET arrived = arrived + 1 WHERE id = ?", (join,))
                    arrived = int(str(arrived)) + 1
            return JoinState(int(str(arrived)), int(str(known)), bool(released))

        return await self.native.write(add)

    async def join_items(self, key: JoinKey) -> dict[int, bytes]:
        """See the port."""

        def items(tx: Transaction) -> dict[int, bytes]:
            rows = tx.execute(
                "SELECT child, payload FROM ledger_children WHERE join_id = "
                "(SELECT id FROM ledger_joins WHERE (namespace, parent_id, hop, actor) = (?, ?, ?, ?)) ORDER BY child",
                self._where(key),
            )
            return {int(str(child)): bytes(payload) for child, payload in rows if isinstance(payload, bytes)}

        return await self.native.read(items)

    async def join_release(self, key: JoinKey) -> None:
        """See the port."""

        def release(tx: Transaction) -> None:
            for join, *_ in tx.execute(_FIND, self._where(key)):
                tx.execute("UPDATE ledger_joins SET released = 1 WHERE id = ?", (join,))
                tx.execute("DELETE FROM ledger_children WHERE join_id = ?", (join,))

        await self.native.write(release, essential=True)

    async def handled(self, *, ask: Iterable[str] = (), done: Iterable[str] = ()) -> frozenset[str]:
        """See the port."""
        asked = [(key, hashed(self._namespace, key)) for key in ask]
        handled = [hashed(self._namespace, key) for key in done]

        def look(tx: Transaction) -> frozenset[str]:
            since = self._clock.now_ms() - _WINDOW_MS
            return frozenset(key for key, hash_ in asked if tx.execute(_KNOWN, (hash_, since)))

        def note(tx: Transaction) -> frozenset[str]:
            now = self._clock.now_ms()
            known = look(tx)
            tx.execute(_FORGET, (now - _WINDOW_MS, 2 * len(handled)))
            tx.executemany(_NOTE, [(key, now) for key in handled])
            return known

        return await (self.native.write(note) if handled else self.native.read(look))

    async def collect(self, older_than_s: float) -> int:
        """See the port."""
        before = self._clock.now_ms() - round(older_than_s * 1000)

        def collect(tx: Transaction) -> int:
            old = "WHERE namespace = ? AND written_at < ?"
            chosen = f"SELECT id FROM ledger_joins {old}"
            tx.execute(f"DELETE FROM ledger_children WHERE join_id IN ({chosen})", (self._namespace, before))
            count = 0
            for table in ("ledger_joins", "ledger_effects"):
                tx.execute(f"DELETE FROM {table} {old}", (self._namespace, before))
                count += tx.changes()
            return count

        return await self.native.write(collect, essential=True)

    async def aclose(self) -> None:
        """See the port."""
        await self._stack.aclose()

    def __repr__(self) -> str:
        return f"<EmbeddedLedger {self._namespace!r} on {self.native!r}>"

    def _where(self, key: JoinKey) -> tuple[str, str, int, str]:
        return self._namespace, key.parent_id, key.hop, key.actor


async def open_driver(url: str, *, namespace: str, state: Path, upgrade: bool, inline: bool) -> Ledger:
    """Open the ledger of a namespace; `invalid_argument` for a URL with more than a folder in it."""
    stack = AsyncExitStack()
    path = _folder(url, state) / "plane.db"
    database = await stack.enter_async_context(Database.open(path, [MIGRATIONS], upgrade=upgrade, inline=inline))
    return EmbeddedLedger(database, namespace, stack)


def _folder(url: str, state: Path) -> Path:
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise InvalidArgument(
            f"ledger: {mask_url(url)!r} takes nothing but a folder: embedded:// or embedded:///state/folder"
        )
    return Path(unquote(parts.path)) if parts.path.strip("/") else state


def _value(data: Any) -> Any:
    return codec.decode(bytes(data))["value"]


_: type[Ledger] = EmbeddedLedger
