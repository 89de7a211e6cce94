"""The statements that append, hand out and take back messages. Everything here runs inside one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from groundplane.backends.sqlite import Transaction
from groundplane.core.errors import ErrorRecord, NotFound, ResourceExhausted
from groundplane.queues.drivers.embedded.dedup import Dedup
from groundplane.queues.port import OutgoingMessage

_QUEUE_SHIFT = 41
_IN_TURN = 1 << 40
AT_ONCE = 0
"""When a message is due that was handed back: before all others, in its old order."""

_encode_headers = msgspec.msgpack.Encoder().encode
_decode_headers = msgspec.msgpack.Decoder(dict[str, str]).decode
_encode_error = msgspec.msgpack.Encoder().encode
_decode_error = msgspec.msgpack.Decoder(ErrorRecord).decode


class Held(NamedTuple):
    """A message as it is handed out. `id` names this handing-over."""

    id: int
    message_id: str
    headers: bytes | None
    attempt: int
    enqueued_at: int
    redrives: int
    payload: bytes


class Claimed(NamedTuple):
    """What a claim found: the messages, the ranges of ids that hold them, and when the next delayed one is due."""

    messages: list[Held]
    ranges: list[tuple[int, int]]
    due_at: int | None


def topic(queue: int) -> str:
    """What is rung when the queue has something new for its consumers."""
    return f"queue.{queue}"


def in_turn(queue: int, number: int) -> int:
    """The id of the message that was appended as the `number`-th."""
    return queue << _QUEUE_SHIFT | _IN_TURN + number


def retaken(queue: int, number: int) -> int:
    """The id of the `number`-th message that was taken out of `queue_waiting`; less than every id in turn."""
    return queue << _QUEUE_SHIFT | number


def queue_of(held_id: int) -> int:
    """The queue that an id belongs to."""
    return held_id >> _QUEUE_SHIFT


def headers_at_rest(headers: dict[str, str]) -> bytes | None:
    return _encode_headers(headers) if headers else None


def headers_of(stored: bytes | None) -> dict[str, str]:
    return _decode_headers(stored) if stored else {}


def error_at_rest(error: ErrorRecord | None) -> bytes | None:
    return None if error is None else _encode_error(error)


def error_of(stored: bytes | None) -> ErrorRecord | None:
    return None if stored is None else _decode_error(stored)


_INTO_DEAD = (
    "INSERT INTO queue_dead "
    "(queue, message_id, headers, reason, error, attempts, redrives, enqueued_at, died_at, payload)"
)
_RESERVE = (
    "UPDATE queues SET last = last + ?, waiting = waiting + ? WHERE namespace = ? AND name = ? "
    "RETURNING id, last, cursor, waiting, attempts_max, depth_max"
)
_CORRECT = "UPDATE queues SET last = last - ?, waiting = waiting - ? WHERE id = ?"
_APPEND = "INSERT INTO queue_messages VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, ?)"
_DELAY = (
    "INSERT INTO queue_waiting (queue, due_at, position, message_id, headers, attempt, enqueued_at, redrives, payload) "
    "VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?)"
)


def send(
    tx: Transaction,
    namespace: str,
    messages: Sequence[OutgoingMessage],
    now_ms: int,
    dedup: Dedup,
    *,
    early: bool = True,
) -> None:
    """Append messages of any queues in their order; repeats of a `dedup_key` are dropped. `early`: see `wake`.

    For what is not urgent nobody is rung: the safety poll of the listeners finds it.
    """
    by_queue: dict[str, list[OutgoingMessage]] = {}
    for message in messages:
        by_queue.setdefault(message.queue, []).append(message)
    for name, group in by_queue.items():
        queue = _send_to(tx, namespace, name, group, now_ms, dedup)
        if any(message.urgent for message in group):
            tx.wake(topic(queue), early=early)


def _send_to(
    tx: Transaction, namespace: str, name: str, group: list[OutgoingMessage], now_ms: int, dedup: Dedup
) -> int:
    delayed = sum(message.delay_s > 0 for message in group)
    prompt = len(group) - delayed
    found = tx.execute(_RESERVE, (prompt, delayed, namespace, name))
    if not found:
        raise missing(name)
    queue, last, cursor, waiting, attempts_max, depth_max = found[0]
    number = last - prompt
    _check_depth(tx, name, queue, cursor, last - cursor + waiting, depth_max)
    appended, put_off = [], []
    for message in group:
        if message.dedup_key is not None and not dedup.is_new(tx, queue, message.dedup_key, now_ms):
            continue
        if message.attempt > attempts_max:
            _bury_unsent(tx, queue, message, now_ms)
            continue
        rest = (message.id, headers_at_rest(message.headers), message.attempt, now_ms, 0, message.payload)
        if message.delay_s > 0:
            put_off.append((queue, now_ms + round(message.delay_s * 1000), *rest))
        else:
            number += 1
            appended.append((in_turn(queue, number), *rest))
    if len(appended) + len(put_off) < len(group):
        tx.execute(_CORRECT, (prompt - len(appended), delayed - len(put_off), queue))
    if appended:
        tx.executemany(_APPEND, appended)
    if put_off:
        tx.executemany(_DELAY, put_off)
    return int(queue)


def append_again(
    tx: Transaction,
    queue: int,
    *,
    message_id: str,
    headers: bytes | None,
    enqueued_at: int,
    redrives: int,
    payload: bytes,
) -> None:
    """Append a message that came back from the dead: attempt 1, its first time of sending kept."""
    name, last, cursor, waiting, depth_max = tx.execute(
        "UPDATE queues SET last = last + 1 WHERE id = ? RETURNING name, last, cursor, waiting, depth_max", (queue,)
    )[0]
    _check_depth(tx, name, queue, cursor, last - cursor + waiting, depth_max)
    tx.execute(_APPEND, (in_turn(queue, last), message_id, headers, 1, enqueued_at, redrives, payload))
    tx.wake(topic(queue), early=True)


def missing(name: str) -> NotFound:
    """The error of a queue that was not declared."""
    return NotFound(
        f"queue: {name!r} does not exist; declare it first, or mend the name",
        reason="queue_not_found",
        details={"queue": name},
    )


def _check_depth(tx: Transaction, name: str, queue: int, cursor: int, idle: int, depth_max: int) -> None:
    """`idle` are ready and waiting, the new ones included. What is in flight is counted only where it may matter."""
    if 2 * idle <= depth_max:
        return
    depth = idle if idle > depth_max else idle + in_flight(tx, queue, cursor)
    if depth > depth_max:
        raise ResourceExhausted(
            f"depth_max: queue {name!r} would hold more than its {depth_max} messages; "
            "wait until its consumers have caught up, or declare it with a larger depth_max",
            reason="queue_full",
            details={"queue": name, "depth_max": depth_max},
        )


def in_flight(tx: Transaction, queue: int, cursor: int) -> int:
    """Messages that were handed out and not settled."""
    sql = "SELECT count(*) FROM queue_messages WHERE id BETWEEN ? AND ?"
    return int(tx.execute(sql, (retaken(queue, 0), in_turn(queue, cursor)))[0][0])


def _bury_unsent(tx: Transaction, queue: int, message: OutgoingMessage, now_ms: int) -> None:
    headers, attempts = headers_at_rest(message.headers), message.attempt - 1
    values = (queue, message.id, headers, "attempts_exhausted", None, attempts, 0, now_ms, now_ms, message.payload)
    tx.execute(f"{_INTO_DEAD} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


_STATE = (
    "SELECT last, cursor, retaken, waiting, EXISTS (SELECT 1 FROM queue_sessions WHERE id = ?) FROM queues WHERE id = ?"
)
_DUE = (
    "SELECT id, position, message_id, headers, attempt, enqueued_at, redrives, error, payload FROM queue_waiting "
    "WHERE queue = ? AND due_at <= ? ORDER BY due_at, position, id LIMIT ?"
)
_RETAKE = "INSERT INTO queue_messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_READY = (
    "SELECT id, message_id, headers, attempt, enqueued_at, redrives, payload FROM queue_messages "
    "WHERE id BETWEEN ? AND ? ORDER BY id"
)
_HOLD = "INSERT OR REPLACE INTO queue_claims VALUES (?, ?, ?, ?)"


def claim(tx: Transaction, queue: int, session: int, slots: tuple[int, int], limit: int, now_ms: int) -> Claimed | None:
    """Hand out up to `limit` messages to a session: what is due first, then in turn. None: the session is no more."""
    last, cursor, count, waiting, alive = tx.execute(_STATE, (session, queue))[0]
    if not alive:
        return None
    held: list[Held] = []
    ranges: list[tuple[int, int]] = []
    if waiting:
        held = _retake(tx, queue, count, limit, now_ms)
        if held:
            ranges.append((held[0].id, held[-1].id))
    ready = min(limit - len(held), last - cursor)
    if ready > 0:
        turn = (in_turn(queue, cursor + 1), in_turn(queue, cursor + ready))
        held += map(Held._make, tx.execute(_READY, turn))
        ranges.append(turn)
        tx.execute("UPDATE queues SET cursor = cursor + ? WHERE id = ?", (ready, queue))
    for slot, (first, final) in zip(slots, ranges, strict=False):
        tx.execute(_HOLD, (session, slot, first, final))
    return Claimed(held, ranges, _next_due(tx, queue) if waiting and len(held) < limit else None)


def _retake(tx: Transaction, queue: int, count: int, limit: int, now_ms: int) -> list[Held]:
    due = tx.execute(_DUE, (queue, now_ms, limit))
    if not due:
        return []
    ids = [retaken(queue, count + n) for n in range(1, len(due) + 1)]
    tx.executemany("DELETE FROM queue_waiting WHERE id = ?", [(row[0],) for row in due])
    tx.executemany(
        _RETAKE,
        [(i, m, h, a, e, r, p, err, body) for i, (_, p, m, h, a, e, r, err, body) in zip(ids, due, strict=True)],
    )
    tx.execute(
        "UPDATE queues SET retaken = retaken + ?, waiting = waiting - ? WHERE id = ?", (len(due), len(due), queue)
    )
    return [Held(i, m, h, a, e, r, body) for i, (_, _, m, h, a, e, r, _, body) in zip(ids, due, strict=True)]


def _next_due(tx: Transaction, queue: int) -> int | None:
    due: int | None = tx.execute("SELECT min(due_at) FROM queue_waiting WHERE queue = ?", (queue,))[0][0]
    return due


_BURY_WORN = (
    f"{_INTO_DEAD} SELECT :queue, message_id, headers, 'attempts_exhausted', coalesce(:error, error), attempt, "
    "redrives, enqueued_at, :now, payload FROM queue_messages WHERE id BETWEEN :first AND :last "
    "AND attempt >= (SELECT attempts_max FROM queues WHERE id = :queue) ORDER BY id"
)
_WAIT = (
    "INSERT INTO queue_waiting "
    "(queue, due_at, position, message_id, headers, attempt, enqueued_at, redrives, error, payload) "
    "SELECT :queue, :due, coalesce(position, id), message_id, headers, attempt + :raised, enqueued_at, redrives, "
    "coalesce(:error, error), payload FROM queue_messages WHERE id BETWEEN :first AND :last "
)
_WAIT_UNWORN = "AND attempt < (SELECT attempts_max FROM queues WHERE id = :queue) ORDER BY id"
_LET_GO = "DELETE FROM queue_messages WHERE id BETWEEN :first AND :last"


def give_back(
    tx: Transaction,
    first: int,
    last: int,
    now_ms: int,
    *,
    counts: bool,
    due_at: int = AT_ONCE,
    error: bytes | None = None,
) -> int:
    """Return to its queue whatever is still held of the ids `first` to `last`; how many there were.

    With `counts` the attempt is raised, and what has none left becomes a dead letter.
    """
    queue = queue_of(first)
    where = {"queue": queue, "first": first, "last": last, "error": error}
    if counts:
        tx.execute(_BURY_WORN, {**where, "now": now_ms})
    wait = _WAIT + (_WAIT_UNWORN if counts else "ORDER BY id")
    tx.execute(wait, {**where, "due": due_at, "raised": int(counts)})
    returned = tx.changes()
    tx.execute(_LET_GO, {"first": first, "last": last})
    gone = tx.changes()
    if returned:
        tx.execute("UPDATE queues SET waiting = waiting + ? WHERE id = ?", (returned, queue))
        tx.wake(topic(queue), early=True)
    return gone


def acknowledge(tx: Transaction, ids: Sequence[int]) -> list[int]:
    """Delete settled messages; the ids that were not there."""
    if len(ids) == 1:
        tx.execute("DELETE FROM queue_messages WHERE id = ?", ids)
        return [] if tx.changes() else list(ids)
    deleted = tx.executemany("DELETE FROM queue_messages WHERE id = ? RETURNING id", [(i,) for i in ids])
    return [] if len(deleted) == len(ids) else sorted({*ids} - {row[0] for row in deleted})


_BURY = (
    f"{_INTO_DEAD} SELECT ?, message_id, headers, ?, coalesce(?, error), attempt, redrives, enqueued_at, ?, payload "
    "FROM queue_messages WHERE id = ?"
)


def bury(tx: Transaction, held_id: int, reason: str, error: bytes | None, now_ms: int) -> bool:
    """Make a held message a dead letter; False where it is not held."""
    tx.execute(_BURY, (queue_of(held_id), reason, error, now_ms, held_id))
    return bool(tx.changes()) and not acknowledge(tx, [held_id])


def end_leases(tx: Transaction, ids: Iterable[int]) -> None:
    tx.executemany("DELETE FROM queue_leases WHERE id = ?", [(i,) for i in ids])
