"""Envelopes that are parked in the outbox for paused jobs."""

from __future__ import annotations

from groundplane.jobs.drivers.unit import Steps, Unit, pack
from groundplane.jobs.port import OutboxMessage


def park(unit: Unit, one: OutboxMessage, seq: int, pauses: int, *, held: bool) -> Steps[bool]:
    """Hold an envelope for a paused job; for one that goes on, send it at once. Whether it was not parked before.

    It was sent to its queue before, so its key is one of the pause's own: the queue would drop a repeat of the first.
    Parking it twice in one pause (a redelivery) keeps one.
    """
    rows = yield (
        "INSERT INTO job_outbox (namespace, parked_for, held, queue, message_id, payload, headers, dedup_key) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id",
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
    fresh = bool(rows)
    if fresh and held:
        unit.event(seq, "parked", {"state": "paused", "envelope_id": one.id, "actor": one.queue})
    if not held:
        unit.ring_outbox()
    return fresh


def release(unit: Unit, seq: int) -> None:
    """The job was resumed: what was parked is due."""
    unit.tell("UPDATE job_outbox SET held = FALSE WHERE parked_for = ? AND held = TRUE", (seq,))
    unit.ring_outbox()
