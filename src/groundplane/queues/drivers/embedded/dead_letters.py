"""The dead letters of a namespace."""

from __future__ import annotations

from typing import Any

from groundplane.backends.sqlite import Database, Transaction
from groundplane.core.dead_letters import DeadLetter, DeadLetterPage, DeadLetterSource
from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.queues.drivers.embedded import rows

_COLUMNS = (
    "d.id, q.name, d.message_id, d.payload, d.headers, d.reason, d.error, d.attempts, d.redrives, d.enqueued_at, "
    "d.died_at"
)
_LIST = (
    f"SELECT {_COLUMNS} FROM queue_dead d JOIN queues q ON q.id = d.queue "
    "WHERE q.namespace = ? AND d.id > ? ORDER BY d.id LIMIT ?"
)
_LIST_QUEUE = (
    f"SELECT {_COLUMNS} FROM queue_dead d JOIN queues q ON q.id = d.queue "
    "WHERE d.queue = ? AND d.id > ? ORDER BY d.id LIMIT ?"
)
_GET = f"SELECT {_COLUMNS} FROM queue_dead d JOIN queues q ON q.id = d.queue WHERE q.namespace = ? AND d.id = ?"
_IN_NAMESPACE = "id = ? AND queue IN (SELECT id FROM queues WHERE namespace = ?)"
_TAKE = (
    f"DELETE FROM queue_dead WHERE {_IN_NAMESPACE} RETURNING queue, message_id, headers, enqueued_at, redrives, payload"
)
_PURGE = f"DELETE FROM queue_dead WHERE {_IN_NAMESPACE} RETURNING 1"


class EmbeddedDeadLetters:
    """See `DeadLetterSource`. Ids are decimal numbers that grow."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    async def list_dead(
        self, queue: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> DeadLetterPage:
        """See `DeadLetterSource.list_dead`."""
        after = 0 if cursor is None else _number(cursor)
        if after is None:
            raise InvalidArgument(f"cursor: {cursor!r} is not of an earlier page; begin without one")
        found = await self._database.read(lambda tx: self._list(tx, queue, after, limit))
        items = [_letter(row) for row in found[:limit]]
        return DeadLetterPage(items=items, cursor=items[-1].id if len(found) > limit else None)

    async def get_dead(self, dead_id: str) -> DeadLetter:
        """See `DeadLetterSource.get_dead`."""
        number = _number(dead_id)
        found = await self._database.read(lambda tx: tx.execute(_GET, (self._namespace, number)))
        if not found:
            raise _gone(dead_id)
        return _letter(found[0])

    async def redrive(self, dead_id: str, *, payload: bytes | None = None) -> None:
        """See `DeadLetterSource.redrive`. `resource_exhausted` where its queue is full; then it stays dead."""
        number = _number(dead_id)
        if number is None:
            raise _gone(dead_id)
        await self._database.write(lambda tx: self._redrive(tx, number, dead_id, payload))

    async def purge(self, dead_ids: list[str]) -> int:
        """See `DeadLetterSource.purge`."""
        numbers = [(number, self._namespace) for one in dead_ids if (number := _number(one)) is not None]
        return len(await self._database.write(lambda tx: tx.executemany(_PURGE, numbers), essential=True))

    def _list(self, tx: Transaction, queue: str | None, after: int, limit: int) -> list[tuple[Any, ...]]:
        if queue is None:
            return tx.execute(_LIST, (self._namespace, after, limit + 1))
        found = tx.execute("SELECT id FROM queues WHERE namespace = ? AND name = ?", (self._namespace, queue))
        if not found:
            raise rows.missing(queue)
        return tx.execute(_LIST_QUEUE, (found[0][0], after, limit + 1))

    def _redrive(self, tx: Transaction, number: int, dead_id: str, edited: bytes | None) -> None:
        taken = tx.execute(_TAKE, (number, self._namespace))
        if not taken:
            raise _gone(dead_id)
        queue, message_id, headers, enqueued_at, redrives, payload = taken[0]
        rows.append_again(
            tx,
            queue,
            message_id=message_id,
            headers=headers,
            enqueued_at=enqueued_at,
            redrives=redrives + 1,
            payload=payload if edited is None else edited,
        )


def _number(dead_id: str) -> int | None:
    return int(dead_id) if dead_id.isascii() and dead_id.isdecimal() and len(dead_id) < 19 else None


def _gone(dead_id: str) -> NotFound:
    return NotFound(
        f"dead_id: {dead_id!r} is no dead letter, or was redriven or purged; list the dead letters",
        details={"dead_id": dead_id},
    )


def _letter(row: tuple[Any, ...]) -> DeadLetter:
    number, queue, message_id, payload, headers, reason, error, attempts, redrives, enqueued_at, died_at = row
    decoded = rows.headers_of(headers)
    return DeadLetter(
        id=str(number),
        queue=queue,
        message_id=message_id,
        payload=payload,
        headers=decoded,
        reason=reason,
        error=rows.error_of(error),
        attempts=attempts,
        redrives=redrives,
        enqueued_at=enqueued_at,
        died_at=died_at,
        trace=decoded.get("traceparent", ""),
    )


def _conforms(source: EmbeddedDeadLetters) -> DeadLetterSource:
    return source
