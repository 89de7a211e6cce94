"""What a work sees: statements in one transaction, bells that ring after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from psycopg import AsyncConnection

Row: TypeAlias = tuple[Any, ...]
Bindings: TypeAlias = Sequence[Any] | Mapping[str, Any]
Statement: TypeAlias = tuple[str, Bindings]
Connection: TypeAlias = AsyncConnection[Row]


async def send(connection: Connection, statements: Sequence[Statement]) -> list[list[Row]]:
    """All statements in one round trip, their rows. Without BEGIN they are one transaction."""
    if len(statements) == 1:
        sql, bindings = statements[0]
        cursor = await connection.execute(sql, bindings or None)
        return [await cursor.fetchall() if cursor.description is not None else []]
    cursors = []
    async with connection.pipeline():
        for sql, bindings in statements:
            cursors.append(await connection.execute(sql, bindings or None))
    return [await one.fetchall() if one.description is not None else [] for one in cursors]


class Transaction:
    """One transaction. Statements are PostgreSQL's, with `%s` or `%(name)s`; use it in one task, while it is open.

    It begins with the first statement that is sent and is committed, together with what was only told, in one message.
    """

    __slots__ = ("_connection", "_told", "rung", "shown")

    def __init__(self, connection: Connection, shown: str, first: Sequence[Statement]) -> None:
        self._connection = connection
        self._told: list[Statement] = list(first)
        self.shown = shown
        self.rung: dict[str, None] = {}

    async def execute(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """Run a statement; its rows."""
        return (await self.batch([(sql, bindings)]))[0]

    async def batch(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run statements in one round trip; the rows of each."""
        told, self._told = self._told, []
        return (await send(self._connection, [*told, *statements]))[len(told) :]

    def tell(self, sql: str, bindings: Bindings = ()) -> None:
        """Run a statement whose rows nobody needs: with the next one, or with the commit, without a round trip."""
        self._told.append((sql, bindings))

    def ring(self, topic: str) -> None:
        """Ring this bell once the transaction is committed."""
        self.rung[topic] = None

    async def commit(self) -> None:
        """Send what was told, and end it."""
        await self.batch([("COMMIT", ())])
