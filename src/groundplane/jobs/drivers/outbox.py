"""The outbox of the embedded store: messages written with the job that causes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from groundplane.backends.sqlite import Database, Transaction
from groundplane.jobs.drivers.file_unit import FileUnit
from groundplane.jobs.drivers.unit import Scope, pack
from groundplane.jobs.port import OutboxMessage

_unpack_headers = msgspec.msgpack.Decoder(dict[str, str]).decode


@runtime_checkable
class FileQueues(Protocol):
    """Queues that live in an SQLite file, perhaps in that of the jobs."""

    native: Database

    def send_within(self, tx: Transaction, messages: Sequence[OutboxMessage]) -> None:
        """Append the messages in this transaction, dropping repeats. Raises as sending does."""
        ...


def insert(unit: FileUnit, messages: Iterable[OutboxMessage], lease_ms: int = 0) -> list[int]:
    """Write messages that are due at once, and ring; or that are leased, without. Their numbers."""
    until = unit.now + lease_ms if lease_ms else 0
    numbers = []
    for one in messages:
        rows = unit.tx.execute(
            "INSERT INTO job_outbox (namespace, leased_until, queue, message_id, payload, headers, dedup_key) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (unit.scope.number, until, one.queue, one.id, one.payload, pack(one.headers), one.dedup_key),
        )
        numbers.append(rows[0][0])
    if numbers and not lease_ms:
        unit.tx.wake(unit.scope.topic("outbox"))
    return numbers


def any_due(tx: Transaction, scope: Scope, now: int) -> bool:
    """Whether `take` would find a message."""
    return bool(
        tx.execute(
            "SELECT 1 FROM job_outbox WHERE namespace = ? AND held = 0 AND leased_until <= ? LIMIT 1",
            (scope.number, now),
        )
    )


def take(unit: FileUnit, limit: int, lease_ms: int) -> list[tuple[int, OutboxMessage]]:
    """Due messages, oldest first, leased."""
    rows = unit.tx.execute(
        "SELECT id, queue, message_id, payload, headers, dedup_key, leased_until FROM job_outbox "
        "WHERE namespace = ? AND held = 0 AND leased_until <= ? ORDER BY id LIMIT ?",
        (unit.scope.number, unit.now, limit),
    )
    until = unit.now + lease_ms
    if rows:
        unit.tx.executemany("UPDATE job_outbox SET leased_until = ? WHERE id = ?", [(until, row[0]) for row in rows])
    return [
        (
            row[0],
            OutboxMessage(
                queue=row[1],
                id=row[2],
                payload=row[3],
                headers=_unpack_headers(row[4]),
                dedup_key=row[5],
                taken_before=row[6] > 0,
            ),
        )
        for row in rows
    ]


def done(unit: FileUnit, ids: Sequence[int]) -> None:
    """Delete what was sent."""
    unit.tx.executemany(
        "DELETE FROM job_outbox WHERE id = ? AND namespace = ?", [(one, unit.scope.number) for one in ids]
    )
