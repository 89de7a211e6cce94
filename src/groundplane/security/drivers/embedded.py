"""Security in the plane's SQLite file.

Address: `embedded://` (`<state>/plane.db`), or `embedded:///absolute/state/folder`.
Guarantee: what returned survives SIGKILL and a loss of power; processes see each other's writes in commit order.
Limits: one local file.
Cannot: nothing of the port is left out.
Escape hatch: `native` is the `Database`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from groundplane.backends.sqlite import Database, MigrationSet, Transaction
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import AlreadyExists, InvalidArgument
from groundplane.core.secrets import mask_url
from groundplane.security.drivers.records import (
    AUDIT_COLUMNS,
    KEY_COLUMNS,
    PRUNED_AT_ONCE,
    audit_filters,
    audit_row,
    entry_of,
    found_key,
    key_of,
    name_taken,
    too_many_sessions,
)
from groundplane.security.port import ApiKey, AuditEntry, AuditQuery, FoundKey, NewKey, SecurityStore, Session

MIGRATIONS = MigrationSet(component="security", package="groundplane.security.sql.sqlite")


class EmbeddedSecurity:
    """The driver."""

    def __init__(self, database: Database, namespace: str, stack: AsyncExitStack, clock: Clock = SYSTEM_CLOCK) -> None:
        self.native = database
        self.keys = _Keys(database, namespace, clock)
        self.audit = _Audit(database, namespace, clock)
        self.sessions = _Sessions(database, namespace, clock)
        self.secrets = _Secrets(database, namespace)
        self._namespace = namespace
        self._stack = stack

    async def aclose(self) -> None:
        """See the port."""
        await self._stack.aclose()

    def __repr__(self) -> str:
        return f"<EmbeddedSecurity {self._namespace!r} on {self.native!r}>"


class _Keys:
    def __init__(self, database: Database, namespace: str, clock: Clock) -> None:
        self._database = database
        self._namespace = namespace
        self._clock = clock

    async def add(self, key: NewKey) -> ApiKey:
        """See the port."""

        def add(tx: Transaction) -> ApiKey:
            now = self._clock.now_ms()
            expires_at = None if key.ttl_s is None else now + round(key.ttl_s * 1000)
            tx.execute(
                "INSERT INTO security_keys "
                "(namespace, key_id, digest, name, principal, scopes, created_at, expires_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    self._namespace, key.key_id, key.digest, key.name, key.principal, " ".join(key.scopes), now,
                    expires_at,
                ),
            )  # fmt: skip
            return key_of(self._select(tx, key.key_id))

        try:
            return await self._database.write(add)
        except AlreadyExists as error:
            raise name_taken(key) from error

    async def find(self, key_id: str) -> FoundKey | None:
        """See the port."""

        def find(tx: Transaction) -> FoundKey | None:
            rows = tx.execute(
                f"SELECT {KEY_COLUMNS}, digest FROM security_keys WHERE (namespace, key_id) = (?, ?)",
                (self._namespace, key_id),
            )
            return found_key(rows[0], self._clock.now_ms()) if rows else None

        return await self._database.read(find)

    async def page(self, *, after: str = "", limit: int = 1000) -> list[ApiKey]:
        """See the port."""
        rows = await self._database.read(
            lambda tx: tx.execute(
                f"SELECT {KEY_COLUMNS} FROM security_keys WHERE namespace = ? AND key_id > ? ORDER BY key_id LIMIT ?",
                (self._namespace, after, limit),
            )
        )
        return [key_of(row) for row in rows]

    async def revoke(self, key_id: str) -> ApiKey | None:
        """See the port."""

        def revoke(tx: Transaction) -> ApiKey | None:
            tx.execute(
                "UPDATE security_keys SET revoked_at = ? WHERE (namespace, key_id) = (?, ?) AND revoked_at IS NULL",
                (self._clock.now_ms(), self._namespace, key_id),
            )
            row = self._select(tx, key_id)
            return key_of(row) if row else None

        return await self._database.write(revoke, essential=True)

    async def touch(self, key_ids: Iterable[str]) -> None:
        """See the port."""
        rows = [(self._clock.now_ms(), self._namespace, key_id) for key_id in key_ids]
        sql = "UPDATE security_keys SET last_used_at = ? WHERE (namespace, key_id) = (?, ?)"
        await self._database.write(lambda tx: tx.executemany(sql, rows), durable=False)

    def _select(self, tx: Transaction, key_id: str) -> Any:
        sql = f"SELECT {KEY_COLUMNS} FROM security_keys WHERE (namespace, key_id) = (?, ?)"
        return next(iter(tx.execute(sql, (self._namespace, key_id))), None)


class _Audit:
    def __init__(self, database: Database, namespace: str, clock: Clock) -> None:
        self._database = database
        self._namespace = namespace
        self._clock = clock

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """See the port."""

        def append(tx: Transaction) -> None:
            now = self._clock.now_ms()
            tx.executemany(
                f"INSERT INTO security_audit (namespace, at, {AUDIT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(self._namespace, now, *audit_row(entry)) for entry in entries],
            )

        await self._database.write(append)

    async def page(self, query: AuditQuery) -> list[AuditEntry]:
        """See the port."""
        filters = audit_filters(query)
        times = (("at >= ?", query.since), ("at < ?", query.until))
        where = [f"{condition} ?" for condition in filters] + [sql for sql, value in times if value is not None]
        bindings = [*filters.values(), *(value for _, value in times if value is not None)]
        rows = await self._database.read(
            lambda tx: tx.execute(
                f"SELECT entry_id, at, {AUDIT_COLUMNS} FROM security_audit "
                f"WHERE {' AND '.join(['namespace = ?', *where])} ORDER BY entry_id DESC LIMIT ?",
                (self._namespace, *bindings, query.limit),
            )
        )
        return [entry_of(row) for row in rows]

    async def prune(self, *, older_than_s: float, keep: int) -> int:
        """See the port."""

        def prune(tx: Transaction) -> int:
            before = self._clock.now_ms() - round(older_than_s * 1000)
            kept = tx.execute(
                "SELECT entry_id FROM security_audit WHERE namespace = ? ORDER BY entry_id DESC LIMIT 1 OFFSET ?",
                (self._namespace, keep),
            )
            tx.execute(
                "DELETE FROM security_audit WHERE entry_id IN (SELECT entry_id FROM security_audit "
                "WHERE namespace = ? AND (at < ? OR entry_id <= ?) ORDER BY entry_id LIMIT ?)",
                (self._namespace, before, kept[0][0] if kept else 0, PRUNED_AT_ONCE),
            )
            return tx.changes()

        return await self._database.write(prune, essential=True)


class _Sessions:
    def __init__(self, database: Database, namespace: str, clock: Clock) -> None:
        self._database = database
        self._namespace = namespace
        self._clock = clock

    async def put(self, digest: bytes, owner: str, data: bytes, ttl_s: float, *, most: int) -> None:
        """See the port."""

        def put(tx: Transaction) -> None:
            now = self._clock.now_ms()
            others = tx.execute(
                "SELECT count(*) FROM security_sessions "
                "WHERE namespace = ? AND owner = ? AND expires_at > ? AND digest <> ?",
                (self._namespace, owner, now, digest),
            )[0][0]
            if others >= most:
                raise too_many_sessions(owner, most)
            tx.execute(
                "INSERT INTO security_sessions (namespace, digest, owner, data, expires_at) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (namespace, digest) DO UPDATE "
                "SET owner = excluded.owner, data = excluded.data, expires_at = excluded.expires_at",
                (self._namespace, digest, owner, data, now + round(ttl_s * 1000)),
            )

        await self._database.write(put)

    async def get(self, digest: bytes) -> Session | None:
        """See the port."""
        now = self._clock.now_ms()
        rows = await self._database.read(
            lambda tx: tx.execute(
                "SELECT owner, data, expires_at FROM security_sessions "
                "WHERE (namespace, digest) = (?, ?) AND expires_at > ?",
                (self._namespace, digest, now),
            )
        )
        for owner, data, expires_at in rows:
            return Session(owner=owner, data=bytes(data), left_s=(expires_at - now) / 1000)
        return None

    async def update(self, digest: bytes, data: bytes, *, before: bytes) -> bool:
        """See the port."""

        def update(tx: Transaction) -> bool:
            tx.execute(
                "UPDATE security_sessions SET data = ? "
                "WHERE (namespace, digest) = (?, ?) AND expires_at > ? AND data = ?",
                (data, self._namespace, digest, self._clock.now_ms(), before),
            )
            return tx.changes() > 0

        return await self._database.write(update)

    async def touch(self, digest: bytes, ttl_s: float) -> bool:
        """See the port."""

        def touch(tx: Transaction) -> bool:
            now = self._clock.now_ms()
            tx.execute(
                "UPDATE security_sessions SET expires_at = ? WHERE (namespace, digest) = (?, ?) AND expires_at > ?",
                (now + round(ttl_s * 1000), self._namespace, digest, now),
            )
            return tx.changes() > 0

        return await self._database.write(touch)

    async def drop(self, digest: bytes) -> bool:
        """See the port."""
        return await self._drop("digest = ? AND expires_at > ?", digest, self._clock.now_ms()) > 0

    async def drop_all(self, owner: str) -> int:
        """See the port."""
        return await self._drop("owner = ? AND expires_at > ?", owner, self._clock.now_ms())

    async def sweep(self) -> int:
        """See the port."""
        return await self._drop("expires_at <= ?", self._clock.now_ms())

    async def _drop(self, where: str, *bindings: Any) -> int:
        def drop(tx: Transaction) -> int:
            tx.execute(f"DELETE FROM security_sessions WHERE namespace = ? AND {where}", (self._namespace, *bindings))
            return tx.changes()

        return await self._database.write(drop, essential=True)


class _Secrets:
    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    async def get_or_make(self, name: str, candidate: bytes) -> bytes:
        """See the port."""

        def get_or_make(tx: Transaction) -> bytes:
            tx.execute(
                "INSERT INTO security_secrets (namespace, name, value) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (self._namespace, name, candidate),
            )
            sql = "SELECT value FROM security_secrets WHERE (namespace, name) = (?, ?)"
            return bytes(tx.execute(sql, (self._namespace, name))[0][0])

        return await self._database.write(get_or_make)


async def open_driver(url: str, *, namespace: str, state: Path, upgrade: bool, inline: bool) -> SecurityStore:
    """Open the store of a namespace; `invalid_argument` for a URL with more than a folder in it."""
    stack = AsyncExitStack()
    path = _folder(url, state) / "plane.db"
    database = await stack.enter_async_context(Database.open(path, [MIGRATIONS], upgrade=upgrade, inline=inline))
    return EmbeddedSecurity(database, namespace, stack)


def _folder(url: str, state: Path) -> Path:
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise InvalidArgument(
            f"security: {mask_url(url)!r} takes nothing but a folder: embedded:// or embedded:///state/folder"
        )
    return Path(unquote(parts.path)) if parts.path.strip("/") else state


_: type[SecurityStore] = EmbeddedSecurity
