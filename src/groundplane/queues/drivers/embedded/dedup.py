"""Keys that were sent, kept for the window of de-duplication in buckets of time.

Keys that begin with a UUIDv7 are inserted beside each other, old buckets lie together: `docs/adr/0022` has the numbers.
"""

from __future__ import annotations

import hashlib

from groundplane.backends.sqlite import Transaction
from groundplane.queues.port import DEDUP_WINDOW_S

_WINDOW_MS = int(DEDUP_WINDOW_S * 1000)
_BUCKET_MS = _WINDOW_MS // 2
_KEY_MAX = 128
_PURGE_EVERY = 64
_PURGED_AT_ONCE = 2 * _PURGE_EVERY

_REMEMBER = (
    "INSERT INTO queue_dedup SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM queue_dedup "
    "WHERE bucket IN (?1 - 2, ?1 - 1, ?1, ?1 + 1) AND queue = ?2 AND key = ?3 AND sent_at > ?5)"
)
_PURGE = (
    "DELETE FROM queue_dedup WHERE (bucket, queue, key) IN "
    "(SELECT bucket, queue, key FROM queue_dedup WHERE bucket < ? ORDER BY bucket, queue, key LIMIT ?)"
)


class Dedup:
    """Remembers keys, and forgets twice as many old ones as it learns, a few at a time."""

    def __init__(self) -> None:
        self._learnt = 0

    def is_new(self, tx: Transaction, queue: int, key: str, now_ms: int) -> bool:
        """Remember `key`; False when the queue had it within the window."""
        bucket = now_ms // _BUCKET_MS
        tx.execute(_REMEMBER, (bucket, queue, _short(key), now_ms, now_ms - _WINDOW_MS))
        if not tx.changes():
            return False
        self._learnt += 1
        if self._learnt % _PURGE_EVERY == 0:
            tx.execute(_PURGE, (bucket - 2, _PURGED_AT_ONCE))
        return True


def _short(key: str) -> str:
    if len(key) <= _KEY_MAX:
        return key
    return "#" + hashlib.blake2b(key.encode(), digest_size=24).hexdigest()
