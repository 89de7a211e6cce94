"""The outbox: messages written with the change that causes them, and those parked for paused jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from groundplane.backends.sqlite import Database, Transaction
from groundplane.jobs.drivers.unit import Scope, Unit, pack
from groundplane.jobs.port import OutboxMessage

_unpack_headers = msgspec.msgpack.Decoder(dict[str, str]).decode


@runtime_checkable
class FileQueues(Protocol):
    """Queues that live in an SQLite file, perhaps in that of the jobs."""

    native: Database

    def send_within(self, tx: Transaction, messages: Sequence[OutboxMessage]) -> None:
        """Append the messages in this transaction, dropping repeats. Raises as sending does."""
        ...


def insert(unit: Unit, messages: Iterable[OutboxMessage], lease_ms: int = 0) -> list[int]:
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


def take(unit: Unit, limit: int, lease_ms: int) -> list[tuple[int, OutboxMessage]]:
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


def done(unit: Unit, ids: Sequence[int]) -> None:
    """Delete what was sent."""
    unit.tx.executemany(
        "DELETE FROM job_outbox WHERE id = ? AND namespace = ?", [(one, unit.scope.number) for one in ids]
    )


def park(unit: Unit, one: OutboxMessage, seq: int, pauses: int, *, held: bool) -> bool:
    """Hold an envelope for a paused job; for one that goes on, send it at once. Whether it was not parked before.

    It was sent to its queue before, so its key is one of the pause's own: the queue would drop a repeat of the first.
    Parking it twice in one pause (a redelivery) keeps one.
    """
    unit.tx.execute(
        "INSERT OR IGNORE INTO job_outbox (namespace, parked_for, held, queue, message_id, payload, headers, dedup_key)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            unit.scope.number,
            seq,
            held,
            one.queue,
            one.id,
            one.payload,
            pack(one.headers),
            f"{one.dedup_key}:resume-{pauses}",
        ),
    )
    fresh = unit.tx.changes() > 0
    if fresh and held:
        unit.event(seq, "parked", {"state": "paused", "envelope_id": one.id, "actor": one.queue})
    if not held:
        unit.tx.wake(unit.scope.topic("outbox"))
    return fresh


def release(unit: Unit, seq: int) -> None:
    """The job was resumed: what was parked is due."""
    unit.tx.execute("UPDATE job_outbox SET held = 0 WHERE parked_for = ? AND held = 1", (seq,))
    unit.tx.wake(unit.scope.topic("outbox"))
