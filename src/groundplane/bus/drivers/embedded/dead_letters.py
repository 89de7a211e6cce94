"""Dead letters of the bus: listed, redriven to the consumer they died for, purged."""

from __future__ import annotations

from typing import Any

import msgspec

from groundplane.backends.sqlite import Database, Transaction
from groundplane.bus.drivers.embedded import rows
from groundplane.core.clock import Clock
from groundplane.core.dead_letters import DeadLetter, DeadLetterPage, DeadLetterSource
from groundplane.core.errors import ErrorRecord, InvalidArgument, NotFound

SUBJECT_HEADER = "groundplane-subject"
"""Header of a dead letter of the bus: the subject on which the message was sent."""
_COLUMNS = "id, queue, subject, message_id, headers, reason, error, attempts, redrives, stored_at, died_at, payload"


class EmbeddedDeadLetters:
    """See `DeadLetterSource`. `queue` is the name of a consumer."""

    def __init__(self, database: Database, namespace: str, clock: Clock) -> None:
        self._database = database
        self._namespace = namespace
        self._clock = clock

    async def list_dead(
        self, queue: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> DeadLetterPage:
        """See `DeadLetterSource.list_dead`."""
        after = _number("cursor", cursor) if cursor is not None else 0
        return await self._database.read(lambda tx: self._list(tx, queue, after, limit))

    async def get_dead(self, dead_id: str) -> DeadLetter:
        """See `DeadLetterSource.get_dead`."""
        number = _number("dead_id", dead_id)
        sql = f"SELECT {_COLUMNS} FROM bus_dead WHERE id = ? AND namespace = ?"
        found = await self._database.read(lambda tx: tx.execute(sql, (number, self._namespace)))
        if not found:
            raise rows.no_dead_letter(dead_id)
        return _letter(found[0])

    async def redrive(self, dead_id: str, *, payload: bytes | None = None) -> None:
        """See `DeadLetterSource.redrive`. `not_found` also where the consumer is no more."""
        number, now_ms = _number("dead_id", dead_id), self._clock.now_ms()
        await self._database.write(lambda tx: self._redrive(tx, number, dead_id, payload, now_ms))

    async def purge(self, dead_ids: list[str]) -> int:
        """See `DeadLetterSource.purge`."""
        numbers = [(_number("dead_id", one), self._namespace) for one in dead_ids]
        sql = "DELETE FROM bus_dead WHERE id = ? AND namespace = ? RETURNING id"
        return len(await self._database.write(lambda tx: tx.executemany(sql, numbers), essential=True))

    def _list(self, tx: Transaction, queue: str | None, after: int, limit: int) -> DeadLetterPage:
        if queue is not None and not self._is_known(tx, queue):
            raise NotFound(f"queue: no consumer of the bus is named {queue!r}", reason="queue_not_found")
        where = "namespace = :namespace AND id > :after" + (" AND queue = :queue" if queue is not None else "")
        values: dict[str, str | int | None] = {
            "namespace": self._namespace,
            "after": after,
            "queue": queue,
            "limit": limit + 1,
        }
        found = tx.execute(f"SELECT {_COLUMNS} FROM bus_dead WHERE {where} ORDER BY id LIMIT :limit", values)
        more = len(found) > limit
        items = [_letter(row) for row in found[:limit]]
        return DeadLetterPage(items=items, cursor=items[-1].id if more else None)

    def _is_known(self, tx: Transaction, queue: str) -> bool:
        values = {"namespace": self._namespace, "queue": queue}
        return bool(
            tx.execute("SELECT 1 FROM bus_consumers WHERE namespace = :namespace AND name = :queue", values)
            or tx.execute("SELECT 1 FROM bus_dead WHERE namespace = :namespace AND queue = :queue LIMIT 1", values)
        )

    def _redrive(self, tx: Transaction, number: int, dead_id: str, payload: bytes | None, now_ms: int) -> None:
        found = tx.execute(
            "DELETE FROM bus_dead WHERE id = ? AND namespace = ? RETURNING queue, store, subject, message_id, headers, "
            "priority, stored_at, redrives, payload",
            (number, self._namespace),
        )
        if not found:
            raise rows.no_dead_letter(dead_id)
        queue, store, subject, message_id, headers, priority, stored_at, redrives, old = found[0]
        consumer = tx.execute("SELECT id FROM bus_consumers WHERE namespace = ? AND name = ?", (self._namespace, queue))
        if not consumer:
            raise NotFound(f"queue: the consumer {queue!r} is no more; subscribe under its name, then redrive")
        values = (
            store, subject, message_id, headers, priority, stored_at, redrives + 1, old if payload is None else payload,
        )  # fmt: skip
        message = tx.execute(
            "INSERT INTO bus_log (store, subject, message_id, headers, priority, stored_at, redrives, hidden, payload) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?) RETURNING id",
            values,
        )[0][0]
        tx.execute("UPDATE bus_stores SET kept = kept + 1 WHERE id = ?", (store,))
        entry = rows.Entry(message, rows.urgency(priority), 0)
        rows.put_back(tx, consumer[0][0], entry, now_ms)


def _letter(row: tuple[Any, ...]) -> DeadLetter:
    number, queue, subject, message_id, headers, reason, error, attempts, redrives, stored_at, died_at, payload = row
    carried = rows.headers_in_use(headers)
    return DeadLetter(
        id=str(number),
        queue=queue,
        message_id=message_id,
        payload=payload,
        headers={**carried, SUBJECT_HEADER: subject},
        reason=reason,
        error=None if error is None else msgspec.json.decode(error, type=ErrorRecord),
        attempts=attempts,
        redrives=redrives,
        enqueued_at=stored_at,
        died_at=died_at,
        trace=carried.get("traceparent", ""),
    )


def _number(field: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        if field == "dead_id":
            raise rows.no_dead_letter(text)
        raise InvalidArgument(f"{field}: {text!r} is not one that a page gave; leave it out to begin")
    return int(text)


def _conforms(source: EmbeddedDeadLetters) -> DeadLetterSource:
    return source
