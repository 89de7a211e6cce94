"""The dead letter: one record, whatever it died of, and the source that desks list and redrive from."""

from __future__ import annotations

from typing import Protocol

import msgspec

from groundplane.core.errors import ErrorRecord


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is not tried again. `payload` is unchanged to the byte; `trace` is its `traceparent`, if it had
    one.
    """

    id: str
    queue: str
    message_id: str
    payload: bytes
    headers: dict[str, str]
    reason: str
    error: ErrorRecord | None
    attempts: int
    redrives: int
    enqueued_at: int
    died_at: int
    trace: str = ""


class DeadLetterPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of dead letters, oldest first; `cursor` of the next page, or None at the end."""

    items: list[DeadLetter]
    cursor: str | None = None


class DeadLetterSource(Protocol):
    """Where dead letters lie: the queues now, the bus later. The operators' commands speak to this."""

    async def list_dead(
        self, queue: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> DeadLetterPage:
        """Dead letters, oldest first; `limit` 1–1000. May be called concurrently. Raises `not_found` for no such
        queue.
        """
        ...

    async def get_dead(self, dead_id: str) -> DeadLetter:
        """One dead letter, whole. Raises `not_found`."""
        ...

    async def redrive(self, dead_id: str, *, payload: bytes | None = None) -> None:
        """Put it back at attempt 1 with its id, headers and trace, its redrive count one higher, in one transaction.

        `payload` replaces the bytes. Raises `not_found` when it is gone: two redrives of one letter send it once.
        """
        ...

    async def purge(self, dead_ids: list[str]) -> int:
        """Delete them; how many there were."""
        ...
