"""Order by key: deliveries of one key are handled one after another, those of different keys at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from groundplane.core.errors import InvalidArgument
from groundplane.queues.port import Delivery


class _Keyed(msgspec.Struct):
    payload: object = None


class Lanes:
    """Runs each delivery after the one before it with the same key. A delivery without the key waits for nobody."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._last: dict[bytes, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._last)

    async def run(self, delivery: Delivery, handle: Callable[[Delivery], Awaitable[None]]) -> None:
        """Handle it in its turn. Call in the order of receipt."""
        key = self.key_of(delivery)
        if key is None:
            return await handle(delivery)
        before = self._last.get(key)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last[key] = done
        try:
            if before is not None:
                await asyncio.shield(before)
            await handle(delivery)
        finally:
            if not done.done():
                done.set_result(None)
            if self._last.get(key) is done:
                del self._last[key]
        return None

    def key_of(self, delivery: Delivery) -> bytes | None:
        """The value of the field, encoded; None where the payload is no map or lacks it."""
        try:
            payload = _decode(delivery.payload).payload
        except (msgspec.MsgspecError, ValueError, InvalidArgument):
            return None
        if not isinstance(payload, dict) or self._field not in payload:
            return None
        return msgspec.msgpack.encode(payload[self._field], order="deterministic")


def _decode(data: bytes) -> _Keyed:
    if data[:1] >= b"\x80":
        return msgspec.msgpack.decode(data, type=_Keyed)
    return msgspec.json.decode(data, type=_Keyed)
