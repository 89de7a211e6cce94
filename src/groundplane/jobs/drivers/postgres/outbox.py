"""The outbox: messages that were written with the change that causes them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from groundplane.backends.postgres import Database, Statement
from groundplane.jobs.drivers.postgres.applying import CLOCK
from groundplane.jobs.drivers.unit import Scope
from groundplane.jobs.port import OutboxMessage

_unpack_headers = msgspec.msgpack.Decoder(dict[str, str]).decode
_UNSYNCED: Statement = ("SELECT set_config('synchronous_commit', 'off', true)", ())


async def take(
    database: Database, scope: Scope, now: int | None, limit: int, lease_ms: int
) -> list[tuple[int, OutboxMessage]]:
    """Due messages, oldest first, leased. What others are taking is passed over.

    The lease is durable: what was taken may have been sent, and must be known to be a repeat.
    """
    rows = await database.query(
        _take(database.schema), {"namespace": scope.number, "now": now, "limit": limit, "lease": lease_ms}
    )
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
        for row in sorted(rows)
    ]


async def done(database: Database, scope: Scope, ids: Sequence[int]) -> None:
    """Delete what was sent. A crash of the server may forget it; the message is then sent again under the same key."""
    await database.query_all(
        [
            _UNSYNCED,
            (
                f"DELETE FROM {database.schema}.job_outbox WHERE id = ANY(%s) AND namespace = %s",
                (list(ids), scope.number),
            ),
        ]
    )


@functools.cache
def _take(schema: str) -> str:
    return f"""
        WITH clock AS (SELECT coalesce(%(now)s::bigint, {CLOCK}) AS now),
        due AS (
          SELECT id, leased_until FROM {schema}.job_outbox
          WHERE namespace = %(namespace)s AND NOT held AND leased_until <= (SELECT now FROM clock)
          ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
        UPDATE {schema}.job_outbox AS one SET leased_until = clock.now + %(lease)s FROM due, clock
        WHERE one.id = due.id
        RETURNING one.id, one.queue, one.message_id, one.payload, one.headers, one.dedup_key,
          due.leased_until"""
