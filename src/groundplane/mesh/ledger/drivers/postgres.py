"""The ledger in PostgreSQL, 14 or newer.

Address: `postgresql://user:password@host:port/database`; parameters as those of every store on PostgreSQL.
Guarantee: a note that returned is committed and on the server's disk; processes see each other's notes in commit order.
Limits: a value or payload of at most 128 MiB.
Cannot: nothing of the port is left out. Ages are told by the server's clock.
Escape hatch: `native` is the `Database`.

Each method is one round trip and one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from groundplane.backends.postgres import Database, MigrationSet
from groundplane.core import codec
from groundplane.core.errors import InvalidArgument
from groundplane.mesh.ledger.port import HANDLED_WINDOW_S, JoinKey, JoinState, Ledger, Once, hashed

MIGRATIONS = MigrationSet(component="ledger", package="groundplane.mesh.ledger.sql.postgres")

_KEY = "namespace = %(namespace)s AND parent_id = %(parent_id)s AND hop = %(hop)s AND actor = %(actor)s"
_WINDOW = f"now() - interval '{HANDLED_WINDOW_S:g} seconds'"


class PostgresLedger:
    """The driver."""

    def __init__(self, database: Database, namespace: str, stack: AsyncExitStack) -> None:
        self.native = database
        self._namespace = namespace
        self._stack = stack
        self._sql = _Statements(database.schema)

    async def once_begin(self, key: str) -> Once:
        """See the port."""
        while True:
            (row,) = await self.native.query(self._sql.begin, {"namespace": self._namespace, "key": key})
            new, done, value = row
            if new:
                return Once("new")
            if done is not None:  # else another began it in this moment, and its row is seen by the next look
                return Once("done", codec.decode(bytes(value))["value"]) if done else Once("begun")

    async def once_end(self, key: str, value: Any) -> None:
        """See the port."""
        data = codec.encode({"value": value})
        await self.native.query(self._sql.end, (self._namespace, key, data))

    async def join_add(self, key: JoinKey, index: int, total: int, payload: bytes) -> JoinState:
        """See the port."""
        if not 0 <= index < total:
            raise InvalidArgument(f"index: {index!r} is not one of {total} children")
        given = {**self._where(key), "child": index, "total": total, "payload": payload}
        *_, rows = await self.native.query_all([
            (self._sql.make_join, given), (self._sql.lock_join, given), (self._sql.add_child, given)
        ])  # fmt: skip
        arrived, known, released = rows[0]
        return JoinState(arrived, known, released)

    async def join_items(self, key: JoinKey) -> dict[int, bytes]:
        """See the port."""
        return {child: bytes(data) for child, data in await self.native.query(self._sql.items, self._where(key))}

    async def join_release(self, key: JoinKey) -> None:
        """See the port."""
        given = self._where(key)
        await self.native.query_all([
            (self._sql.lock_join, given), (self._sql.release, given), (self._sql.free, given)
        ])  # fmt: skip

    async def handled(self, *, ask: Iterable[str] = (), done: Iterable[str] = ()) -> frozenset[str]:
        """See the port."""
        asked = {hashed(self._namespace, key).hex(): key for key in ask}
        handled = sorted({hashed(self._namespace, key).hex() for key in done})  # in order: none waits for another
        if handled:
            given = {"ask": ",".join(asked), "done": ",".join(handled), "limit": 2 * len(handled)}
            rows = await self.native.query(self._sql.note, given)
        elif asked:
            rows = await self.native.query(self._sql.known, {"ask": ",".join(asked)})
        else:
            return frozenset()
        return frozenset(asked[key.hex] for (key,) in rows)

    async def collect(self, older_than_s: float) -> int:
        """See the port."""
        given = {"namespace": self._namespace, "age_s": older_than_s}
        found = await self.native.query_all([(sql, given) for sql in self._sql.collect])
        return sum(len(rows) for rows in found)

    async def aclose(self) -> None:
        """See the port."""
        await self._stack.aclose()

    def __repr__(self) -> str:
        return f"<PostgresLedger {self._namespace!r} on {self.native!r}>"

    def _where(self, key: JoinKey) -> dict[str, Any]:
        return {"namespace": self._namespace, "parent_id": key.parent_id, "hop": key.hop, "actor": key.actor}


class _Statements:
    """The statements for the tables of one schema. Many keys go as one text: a list of them costs many times that."""

    def __init__(self, schema: str) -> None:
        effects, joins, children, handled = (
            f"{schema}.ledger_{table}" for table in ("effects", "joins", "children", "handled")
        )
        self.begin = f"""
            WITH new AS (
                INSERT INTO {effects} (namespace, key) VALUES (%(namespace)s, %(key)s)
                ON CONFLICT DO NOTHING RETURNING 1
            )
            SELECT EXISTS (SELECT FROM new), known.done, known.value
            FROM (VALUES (1)) AS one
            LEFT JOIN {effects} AS known ON known.namespace = %(namespace)s AND known.key = %(key)s"""
        self.end = f"""
            INSERT INTO {effects} AS known (namespace, key, done, value) VALUES (%s, %s, true, %s)
            ON CONFLICT (namespace, key) DO UPDATE SET done = true, value = excluded.value WHERE NOT known.done"""
        self.make_join = f"""
            INSERT INTO {joins} (namespace, parent_id, hop, actor, total)
            VALUES (%(namespace)s, %(parent_id)s, %(hop)s, %(actor)s, %(total)s) ON CONFLICT DO NOTHING"""
        self.lock_join = f"SELECT FROM {joins} WHERE {_KEY} FOR UPDATE"
        self.add_child = f"""
            WITH added AS (
                INSERT INTO {children} (join_id, child, payload)
                SELECT id, %(child)s, %(payload)s FROM {joins} WHERE {_KEY} AND NOT released AND total > %(child)s
                ON CONFLICT DO NOTHING RETURNING 1
            )
            UPDATE {joins} SET arrived = arrived + (SELECT count(*) FROM added)
            WHERE {_KEY} RETURNING arrived, total, released"""
        self.items = f"""
            SELECT child, payload FROM {children}
            WHERE join_id = (SELECT id FROM {joins} WHERE {_KEY}) ORDER BY child"""
        self.release = f"UPDATE {joins} SET released = true WHERE {_KEY}"
        self.free = f"DELETE FROM {children} WHERE join_id = (SELECT id FROM {joins} WHERE {_KEY})"
        asked, done = (f"string_to_array(%({name})s, ',')::uuid[]" for name in ("ask", "done"))
        self.known = f"SELECT key FROM {handled} WHERE key = ANY({asked}) AND handled_at >= {_WINDOW}"
        self.note = f"""
            WITH forgotten AS (
                DELETE FROM {handled} WHERE key = ANY(ARRAY(
                    SELECT key FROM {handled}
                    WHERE handled_at < {_WINDOW} AND key <> ALL({done})
                    ORDER BY handled_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
                ))
            ), noted AS (
                INSERT INTO {handled} (key, handled_at) SELECT unnest({done}), now()
                ON CONFLICT (key) DO UPDATE SET handled_at = excluded.handled_at
            )
            {self.known}"""
        old = "namespace = %(namespace)s AND written_at < now() - make_interval(secs => %(age_s)s)"
        self.collect = [f"DELETE FROM {table} WHERE {old} RETURNING 1" for table in (joins, effects)]


async def open_driver(url: str, *, namespace: str, state: Path, upgrade: bool, inline: bool) -> Ledger:
    """Open the ledger of a namespace. `state` and `inline` are for embedded stores. Errors: those of `Database.open`,
    which begin with `ledger`.
    """
    stack = AsyncExitStack()
    database = await stack.enter_async_context(Database.open(url, [MIGRATIONS], upgrade=upgrade, field="ledger"))
    return PostgresLedger(database, namespace, stack)


_: type[Ledger] = PostgresLedger
