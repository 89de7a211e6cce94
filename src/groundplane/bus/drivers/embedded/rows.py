"""What is done in one transaction: appending, handing out, settling, taking back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from groundplane.backends.sqlite import Transaction
from groundplane.bus.port import (
    DEDUP_WINDOW_S,
    STARVED_S,
    Ack,
    ConsumerSpec,
    Delivery,
    Message,
    Nack,
    Priority,
    Reject,
    Settlement,
)
from groundplane.bus.subjects import matches, overlap, store_of
from groundplane.core.errors import FailedPrecondition, NotFound, ResourceExhausted

KEPT_MAX = 1_000_000
"""Messages that one store keeps at most."""
_WINDOW_MS = int(DEDUP_WINDOW_S * 1000)
_STARVED_MS = int(STARVED_S * 1000)
INTEREST = "bus/interest"


class Entry(NamedTuple):
    """A message in a batch. `attempt` counts this handing-over; with `ends` it is deleted once it is done."""

    message: int
    urgency: int
    attempt: int
    ends: bool = False


class Claimed(NamedTuple):
    """What one claim took; `next_due` is when (Unix ms) the earliest delayed message comes back, if there is one;
    `owed` are the urgencies that have waited too long and got nothing yet.
    """

    batch: int
    deliveries: list[Delivery]
    next_due: int | None
    owed: list[int]


def topic(consumer: int) -> str:
    """The bell of a consumer."""
    return f"bus/{consumer}"


def urgency(priority: int) -> int:
    """0 for the most urgent."""
    return Priority.CRITICAL - priority


def store_id(tx: Transaction, namespace: str, name: str) -> int:
    """The number of a store, which is made when it is first asked for."""
    found = tx.execute("SELECT id FROM bus_stores WHERE namespace = ? AND name = ?", (namespace, name))
    if found:
        return int(found[0][0])
    made = tx.execute("INSERT INTO bus_stores (namespace, name) VALUES (?, ?) RETURNING id", (namespace, name))
    return int(made[0][0])


_KNOWN_KEYS = (
    "SELECT value FROM json_each(?3) AS new WHERE "
    "EXISTS (SELECT 1 FROM bus_dedup WHERE bucket = ?1 AND store = ?2 AND key = new.value) OR "
    "EXISTS (SELECT 1 FROM bus_dedup WHERE bucket = ?1 - 1 AND store = ?2 AND key = new.value AND sent_at > ?4)"
)
_NEW_KEYS = "INSERT INTO bus_dedup SELECT ?1, ?2, value, ?3 FROM json_each(?4)"
_APPEND = "INSERT INTO bus_log"
_READY = "INSERT INTO bus_ready"
_NEW_READY = "INSERT INTO bus_ready SELECT ?1, ?2, value, 0, ?3 FROM json_each(?4)"


def append(tx: Transaction, namespace: str, messages: Sequence[Message], now_ms: int) -> list[Message]:
    """Append what is new; returns it."""
    by_store: dict[str, list[Message]] = {}
    for message in messages:
        by_store.setdefault(store_of(message.subject), []).append(message)
    new: list[Message] = []
    for name, group in by_store.items():
        if name == "results":
            _keep(tx, namespace, group, now_ms)
            new += group
        else:
            new += _append_to(tx, store_id(tx, namespace, name), group, now_ms)
    return new


def _keep(tx: Transaction, namespace: str, messages: list[Message], now_ms: int) -> None:
    kept = [(namespace, m.subject, m.id, headers_at_rest(m.headers), now_ms, m.payload) for m in messages]
    tx.executemany("INSERT OR REPLACE INTO bus_results VALUES (?, ?, ?, ?, ?, ?)", kept)


def _append_to(tx: Transaction, store: int, messages: list[Message], now_ms: int) -> list[Message]:
    messages = _unknown(tx, store, messages, now_ms)
    if not messages:
        return []
    count = len(messages)
    kept = tx.execute("UPDATE bus_stores SET kept = kept + ? WHERE id = ? RETURNING kept, name", (count, store))
    if kept[0][0] > KEPT_MAX:
        raise ResourceExhausted(
            f"bus: the store of {kept[0][1]} would keep more than {KEPT_MAX} messages; wait until consumers caught up "
            "or old events are gone",
            reason="queue_full",
            details={"store": kept[0][1], "kept_max": KEPT_MAX},
        )
    first = 1 + (tx.execute("SELECT seq FROM sqlite_sequence WHERE name = 'bus_log'") or [(0,)])[0][0]
    tx.insert(
        _APPEND,
        [
            (first + n, store, m.subject, m.id, headers_at_rest(m.headers), int(m.priority), now_ms, 0, 0, m.payload)
            for n, m in enumerate(messages)
        ],
    )
    alike: dict[tuple[str, Priority], list[int]] = {}
    for number, m in enumerate(messages, first):
        alike.setdefault((m.subject, m.priority), []).append(number)
    for consumer, pattern in tx.execute("SELECT id, pattern FROM bus_consumers WHERE store = ?", (store,)):
        for (subject, priority), numbers in alike.items():
            if matches(pattern, subject):
                tx.execute(_NEW_READY, (consumer, urgency(priority), now_ms, _json(numbers)))
                tx.wake(topic(consumer), early=True)
    return messages


def _unknown(tx: Transaction, store: int, messages: list[Message], now_ms: int) -> list[Message]:
    """Those whose id was not appended within the window; the first of each id."""
    bucket = now_ms // _WINDOW_MS
    keys = dict.fromkeys(m.id for m in messages if m.id)
    if not keys:
        return messages
    known = {row[0] for row in tx.execute(_KNOWN_KEYS, (bucket, store, _json(list(keys)), now_ms - _WINDOW_MS))}
    new = keys.keys() - known if known else keys
    tx.execute(_NEW_KEYS, (bucket, store, now_ms, _json(list(new))))
    if len(new) == len(messages):
        return messages
    left = set(new)
    found = []
    for message in messages:
        if not message.id or message.id in left:
            left.discard(message.id)
            found.append(message)
    return found


def forget_keys(tx: Transaction, now_ms: int) -> None:
    """Delete the keys of windows that are over."""
    tx.execute("DELETE FROM bus_dedup WHERE bucket < ?", (now_ms // _WINDOW_MS - 1,))


_DECLARE = (
    "INSERT INTO bus_consumers (namespace, name, store, pattern, expires_s, touched_at) VALUES (?, ?, ?, ?, ?, ?)"
)


def declare(tx: Transaction, namespace: str, spec: ConsumerSpec, now_ms: int) -> int:
    """The number of the consumer, which is made unless it is there."""
    name = store_of(spec.pattern)
    store = store_id(tx, namespace, name)
    found = tx.execute(
        "UPDATE bus_consumers SET touched_at = ?, expires_s = ? WHERE namespace = ? AND name = ? RETURNING id, pattern",
        (now_ms, spec.expires_s, namespace, spec.name),
    )
    if found:
        if found[0][1] != spec.pattern:
            raise _differs(spec, spec.name, found[0][1])
        return int(found[0][0])
    if name == "commands":
        others = tx.execute("SELECT name, pattern FROM bus_consumers WHERE store = ?", (store,))
        for other, pattern in others:
            if overlap(pattern, spec.pattern):
                raise _differs(spec, other, pattern)
    values = (namespace, spec.name, store, spec.pattern, spec.expires_s, now_ms)
    consumer = int(tx.execute(f"{_DECLARE} RETURNING id", values)[0][0])
    if name == "commands" or spec.replay:
        kept = tx.execute(
            "SELECT id, subject, priority, stored_at FROM bus_log WHERE store = ? AND hidden = 0", (store,)
        )
        rows = [(consumer, urgency(p), i, 0, since) for i, subject, p, since in kept if matches(spec.pattern, subject)]
        tx.insert(_READY, rows)
    return consumer


def _differs(spec: ConsumerSpec, name: str, pattern: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"pattern: {spec.pattern!r} of {spec.name!r} cannot be consumed: {name!r} consumes {pattern!r}; give the same "
        "pattern under the same name, and commands to one consumer alone",
        reason="subscription_differs",
        details={"name": name, "pattern": pattern},
    )


# One row each, however many messages: see `Transaction.insert`.
_HEAD = (
    "SELECT json_group_array(json_array(message, urgency, attempt, since, size)) FROM "
    "(SELECT r.message, r.urgency, r.attempt, r.since, coalesce(length(l.payload), 0) AS size FROM bus_ready r "
    "LEFT JOIN bus_log l ON l.id = r.message WHERE r.consumer = ? AND r.urgency = ? ORDER BY r.message LIMIT ?)"
)
_LOADED = (
    "SELECT json_group_array(json_array(id, subject, message_id, hex(headers), priority, stored_at, redrives, hidden, "
    "length(payload))), CAST(group_concat(payload, '') AS BLOB) FROM bus_log "
    "WHERE id IN (SELECT value FROM json_each(?))"
)
_CLAIM_BYTES_MAX = 64 * 1024 * 1024


class _Ready(NamedTuple):
    message: int
    urgency: int
    attempt: int
    since: int
    size: int


class _Stored(NamedTuple):
    message: int
    subject: str
    message_id: str
    headers: str
    priority: int
    stored_at: int
    redrives: int
    hidden: int
    size: int


_decode_ready = msgspec.json.Decoder(list[_Ready]).decode
_decode_stored = msgspec.json.Decoder(list[_Stored]).decode


def claim(
    tx: Transaction,
    consumer: int,
    session: int,
    limit: int,
    now_ms: int,
    lease_due: int,
    *,
    by_urgency: bool,
    owed: Sequence[int] = (),
    look: bool = False,
) -> Claimed | None:
    """Hand out up to `limit` messages as one batch; None where the consumer or the session is no more. One message each
    of the urgencies that are `owed` it goes before the others; `look` finds those that have waited too long.
    """
    alive = tx.execute(
        "SELECT 1 FROM bus_consumers WHERE id = ? AND EXISTS (SELECT 1 FROM bus_sessions WHERE id = ?)",
        (consumer, session),
    )
    if not alive:
        return None
    _come_due(tx, consumer, now_ms)
    starved_ms = now_ms - _STARVED_MS if look else None
    ready, left = _pick(tx, consumer, limit, by_urgency=by_urgency, owed=owed, starved_ms=starved_ms)
    stored = _load(tx, ready) if ready else {}
    entries = [
        Entry(one.message, one.urgency, one.attempt + 1, by_urgency or bool(stored[one.message][0].hidden))
        for one in ready
        if one.message in stored
    ]
    batch = 0
    if entries:
        values = (consumer, session, lease_due, msgspec.msgpack.encode(entries))
        sql = "INSERT INTO bus_batches (consumer, session, due, entries) VALUES (?, ?, ?, ?) RETURNING id"
        batch = int(tx.execute(sql, values)[0][0])
    found = [_delivery(batch, one, *stored[one.message]) for one in entries]
    next_due: int | None = tx.execute("SELECT min(due_at) FROM bus_delayed WHERE consumer = ?", (consumer,))[0][0]
    return Claimed(batch, found, next_due, left)


def _come_due(tx: Transaction, consumer: int, now_ms: int) -> None:
    due = tx.execute(
        "DELETE FROM bus_delayed WHERE consumer = ? AND due_at <= ? RETURNING urgency, message, attempt, due_at",
        (consumer, now_ms),
    )
    if due:
        tx.insert(_READY, [(consumer, level, message, attempt, since) for level, message, attempt, since in due])


def _pick(
    tx: Transaction, consumer: int, limit: int, *, by_urgency: bool, owed: Sequence[int], starved_ms: int | None
) -> tuple[list[_Ready], list[int]]:
    """Take messages from the ready ones: one each of those that are owed it, then by urgency, then in order. And who
    is still owed one.
    """
    classes = range(4) if by_urgency else (urgency(Priority.NORMAL),)
    heads = [_decode_ready(tx.execute(_HEAD, (consumer, level, limit))[0][0]) for level in classes]
    rows = [row for head in heads for row in head]
    order: list[int] = []
    if by_urgency and sum(map(bool, heads)) > 1:
        firsts = [head[0] for head in heads[1:] if head]  # the most urgent wait for nobody
        starved = [one.urgency for one in firsts if starved_ms is not None and one.since <= starved_ms]
        order = list(dict.fromkeys([*owed, *starved]))
        turns = {one.message: order.index(one.urgency) for one in firsts if one.urgency in order}
        rows.sort(key=lambda row: (turns.get(row.message, 4), row.urgency, row.message))
    rows = _within_bytes(rows[:limit])
    for level, last in {row.urgency: row.message for row in rows}.items():  # of each level the first ones are taken
        tx.execute(_TAKE, (consumer, level, last))
    taken = {row.message for row in rows}
    left = [level for level in order if heads[level] and heads[level][0].message not in taken]
    return rows, left


_TAKE = "DELETE FROM bus_ready WHERE consumer = ? AND urgency = ? AND message <= ?"


def _within_bytes(rows: list[_Ready]) -> list[_Ready]:
    """As many of the first as one claim may load; at least one."""
    size = 0
    for count, row in enumerate(rows):
        size += row.size
        if count and size > _CLAIM_BYTES_MAX:
            return rows[:count]
    return rows


def _load(tx: Transaction, ready: list[_Ready]) -> dict[int, tuple[_Stored, bytes]]:
    listed, payloads = tx.execute(_LOADED, (_json([one.message for one in ready]),))[0]
    found: dict[int, tuple[_Stored, bytes]] = {}
    start = 0
    for row in _decode_stored(listed):
        found[row.message] = row, payloads[start : start + row.size] if row.size else b""
        start += row.size
    return found


def _delivery(batch: int, entry: Entry, row: _Stored, payload: bytes) -> Delivery:
    message = Message(
        subject=row.subject,
        payload=payload,
        id=row.message_id,
        headers=headers_in_use(bytes.fromhex(row.headers)) if row.headers else {},
        priority=_PRIORITIES[row.priority],
    )
    tag = (batch, entry)
    return Delivery(tag=tag, message=message, attempt=entry.attempt, stored_at=row.stored_at, redrives=row.redrives)


_PRIORITIES = {int(one): one for one in Priority}


def settle(
    tx: Transaction, consumer: int, settlements: Sequence[Settlement], whole: Collection[int], now_ms: int
) -> None:
    """Settle what is still held of it; the rest is somebody else's by now. Of the batches in `whole` nothing is left
    but this.
    """
    by_batch: dict[int, dict[int, Settlement]] = {}
    for one in settlements:
        batch, entry = one.delivery.tag
        by_batch.setdefault(batch, {})[entry.message] = one
    for batch, chosen in by_batch.items():
        if batch in whole and all(isinstance(one, Ack) and not one.delivery.tag[1].ends for one in chosen.values()):
            tx.execute("DELETE FROM bus_batches WHERE id = ?", (batch,))
        else:
            _settle_some(tx, consumer, batch, chosen, now_ms)


def _settle_some(tx: Transaction, consumer: int, batch: int, chosen: dict[int, Settlement], now_ms: int) -> None:
    found = tx.execute("SELECT entries FROM bus_batches WHERE id = ?", (batch,))
    if not found:
        return
    held = msgspec.msgpack.decode(found[0][0])
    _write_batch(tx, batch, [one for one in held if one[0] not in chosen])
    ended = []
    for one in held:
        if one[0] in chosen:
            entry, settlement = Entry(*one), chosen[one[0]]
            _settle_one(tx, consumer, entry, settlement, now_ms)
            if entry.ends and not isinstance(settlement, Nack):
                ended.append(entry.message)
    if ended:
        _finish(tx, ended)


def _settle_one(tx: Transaction, consumer: int, entry: Entry, settlement: Settlement, now_ms: int) -> None:
    if isinstance(settlement, Nack):
        attempt = entry.attempt if settlement.counts else entry.attempt - 1
        put_back(tx, consumer, entry._replace(attempt=attempt), now_ms, round(settlement.delay_s * 1000))
    elif isinstance(settlement, Reject):
        error = None if settlement.error is None else msgspec.json.encode(settlement.error)
        tx.execute(_BURY, (consumer, settlement.reason, error, entry.attempt, now_ms, entry.message))


_BURY = (
    "INSERT INTO bus_dead (namespace, queue, store, subject, message_id, headers, priority, reason, error, attempts, "
    "redrives, stored_at, died_at, payload) SELECT c.namespace, c.name, m.store, m.subject, m.message_id, m.headers, "
    "m.priority, ?2, ?3, ?4, m.redrives, m.stored_at, ?5, m.payload FROM bus_log m, bus_consumers c "
    "WHERE m.id = ?6 AND c.id = ?1"
)


def put_back(tx: Transaction, consumer: int, entry: Entry, now_ms: int, delay_ms: int = 0) -> None:
    """Let it be handed out again, after `delay_ms`. Rings whoever waits, also to set its timer."""
    if delay_ms > 0:
        values = (consumer, now_ms + delay_ms, entry.message, entry.urgency, entry.attempt)
        tx.execute("INSERT OR REPLACE INTO bus_delayed VALUES (?, ?, ?, ?, ?)", values)
    else:
        ready = (consumer, entry.urgency, entry.message, entry.attempt, now_ms)
        tx.execute("INSERT OR REPLACE INTO bus_ready VALUES (?, ?, ?, ?, ?)", ready)
    tx.wake(topic(consumer), early=True)


def _finish(tx: Transaction, messages: Sequence[int]) -> None:
    """Delete what nobody else is to get: commands, and what came back from the dead."""
    numbers = (_json(messages),)
    for store, gone in tx.execute(f"SELECT store, count(*) FROM bus_log WHERE {_AMONG} GROUP BY store", numbers):
        tx.execute("UPDATE bus_stores SET kept = kept - ? WHERE id = ?", (gone, store))
    tx.execute(f"DELETE FROM bus_log WHERE {_AMONG}", numbers)


_AMONG = "id IN (SELECT value FROM json_each(?))"


def _write_batch(tx: Transaction, batch: int, entries: Sequence[Sequence[int]]) -> None:
    if entries:
        tx.execute("UPDATE bus_batches SET entries = ? WHERE id = ?", (msgspec.msgpack.encode(entries), batch))
    else:
        tx.execute("DELETE FROM bus_batches WHERE id = ?", (batch,))


def extend(tx: Transaction, batches: Iterable[int], due: int) -> list[int]:
    """Hold these batches until `due`; those that are no more."""
    lost = []
    for batch in batches:
        tx.execute("UPDATE bus_batches SET due = ? WHERE id = ?", (due, batch))
        if not tx.changes():
            lost.append(batch)
    return lost


def take_back(tx: Transaction, batches: Sequence[int], now_ms: int, *, counts: bool) -> None:
    """Let what these batches still hold be handed out again."""
    for batch in batches:
        found = tx.execute("DELETE FROM bus_batches WHERE id = ? RETURNING consumer, entries", (batch,))
        for consumer, entries in found:
            for entry in decode_entries(entries):
                attempt = entry.attempt if counts else entry.attempt - 1
                put_back(tx, consumer, entry._replace(attempt=attempt), now_ms)


def decode_entries(data: bytes) -> list[Entry]:
    """The entries of a batch."""
    return [Entry(*one) for one in msgspec.msgpack.decode(data)]


def forget_consumer(tx: Transaction, consumer: int) -> None:
    """Delete a durable consumer with what it has not got yet."""
    for table in ("bus_ready", "bus_delayed", "bus_batches"):
        tx.execute(f"DELETE FROM {table} WHERE consumer = ?", (consumer,))
    tx.execute("DELETE FROM bus_consumers WHERE id = ?", (consumer,))
    tx.wake(topic(consumer), early=True)


_OLD = (
    "SELECT id FROM bus_log WHERE store = ?1 AND stored_at < ?2 "
    "AND id < coalesce((SELECT id FROM bus_log WHERE stored_at >= ?2 ORDER BY id LIMIT 1), 1 << 62) "
    "ORDER BY id LIMIT ?3"
)
_OLD_RESULTS = (
    "DELETE FROM bus_results WHERE (namespace, subject) IN "
    "(SELECT namespace, subject FROM bus_results WHERE stored_at < ? LIMIT ?)"
)


def trim(tx: Transaction, events_before: int, results_before: int, limit: int = 1000) -> None:
    """Delete events and results that were stored before these times (Unix ms), up to `limit` of each store."""
    for (store,) in tx.execute("SELECT id FROM bus_stores WHERE name = 'events'"):
        old = tx.execute(_OLD, (store, events_before, limit))
        if old:
            tx.executemany("DELETE FROM bus_log WHERE id = ?", old)
            tx.execute("UPDATE bus_stores SET kept = kept - ? WHERE id = ?", (len(old), store))
    tx.execute(_OLD_RESULTS, (results_before, limit))


def no_dead_letter(dead_id: str) -> NotFound:
    """The error of a dead letter that is not there."""
    return NotFound(f"dead_id: {dead_id!r} is no dead letter of the bus; it was redriven or purged, or never was")


def headers_at_rest(headers: dict[str, str]) -> bytes | None:
    """Headers as they are stored."""
    return msgspec.msgpack.encode(headers) if headers else None


def headers_in_use(stored: bytes | None) -> dict[str, str]:
    """Stored headers."""
    return msgspec.msgpack.decode(stored, type=dict[str, str]) if stored else {}


def _json(values: Sequence[object]) -> str:
    return msgspec.json.encode(values).decode()
