"""The audit log of a process: events are taken at once and written in batches, beside the requests.

An entry is durable `WRITE_S` after its event, and when the log is closed; one may be there twice where the store's
answer was lost. While the store is away entries wait, as many as `WAITING_MAX`; those beyond are counted, told to the
process log, and recorded as one entry `audit.lost` afterwards.
What strangers are refused is counted by action and resource, so that it cannot fill the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec

from groundplane.core.errors import GroundplaneError
from groundplane.security.access import Action, Caller
from groundplane.security.port import AuditEntry, AuditStore, Outcome
from groundplane.telemetry.logs import get_logger

WRITE_S = 0.5
WAITING_MAX = 10_000
BATCH_MAX = 1_000
TEXT_MAX = 500
_log = get_logger("security")


class AuditLog:
    """Takes entries. `run` writes them until it is cancelled; `flush` writes what waits."""

    def __init__(self, store: AuditStore) -> None:
        self._store = store
        self._waiting: deque[AuditEntry] = deque()
        self._strangers: dict[tuple[str, str, str], AuditEntry] = {}
        self._wanted = asyncio.Event()
        self._writing = asyncio.Lock()
        self._appending: asyncio.Future[None] | None = None
        self._lost = 0
        self.written = 0

    @property
    def waiting(self) -> int:
        """How many entries are not written yet."""
        return len(self._waiting) + len(self._strangers)

    def record(
        self, caller: Caller | None, action: Action, outcome: Outcome, *, resource: str = "", detail: str = ""
    ) -> None:
        """Take an entry; never waits."""
        entry = AuditEntry(
            action=action.value,
            outcome=outcome,
            principal=caller.principal if caller is not None else "",
            caller=caller.name if caller is not None else "",
            kind=caller.kind if caller is not None else "",
            key_id=caller.key_id if caller is not None else "",
            resource=_text(resource),
            detail=_text(detail),
        )
        if self.waiting >= WAITING_MAX:
            self._lost += 1
            _log.error("audit_entry_lost", action=entry.action, principal=entry.principal, resource=entry.resource)
        elif caller is None:
            same = (entry.action, entry.resource, entry.detail)
            before = self._strangers.get(same)
            self._strangers[same] = msgspec.structs.replace(entry, count=before.count + 1) if before else entry
        else:
            self._waiting.append(entry)
        self._wanted.set()

    async def run(self) -> None:
        """Write what waits, `WRITE_S` after the first of it came; while the store is away, again and again."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(WRITE_S)
            self._wanted.clear()
            try:
                await self.flush()
            except GroundplaneError as error:
                _log.error("audit_not_written", waiting=self.waiting, code=error.code, error=error.message)
                self._wanted.set()

    async def flush(self) -> None:
        """Write what waits, durably. Errors: those of the store; what was not written stays."""
        async with self._writing:
            self._waiting.extend(self._strangers.values())
            self._strangers.clear()
            if self._lost:
                lost = AuditEntry(action="audit.lost", outcome="failed", detail="the store was away", count=self._lost)
                self._waiting.append(lost)
                self._lost = 0
            if self._appending is not None:  # whoever waited for it was cancelled
                await asyncio.wait([self._appending])
            while batch := [self._waiting[n] for n in range(min(len(self._waiting), BATCH_MAX))]:
                self._appending = asyncio.ensure_future(self._append(batch))
                await asyncio.shield(self._appending)

    async def _append(self, batch: Sequence[AuditEntry]) -> None:
        """In a task of its own: who is cancelled here would not know whether the entries were written."""
        await self._store.append(batch)
        for _ in batch:
            self._waiting.popleft()
        self.written += len(batch)


def _text(value: str) -> str:
    """At most `TEXT_MAX` characters, on one line."""
    shown = value if value.isprintable() else "".join(one if one.isprintable() else "?" for one in value)
    return shown if len(shown) <= TEXT_MAX else shown[: TEXT_MAX - 1] + "…"
