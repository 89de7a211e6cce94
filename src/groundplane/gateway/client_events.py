"""Server-sent events as a client reads them (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from groundplane.core import codec

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "timed_out"})


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One server-sent event: `status` (the job as it was on connecting) or `update`. `id` 0: it had none."""

    kind: str
    id: int
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        """Whether the job has ended with it; its data is then the whole job."""
        return bool(self.data.get("final")) or (self.kind == "status" and self.data.get("state") in TERMINAL)


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[Event | None, float | None]]:
    """Server-sent events from bytes, each with the retry hint that stood before it, in seconds. Only line feeds end a
    line: text may hold every other separator that Unicode knows.
    """
    buffered = b""
    async for chunk in chunks:
        *frames, buffered = (buffered + chunk).split(b"\n\n")
        for one in frames:
            pairs = (line.partition(":") for line in one.decode("utf-8").split("\n"))
            fields = {name: value.removeprefix(" ") for name, _, value in pairs if name}
            retry = float(fields["retry"]) / 1000 if fields.get("retry", "").isdigit() else None
            event = None
            if "data" in fields:
                data = codec.decode(fields["data"].encode())
                event = Event(kind=fields.get("event", "message"), id=int(fields.get("id") or 0), data=data)
            if event is not None or retry is not None:
                yield event, retry
