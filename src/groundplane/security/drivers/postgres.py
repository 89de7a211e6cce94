"""Security in PostgreSQL, 14 or newer.

Address: `postgresql://user:password@host:port/database`; parameters as those of every store on PostgreSQL.
Guarantee: what returned is committed and on the server's disk; processes see each other's writes in commit order.
Limits: those of PostgreSQL.
Cannot: nothing of the port is left out. The server's clock tells what has expired.
Escape hatch: `native` is the `Database`.

Each method is one round trip and one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from groundplane.backends.postgres import Database, MigrationSet
from groundplane.core.errors import AlreadyExists
from groundplane.security.drivers.records import (
    AUDIT_COLUMNS,
    PRUNED_AT_ONCE,
    audit_filters,
    audit_row,
    entry_of,
    key_of,
    name_taken,
    too_many_sessions,
)
from groundplane.security.port import (
    PAGE_MAX,
    ApiKey,
    AuditEntry,
    AuditQuery,
    FoundKey,
    NewKey,
    SecurityStore,
    Session,
)

MIGRATIONS = MigrationSet(component="security", package="groundplane.security.sql.postgres")


def _ms(column: str) -> str:
    return f"floor(extract(epoch FROM {column}) * 1000)::bigint"


_KEY_TIMES = ", ".join(_ms(column) for column in ("created_at", "expires_at", "last_used_at", "revoked_at"))
_KEY = f"key_id, name, principal, scopes, {_KEY_TIMES}"
_IN_SECONDS = "now() + make_interval(secs => %(ttl_s)s)"


class PostgresSecurity:
    """The driver."""

    def __init__(self, database: Database, namespace: str, stack: AsyncExitStack) -> None:
        self.native = database
        self.keys = _Keys(database, namespace)
        self.audit = _Audit(database, namespace)
        self.sessions = _Sessions(database, namespace)
        self.secrets = _Secrets(database, namespace)
        self._namespace = namespace
        self._stack = stack

    async def aclose(self) -> None:
        """See the port."""
        await self._stack.aclose()

    def __repr__(self) -> str:
        return f"<PostgresSecurity {self._namespace!r} on {self.native!r}>"


class _Keys:
    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace
        self._table = f"{database.schema}.security_keys"

    async def add(self, key: NewKey) -> ApiKey:
        """See the port."""
        given = {
            "namespace": self._namespace, "key_id": key.key_id, "digest": key.digest, "name": key.name,
            "principal": key.principal, "scopes": " ".join(key.scopes), "ttl_s": key.ttl_s,
        }  # fmt: skip
        sql = f"""
            INSERT INTO {self._table} (namespace, key_id, digest, name, principal, scopes, expires_at)
            VALUES (%(namespace)s, %(key_id)s, %(digest)s, %(name)s, %(principal)s, %(scopes)s,
                    now() + make_interval(secs => %(ttl_s)s::double precision))
            RETURNING {_KEY}"""
        try:
            (row,) = await self._database.query(sql, given)
        except AlreadyExists as error:
            raise name_taken(key) from error
        return key_of(row)

    async def find(self, key_id: str) -> FoundKey | None:
        """See the port."""
        rows = await self._database.query(
            f"""
            SELECT {_KEY}, digest, extract(epoch FROM expires_at - now())::double precision FROM {self._table}
            WHERE namespace = %s AND key_id = %s""",
            (self._namespace, key_id),
        )
        return FoundKey(key=key_of(rows[0]), digest=bytes(rows[0][8]), left_s=rows[0][9]) if rows else None

    async def page(self, *, after: str = "", limit: int = PAGE_MAX) -> list[ApiKey]:
        """See the port."""
        rows = await self._database.query(
            f"SELECT {_KEY} FROM {self._table} WHERE namespace = %s AND key_id > %s ORDER BY key_id LIMIT %s",
            (self._namespace, after, limit),
        )
        return [key_of(row) for row in rows]

    async def revoke(self, key_id: str) -> ApiKey | None:
        """See the port."""
        rows = await self._database.query(
            f"""
            UPDATE {self._table} SET revoked_at = coalesce(revoked_at, now())
            WHERE namespace = %s AND key_id = %s RETURNING {_KEY}""",
            (self._namespace, key_id),
        )
        return key_of(rows[0]) if rows else None

    async def touch(self, key_ids: Iterable[str]) -> None:
        """See the port."""
        await self._database.query(
            f"""
            UPDATE {self._table} SET last_used_at = now() WHERE namespace = %(namespace)s AND key_id IN (
                SELECT key_id FROM {self._table} WHERE namespace = %(namespace)s AND key_id = ANY(%(key_ids)s)
                ORDER BY key_id FOR UPDATE)""",
            {"namespace": self._namespace, "key_ids": list(key_ids)},
        )


class _Audit:
    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace
        self._table = f"{database.schema}.security_audit"

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """See the port."""
        columns = list(zip(*map(audit_row, entries), strict=True))
        lists = ", ".join(["%s::text[]"] * (len(columns) - 1) + ["%s::integer[]"])
        await self._database.query(
            f"""
            INSERT INTO {self._table} (namespace, {AUDIT_COLUMNS})
            SELECT %s, {AUDIT_COLUMNS} FROM unnest({lists}) WITH ORDINALITY AS new ({AUDIT_COLUMNS}, position)
            ORDER BY position""",
            (self._namespace, *map(list, columns)),
        )

    async def page(self, query: AuditQuery) -> list[AuditEntry]:
        """See the port."""
        filters = audit_filters(query)
        times = (("at >=", query.since), ("at <", query.until))
        where = ["namespace = %s", *(f"{condition} %s" for condition in filters)]
        where += [f"{condition} to_timestamp(%s / 1000.0)" for condition, value in times if value is not None]
        bindings = [*filters.values(), *(value for _, value in times if value is not None)]
        rows = await self._database.query(
            f"""
            SELECT entry_id, {_ms("at")}, {AUDIT_COLUMNS} FROM {self._table}
            WHERE {" AND ".join(where)} ORDER BY entry_id DESC LIMIT %s""",
            (self._namespace, *bindings, query.limit),
        )
        return [entry_of(row) for row in rows]

    async def prune(self, *, older_than_s: float, keep: int) -> int:
        """See the port."""
        rows = await self._database.query(
            f"""
            DELETE FROM {self._table} WHERE entry_id = ANY(ARRAY(
                SELECT entry_id FROM {self._table}
                WHERE namespace = %(namespace)s AND (at < now() - make_interval(secs => %(age_s)s) OR entry_id <= (
                    SELECT entry_id FROM {self._table} WHERE namespace = %(namespace)s
                    ORDER BY entry_id DESC LIMIT 1 OFFSET %(keep)s))
                ORDER BY entry_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED)) RETURNING 1""",
            {"namespace": self._namespace, "age_s": older_than_s, "keep": keep, "limit": PRUNED_AT_ONCE},
        )
        return len(rows)


class _Sessions:
    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace
        self._table = f"{database.schema}.security_sessions"

    async def put(self, digest: bytes, owner: str, data: bytes, ttl_s: float, *, most: int) -> None:
        """See the port."""
        rows = await self._database.query(
            f"""
            INSERT INTO {self._table} (namespace, digest, owner, data, expires_at)
            SELECT %(namespace)s, %(digest)s, %(owner)s, %(data)s, {_IN_SECONDS}
            WHERE %(most)s > (SELECT count(*) FROM {self._table} WHERE namespace = %(namespace)s
                              AND owner = %(owner)s AND expires_at > now() AND digest <> %(digest)s)
            ON CONFLICT (namespace, digest) DO UPDATE
            SET owner = excluded.owner, data = excluded.data, expires_at = excluded.expires_at RETURNING 1""",
            {**self._one(digest), "owner": owner, "data": data, "ttl_s": ttl_s, "most": most},
        )
        if not rows:
            raise too_many_sessions(owner, most)

    async def get(self, digest: bytes) -> Session | None:
        """See the port."""
        rows = await self._database.query(
            f"""
            SELECT owner, data, extract(epoch FROM expires_at - now())::double precision FROM {self._table}
            WHERE namespace = %(namespace)s AND digest = %(digest)s AND expires_at > now()""",
            self._one(digest),
        )
        return Session(owner=rows[0][0], data=bytes(rows[0][1]), left_s=rows[0][2]) if rows else None

    async def update(self, digest: bytes, data: bytes, *, before: bytes) -> bool:
        """See the port."""
        rows = await self._database.query(
            f"""
            UPDATE {self._table} SET data = %(data)s
            WHERE namespace = %(namespace)s AND digest = %(digest)s AND expires_at > now() AND data = %(before)s
            RETURNING 1""",
            {**self._one(digest), "data": data, "before": before},
        )
        return bool(rows)

    async def touch(self, digest: bytes, ttl_s: float) -> bool:
        """See the port."""
        rows = await self._database.query(
            f"""
            UPDATE {self._table} SET expires_at = {_IN_SECONDS}
            WHERE namespace = %(namespace)s AND digest = %(digest)s AND expires_at > now() RETURNING 1""",
            {**self._one(digest), "ttl_s": ttl_s},
        )
        return bool(rows)

    async def drop(self, digest: bytes) -> bool:
        """See the port."""
        return await self._drop("digest = %(digest)s AND expires_at > now()", digest=digest) > 0

    async def drop_all(self, owner: str) -> int:
        """See the port."""
        return await self._drop("owner = %(owner)s AND expires_at > now()", owner=owner)

    async def sweep(self) -> int:
        """See the port."""
        return await self._drop("expires_at <= now()")

    async def _drop(self, where: str, **given: Any) -> int:
        sql = f"DELETE FROM {self._table} WHERE namespace = %(namespace)s AND {where} RETURNING 1"
        return len(await self._database.query(sql, {"namespace": self._namespace, **given}))

    def _one(self, digest: bytes) -> dict[str, Any]:
        return {"namespace": self._namespace, "digest": digest}


class _Secrets:
    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace
        self._table = f"{database.schema}.security_secrets"

    async def get_or_make(self, name: str, candidate: bytes) -> bytes:
        """See the port."""
        given = {"namespace": self._namespace, "name": name, "value": candidate}
        make = f"INSERT INTO {self._table} VALUES (%(namespace)s, %(name)s, %(value)s) ON CONFLICT DO NOTHING"
        find = f"SELECT value FROM {self._table} WHERE namespace = %(namespace)s AND name = %(name)s"
        _, ((value,),) = await self._database.query_all([(make, given), (find, given)])
        return bytes(value)


async def open_driver(url: str, *, namespace: str, state: Path, upgrade: bool, inline: bool) -> SecurityStore:
    """Open the store of a namespace. `state` and `inline` are for embedded stores. Errors: those of `Database.open`,
    which begin with `security`.
    """
    stack = AsyncExitStack()
    database = await stack.enter_async_context(Database.open(url, [MIGRATIONS], upgrade=upgrade, field="security"))
    return PostgresSecurity(database, namespace, stack)


_: type[SecurityStore] = PostgresSecurity
