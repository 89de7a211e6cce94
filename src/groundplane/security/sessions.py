"""Sessions: opaque data under an id that only its holder knows. The store gets the id's hash, never the id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from groundplane.core.errors import InvalidArgument
from groundplane.security.keys import digest_of
from groundplane.security.port import Session, SessionStore

DATA_BYTES_MAX = 64 * 1024
ID_CHARS_MAX = 255
PER_OWNER_MAX = 10_000
TTL_S_MAX = 90 * 86400.0

Call = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


class Sessions:
    """Sessions of one namespace; all replicas see the same ones. `owner` is a caller's principal.

    Give ids a prefix for what they are (`login/…`, `mcp/…`) and at least 128 random bits. Errors of every method:
    `invalid_argument`, `unavailable`, `closed`.
    """

    def __init__(self, store: SessionStore, call: Call) -> None:
        self._store = store
        self._call = call

    async def put(self, session_id: str, owner: str, data: bytes, *, ttl_s: float) -> None:
        """Keep or replace a session, for `ttl_s` seconds from now. `data` has at most 64 KiB. `resource_exhausted`
        (`too_many_sessions`) where the owner has 10,000 others.
        """
        digest = _digest(session_id)
        _check_data(data)
        _check_ttl(ttl_s)
        await self._call(lambda: self._store.put(digest, owner, data, ttl_s, most=PER_OWNER_MAX))

    async def get(self, session_id: str) -> Session | None:
        """The session; None where there is none, or it has expired."""
        digest = _digest(session_id)
        found: Session | None = await self._call(lambda: self._store.get(digest))
        return found

    async def update(self, session_id: str, data: bytes, *, before: bytes) -> bool:
        """Replace the data where it is `before`; whether it was. So nothing that another replica changed is lost: read
        again, and try again. Also False where an earlier attempt of this call did it and its answer was lost.
        """
        digest = _digest(session_id)
        _check_data(data)
        return bool(await self._call(lambda: self._store.update(digest, data, before=before)))

    async def touch(self, session_id: str, *, ttl_s: float) -> bool:
        """Let it live for `ttl_s` seconds from now; whether it is there."""
        digest = _digest(session_id)
        _check_ttl(ttl_s)
        return bool(await self._call(lambda: self._store.touch(digest, ttl_s)))

    async def drop(self, session_id: str) -> bool:
        """End it; whether it was there."""
        digest = _digest(session_id)
        return bool(await self._call(lambda: self._store.drop(digest)))

    async def drop_all(self, owner: str) -> int:
        """End all sessions of an owner; how many there were."""
        return int(await self._call(lambda: self._store.drop_all(owner)))


def _digest(session_id: str) -> bytes:
    if not 1 <= len(session_id) <= ID_CHARS_MAX:  # the id itself is not shown: it opens the session
        raise InvalidArgument(f"session_id: has {len(session_id)} characters; use 1 to {ID_CHARS_MAX}")
    return digest_of(session_id)


def _check_data(data: bytes) -> None:
    if len(data) > DATA_BYTES_MAX:
        raise InvalidArgument(f"data: has {len(data)} bytes; a session holds at most {DATA_BYTES_MAX}")


def _check_ttl(ttl_s: float) -> None:
    if not 0 < ttl_s <= TTL_S_MAX:
        raise InvalidArgument(f"ttl_s: {ttl_s!r} is not a number of seconds above 0 and at most {TTL_S_MAX:g}")
