"""What is kept of a session of the older MCP revisions, and where: a store that all replicas share, or this process."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple, Protocol

import msgspec

from groundplane.gateway.mcp.calls import DEFAULT_LOG_LEVEL


class Kept(Protocol):
    """A session as the store has it."""

    @property
    def owner(self) -> str: ...
    @property
    def data(self) -> bytes: ...


class SessionRecords(Protocol):
    """The store of sessions: `groundplane.security.sessions`. An expired one is as if it had never been."""

    async def put(self, session_id: str, owner: str, data: bytes, *, ttl_s: float) -> None:
        """Keep or replace one."""
        ...

    async def get(self, session_id: str) -> Kept | None:
        """The session, or None."""
        ...

    async def update(self, session_id: str, data: bytes, *, before: bytes) -> bool:
        """Replace its data where that is `before`; whether it was."""
        ...

    async def touch(self, session_id: str, *, ttl_s: float) -> bool:
        """Let it live for `ttl_s` seconds from now; whether it is there."""
        ...

    async def drop(self, session_id: str) -> bool:
        """End it; whether it was there."""
        ...


class Handshake(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a session: its client's parameters as they came, the revision agreed upon, the level of logs, the
    resources that it is subscribed to.
    """

    params: dict[str, Any]
    version: str
    log_level: str = DEFAULT_LOG_LEVEL
    subscriptions: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """As it is kept: JSON, which has numbers of any size, as clients send them."""
        return json.dumps(msgspec.structs.asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Handshake:
        """What was kept."""
        found = json.loads(data)
        return cls(**{**found, "subscriptions": tuple(found.get("subscriptions", ()))})


class _Own(NamedTuple):
    owner: str
    data: bytes


class OwnRecords:
    """The sessions of one process, for a gateway that shares them with no other."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, _Own]] = {}

    async def put(self, session_id: str, owner: str, data: bytes, *, ttl_s: float) -> None:
        """See `SessionRecords`."""
        now = time.monotonic()
        self._kept = {key: found for key, found in self._kept.items() if found[0] > now}
        self._kept[session_id] = (now + ttl_s, _Own(owner, data))

    async def get(self, session_id: str) -> Kept | None:
        """See `SessionRecords`."""
        ends_at, found = self._kept.get(session_id, (0.0, None))
        return found if ends_at > time.monotonic() else None

    async def update(self, session_id: str, data: bytes, *, before: bytes) -> bool:
        """See `SessionRecords`."""
        ends_at, found = self._kept.get(session_id, (0.0, None))
        if found is None or ends_at <= time.monotonic() or found.data != before:
            return False
        self._kept[session_id] = (ends_at, found._replace(data=data))
        return True

    async def touch(self, session_id: str, *, ttl_s: float) -> bool:
        """See `SessionRecords`."""
        found = await self.get(session_id)
        if isinstance(found, _Own):
            self._kept[session_id] = (time.monotonic() + ttl_s, found)
        return found is not None

    async def drop(self, session_id: str) -> bool:
        """See `SessionRecords`."""
        return self._kept.pop(session_id, None) is not None
