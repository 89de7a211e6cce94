"""The rows of one bucket: what each call does inside its transaction. Every function runs in the writer's thread or in
a reader's, and has effects through its transaction alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from groundplane.backends.sqlite import Row, Transaction
from groundplane.core.fencing import Fence, term_old
from groundplane.kv.port import TOMBSTONES_KEPT_S, BucketOptions, Entry, Write, WriteKind
from groundplane.kv.refusals import missing_bucket, refused

PUT, DELETED, EXPIRED = 0, 1, 2
SWEPT_AT_ONCE = 100

_LIVE: Final = "kind = 0 AND (expires_at IS NULL OR expires_at > ?)"


class Bucket(NamedTuple):
    """The row of a bucket."""

    bucket_id: int
    history: int
    ttl: int
    revision: int


def topic_of(bucket_id: int) -> str:
    """What listeners of a bucket's writes are rung by."""
    return f"kv/{bucket_id}"


def find_bucket(tx: Transaction, options: BucketOptions) -> Bucket | None:
    """The bucket; None where it is to be made, or keeps less than these options want."""
    rows = tx.execute(
        "SELECT bucket_id, history, ttl, revision FROM kv_buckets WHERE (namespace, name) = (?, ?)",
        (options.namespace, options.bucket),
    )
    if not rows and not options.create:
        raise missing_bucket(options)
    bucket = Bucket(*rows[0]) if rows else None
    return None if bucket is None or bucket.history < options.history or bucket.ttl < options.ttl else bucket


def make_bucket(tx: Transaction, options: BucketOptions) -> Bucket:
    """Make the bucket, or let it keep more."""
    rows = tx.execute(
        "INSERT INTO kv_buckets (namespace, name, history, ttl) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (namespace, name) DO UPDATE "
        "SET history = max(history, excluded.history), ttl = max(ttl, excluded.ttl) "
        "RETURNING bucket_id, history, ttl, revision",
        (options.namespace, options.bucket, options.history, int(options.ttl)),
    )
    return Bucket(*rows[0])


def read_entries(tx: Transaction, bucket_id: int, keys: Sequence[str], now: int) -> dict[str, Entry]:
    """The live entries of these keys."""
    sql = f"SELECT value, revision, created_at FROM kv_entries WHERE bucket_id = ? AND key = ? AND {_LIVE}"
    found = ((key, row) for key in keys for row in tx.execute(sql, (bucket_id, key, now)))
    return {key: _entry(key, *row) for key, row in found}


def read_keys(tx: Transaction, bucket_id: int, prefix: str, cursor: str | None, limit: int, now: int) -> list[str]:
    """Live keys in order."""
    low, strictly = (cursor, ">") if cursor is not None and cursor >= prefix else (prefix, ">=")
    bound, last = _bounded(prefix)
    rows = tx.execute(
        f"SELECT key FROM kv_entries WHERE bucket_id = ? AND key {strictly} ?{bound} AND {_LIVE} ORDER BY key LIMIT ?",
        (bucket_id, low, *last, now, limit),
    )
    return [row[0] for row in rows]


def read_history(tx: Transaction, bucket_id: int, key: str, limit: int, now: int) -> list[Entry]:
    """The values that are kept, newest first."""
    columns = "value, revision, created_at"
    rows = tx.execute(
        f"SELECT {columns} FROM kv_entries WHERE bucket_id = ? AND key = ? AND {_LIVE} UNION ALL "
        f"SELECT {columns} FROM kv_older WHERE bucket_id = ? AND key = ? AND {_LIVE} ORDER BY revision DESC LIMIT ?",
        (bucket_id, key, now, bucket_id, key, now, limit),
    )
    return [_entry(key, *row) for row in rows]


def read_sizes(tx: Transaction, bucket_id: int, now: int) -> Row:
    """Live keys, bytes of all values that are kept, last revision."""
    [sizes] = tx.execute(
        f"SELECT (SELECT count(*) FROM kv_entries WHERE bucket_id = b.bucket_id AND {_LIVE}), "
        "(SELECT ifnull(sum(length(value)), 0) FROM kv_entries WHERE bucket_id = b.bucket_id) + "
        "(SELECT ifnull(sum(length(value)), 0) FROM kv_older WHERE bucket_id = b.bucket_id), "
        "b.revision, b.history, b.ttl FROM kv_buckets AS b WHERE b.bucket_id = ?",
        (now, bucket_id),
    )
    return sizes


def read_changes(
    tx: Transaction, bucket_id: int, selection: tuple[str | None, str], after: int, limit: int
) -> tuple[list[Row], int]:
    """Rows (key, kind, value, revision, expires_at) of the selection after a revision, and the bucket's last one."""
    key, prefix = selection
    where, chosen = (" AND key = ?", (key,)) if key is not None else _prefixed(prefix)
    rows = tx.execute(
        "SELECT key, kind, value, revision, expires_at FROM kv_entries "
        f"WHERE bucket_id = ? AND revision > ?{where} ORDER BY revision LIMIT ?",
        (bucket_id, after, *chosen, limit),
    )
    return rows, last_revision(tx, bucket_id)


def last_revision(tx: Transaction, bucket_id: int) -> int:
    """The revision of the last write to the bucket."""
    revision: int = tx.execute("SELECT revision FROM kv_buckets WHERE bucket_id = ?", (bucket_id,))[0][0]
    return revision


def next_expiry(tx: Transaction, bucket_id: int) -> int | None:
    """When the next value expires, in Unix ms."""
    sql = "SELECT min(expires_at) FROM kv_entries WHERE bucket_id = ? AND expires_at IS NOT NULL"
    due: int | None = tx.execute(sql, (bucket_id,))[0][0]
    return due


def write_all(tx: Transaction, bucket_id: int, writes: Sequence[Write], fence: Fence | None, now: int) -> list[int]:
    """Check the fence and every condition, and write. What it raises undoes all of it."""
    [(history, first)] = tx.execute("SELECT history, revision FROM kv_buckets WHERE bucket_id = ?", (bucket_id,))
    _check_term(tx, bucket_id, fence)
    revision, revisions = first + expire(tx, bucket_id, now, first), []
    for write in writes:
        done = _write(tx, bucket_id, write, history, revision + 1, now)
        revision += done
        revisions.append(revision if done else 0)
    if revision != first:
        _advance(tx, bucket_id, revision)
    return revisions


def clear(tx: Transaction, bucket_id: int, prefix: str, limit: int, now: int) -> int:
    """Delete up to `limit` keys that begin with `prefix`."""
    keys = read_keys(tx, bucket_id, prefix, None, limit, now)
    writes = [Write(kind=WriteKind.DELETE, key=key) for key in keys]
    return sum(revision > 0 for revision in write_all(tx, bucket_id, writes, None, now))


def sweep(tx: Transaction, bucket_id: int, now: int) -> int:
    """Tell watches of what has expired; how many keys."""
    revision = last_revision(tx, bucket_id)
    count = expire(tx, bucket_id, now, revision)
    if count:
        _advance(tx, bucket_id, revision + count)
    return count


def expire(tx: Transaction, bucket_id: int, now: int, revision: int) -> int:
    """Turn values that have expired into removals with the revisions after `revision`; how many."""
    due = tx.execute(
        "SELECT key FROM kv_entries WHERE bucket_id = ? AND expires_at <= ? ORDER BY expires_at LIMIT ?",
        (bucket_id, now, SWEPT_AT_ONCE),
    )
    for count, (key,) in enumerate(due, start=1):
        _remove(tx, bucket_id, key, EXPIRED, revision + count, now)
        _forget_older(tx, bucket_id, key)
    return len(due)


def forget_removals(tx: Transaction, bucket_id: int, now: int) -> int:
    """Delete what is left of keys that were removed long ago; how many."""
    old = tx.execute(
        "SELECT key FROM kv_entries WHERE bucket_id = ? AND kind <> 0 AND created_at < ? LIMIT ?",
        (bucket_id, now - TOMBSTONES_KEPT_S * 1000, SWEPT_AT_ONCE),
    )
    for (key,) in old:
        tx.execute("DELETE FROM kv_entries WHERE bucket_id = ? AND key = ?", (bucket_id, key))
        _forget_older(tx, bucket_id, key)
    return len(old)


def _write(tx: Transaction, bucket_id: int, write: Write, history: int, revision: int, now: int) -> bool:
    """Whether it changed anything."""
    key = write.key
    rows = tx.execute(
        "SELECT revision, kind, expires_at FROM kv_entries WHERE bucket_id = ? AND key = ?", (bucket_id, key)
    )
    gone = any(until is not None and until <= now for _, _, until in rows)
    live = next((was for was, kind, _ in rows if kind == PUT and not gone), 0)
    refusal = refused(write, live)
    if refusal is not None:
        raise refusal
    alone = write.ttl_s is not None or write.kind is WriteKind.PURGE or gone
    if rows and history > 1:
        if alone:
            _forget_older(tx, bucket_id, key)
        elif live or write.kind is WriteKind.PUT:
            _keep_older(tx, bucket_id, key, history)
    if write.kind is WriteKind.PUT:
        _put(tx, bucket_id, write, revision, now)
    elif live:
        _remove(tx, bucket_id, key, DELETED, revision, now)
    return write.kind is WriteKind.PUT or live > 0


def _put(tx: Transaction, bucket_id: int, write: Write, revision: int, now: int) -> None:
    until = None if write.ttl_s is None else now + round(write.ttl_s * 1000) + 1  # `now` was rounded down: never early
    tx.execute(
        "INSERT INTO kv_entries (bucket_id, key, revision, kind, value, created_at, expires_at) "
        "VALUES (?, ?, ?, 0, ?, ?, ?) ON CONFLICT (bucket_id, key) DO UPDATE SET revision = excluded.revision, "
        "kind = 0, value = excluded.value, created_at = excluded.created_at, expires_at = excluded.expires_at",
        (bucket_id, write.key, revision, write.value, now, until),
    )


def _remove(tx: Transaction, bucket_id: int, key: str, kind: int, revision: int, now: int) -> None:
    tx.execute(
        "UPDATE kv_entries SET revision = ?, kind = ?, value = x'', created_at = ?, expires_at = NULL "
        "WHERE bucket_id = ? AND key = ?",
        (revision, kind, now, bucket_id, key),
    )


def _keep_older(tx: Transaction, bucket_id: int, key: str, history: int) -> None:
    tx.execute(
        "INSERT INTO kv_older SELECT * FROM kv_entries WHERE bucket_id = ? AND key = ?",
        (bucket_id, key),
    )
    tx.execute(
        "DELETE FROM kv_older WHERE bucket_id = ? AND key = ? AND revision <= (SELECT revision FROM kv_older "
        "WHERE bucket_id = ? AND key = ? ORDER BY revision DESC LIMIT 1 OFFSET ?)",
        (bucket_id, key, bucket_id, key, history - 1),
    )


def _forget_older(tx: Transaction, bucket_id: int, key: str) -> None:
    tx.execute("DELETE FROM kv_older WHERE bucket_id = ? AND key = ?", (bucket_id, key))


def _check_term(tx: Transaction, bucket_id: int, fence: Fence | None) -> None:
    if fence is None:
        return
    seen = tx.execute("SELECT term FROM kv_fences WHERE (bucket_id, name) = (?, ?)", (bucket_id, fence.name))
    if seen and seen[0][0] > fence.term:
        raise term_old(fence, seen[0][0])
    if not seen or seen[0][0] < fence.term:
        tx.execute(
            "INSERT INTO kv_fences (bucket_id, name, term) VALUES (?, ?, ?) "
            "ON CONFLICT (bucket_id, name) DO UPDATE SET term = excluded.term",
            (bucket_id, fence.name, fence.term),
        )


def _advance(tx: Transaction, bucket_id: int, revision: int) -> None:
    tx.execute("UPDATE kv_buckets SET revision = ? WHERE bucket_id = ?", (revision, bucket_id))
    tx.wake(topic_of(bucket_id))


def _bounded(prefix: str) -> tuple[str, tuple[str, ...]]:
    """The end of the range of keys that begin with a prefix, as SQL and its bindings: none where it has no end."""
    stem = prefix.rstrip(chr(0x10FFFF))
    if not stem:
        return "", ()
    following = ord(stem[-1]) + 1
    return " AND key < ?", (stem[:-1] + chr(0xE000 if following == 0xD800 else following),)


def _prefixed(prefix: str) -> tuple[str, tuple[str, ...]]:
    bound, last = _bounded(prefix)
    return f" AND key >= ?{bound}", (prefix, *last)


def _entry(key: str, value: bytes, revision: int, created_at: int) -> Entry:
    return Entry(key=key, value=value, revision=revision, created_at=created_at)
