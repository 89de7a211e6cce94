"""What a work sees: statements in one transaction, bells that ring after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline

Row: TypeAlias = tuple[Any, ...]
Bindings: TypeAlias = Sequence[Any] | Mapping[str, Any]
Statement: TypeAlias = tuple[str, Bindings]
Connection: TypeAlias = AsyncConnection[Row]


_CARRIED_BYTES_PER_S = 2 * 1024 * 1024
_HEAVY_BYTES = 64 * 1024


def carrying_s(statements: Sequence[Statement]) -> float:
    """Seconds that large values may take on their way, beside the time that a call has."""
    heavy = 0
    for _, bindings in statements:
        for value in bindings.values() if isinstance(bindings, Mapping) else bindings:
            if isinstance(value, str | bytes) and len(value) > _HEAVY_BYTES:
                heavy += len(value)
            elif isinstance(value, list):
                heavy += sum(len(one) for one in value if isinstance(one, str | bytes) and len(one) > _HEAVY_BYTES)
    return heavy / _CARRIED_BYTES_PER_S


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

    __slots__ = ("_allow", "_connection", "_pipeline", "_told", "rung")

    def __init__(
        self,
        connection: Connection,
        pipeline: AsyncPipeline,
        first: Sequence[Statement],
        allow: Callable[[float], None],
    ) -> None:
        self._allow = allow
        self._connection = connection
        self._pipeline = pipeline
        self._told: list[Statement] = list(first)
        self.rung: dict[str, None] = {}

    async def execute(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """Run a statement; its rows."""
        return (await self.batch([(sql, bindings)]))[0]

    async def batch(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run statements in one round trip; the rows of each.

        Each ends with a Sync and nothing after it, unlike a pipeline that is left: any message after that Sync would
        turn off the server's watch over transactions that are idle.
        """
        cursors = await self._queue(statements)
        await self._pipeline.sync()
        return [await one.fetchall() if one.description is not None else [] for one in cursors]

    def tell(self, sql: str, bindings: Bindings = ()) -> None:
        """Run a statement whose rows nobody needs: with the next one, or with the commit, without a round trip."""
        self._told.append((sql, bindings))

    def ring(self, topic: str) -> None:
        """Ring this bell once the transaction is committed."""
        self.rung[topic] = None

    async def commit(self) -> None:
        """Queue what was told, and the end of it; they are sent, and their errors raised, when the pipeline is left."""
        await self._queue([("COMMIT", ())])

    async def _queue(self, statements: Sequence[Statement]) -> list[AsyncCursor[Row]]:
        told, self._told = self._told, []
        self._allow(carrying_s(told) + carrying_s(statements))
        queued = [await self._connection.execute(sql, bindings or None) for sql, bindings in (*told, *statements)]
        return queued[len(told) :]
