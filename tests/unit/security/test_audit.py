"""The audit log beside the requests: durable soon, bounded, nothing lost in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from groundplane.core.errors import Unavailable
from groundplane.security import audit
from groundplane.security.access import LOCAL, Action, Caller
from groundplane.security.audit import AuditLog
from groundplane.security.port import AuditEntry, AuditQuery

pytestmark = [pytest.mark.anyio, pytest.mark.req("GATE-18")]


class Entries:
    """A store of entries that may be away."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []
        self.away = False
        self.batches = 0
        self.written = asyncio.Event()

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        if self.away:
            raise Unavailable("security: the store is away")
        self.batches += 1
        self.entries += entries
        self.written.set()

    async def page(self, query: AuditQuery) -> list[AuditEntry]:
        return self.entries[::-1]

    async def prune(self, *, older_than_s: float, keep: int) -> int:
        return 0


async def test_entries_are_written_in_one_batch_within_a_second() -> None:
    store = Entries()
    log = AuditLog(store)
    task = asyncio.create_task(log.run())
    for n in range(100):
        log.record(LOCAL, Action.CALL_TOOL, "done", resource=str(n))
    assert store.entries == []
    async with asyncio.timeout(30):
        await store.written.wait()
    task.cancel()
    assert [one.resource for one in store.entries] == [str(n) for n in range(100)]
    assert (store.batches, log.waiting, log.written) == (1, 0, 100)
    assert audit.WRITE_S <= 0.5


async def test_entries_wait_while_the_store_is_away_and_those_beyond_the_bound_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "WAITING_MAX", 10)
    store = Entries()
    log = AuditLog(store)
    store.away = True
    for n in range(13):
        log.record(LOCAL, Action.CALL_TOOL, "done", resource=str(n))
    with pytest.raises(Unavailable):
        await log.flush()
    store.away = False
    await log.flush()
    assert [one.resource for one in store.entries[:10]] == [str(n) for n in range(10)]
    assert [(one.action, one.count) for one in store.entries[10:]] == [("audit.lost", 3)]


async def test_the_writer_goes_on_when_the_store_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "WRITE_S", 0.001)
    store = Entries()
    log = AuditLog(store)
    store.away = True
    task = asyncio.create_task(log.run())
    log.record(LOCAL, Action.CALL_TOOL, "done")
    for _ in range(20):
        await asyncio.sleep(0)
    store.away = False
    async with asyncio.timeout(30):
        await store.written.wait()
    task.cancel()
    assert len(store.entries) == 1


async def test_who_is_cancelled_while_entries_are_written_writes_them_once() -> None:
    store = Entries()
    gate, begun = asyncio.Event(), asyncio.Event()
    append = store.append

    async def slow(entries: Sequence[AuditEntry]) -> None:
        begun.set()
        await gate.wait()
        await append(entries)

    store.append = slow  # type: ignore[method-assign]
    log = AuditLog(store)
    log.record(LOCAL, Action.CALL_TOOL, "done")
    first = asyncio.create_task(log.flush())
    await begun.wait()
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(log.flush())
    gate.set()
    await second
    assert len(store.entries) == 1


async def test_texts_are_cut_and_take_one_line() -> None:
    store = Entries()
    log = AuditLog(store)
    caller = Caller(principal="a", name="b", kind="key")
    log.record(caller, Action.CALL_TOOL, "refused", resource="x" * 10_000, detail="a\nb\x1b[31m")
    await log.flush()
    (entry,) = store.entries
    assert len(entry.resource) == audit.TEXT_MAX
    assert entry.detail == "a?b?[31m"
