"""The port of security: what drivers keep. Keys and sessions come here as hashes alone.

All of it may be called concurrently, by several processes; every write is durable when it returns. Times are Unix
milliseconds of the store's clock, which alone decides what has expired. Errors of every method: `unavailable` and
`closed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import msgspec

PAGE_MAX = 1000


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret. `last_used_at` is coarse: it is written once a minute at most."""

    key_id: str
    name: str
    principal: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None = None
    last_used_at: int | None = None
    revoked_at: int | None = None


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key to be kept. `digest` is the SHA-256 of the whole key; `ttl_s` None: it does not expire."""

    key_id: str
    digest: bytes
    name: str
    principal: str
    scopes: tuple[str, ...]
    ttl_s: float | None = None


class FoundKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was looked up. `left_s` are the seconds until it expires, by the store's clock; None: it does not."""

    key: ApiKey
    digest: bytes
    left_s: float | None = None

    @property
    def live(self) -> bool:
        """Whether it opens anything."""
        return self.key.revoked_at is None and (self.left_s is None or self.left_s > 0)


Outcome = Literal["done", "refused", "failed"]


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what to what, and what came of it. `count` equal events were told as one.

    `caller` is the key's name, the token's client, `local`, the job of a job's token, or empty for a stranger.
    """

    action: str
    outcome: Outcome
    principal: str = ""
    caller: str = ""
    kind: str = ""
    key_id: str = ""
    resource: str = ""
    detail: str = ""
    count: int = 1
    at: int = 0
    entry_id: int = 0


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries: each filter narrows; `before` is an entry id; `since` and `until` are Unix milliseconds."""

    principal: str | None = None
    caller: str | None = None
    action: str | None = None
    resource: str | None = None
    outcome: Outcome | None = None
    since: int | None = None
    until: int | None = None
    before: int | None = None
    limit: int = 100


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a session. `left_s` are the seconds until it expires."""

    owner: str
    data: bytes
    left_s: float


class KeyStore(Protocol):
    """API keys."""

    async def add(self, key: NewKey) -> ApiKey:
        """Keep a key. `already_exists` where a key of that name is not revoked, or the id is taken."""
        ...

    async def find(self, key_id: str) -> FoundKey | None:
        """The key of that id, live or not."""
        ...

    async def page(self, *, after: str = "", limit: int = PAGE_MAX) -> list[ApiKey]:
        """Keys in order of their ids, from the one after `after`; revoked and expired ones too."""
        ...

    async def revoke(self, key_id: str) -> ApiKey | None:
        """End a key now; None where there is none. A second time changes nothing."""
        ...

    async def touch(self, key_ids: Iterable[str]) -> None:
        """They were used now."""
        ...


class AuditStore(Protocol):
    """The audit log. Nothing changes an entry; only age and number delete the oldest."""

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Keep them in this order, in one transaction. `at` and `entry_id` are the store's, ids rise."""
        ...

    async def page(self, query: AuditQuery) -> list[AuditEntry]:
        """The newest first."""
        ...

    async def prune(self, *, older_than_s: float, keep: int) -> int:
        """Delete what is older, and what is beyond the newest `keep`, some thousands at once; how many."""
        ...


class SessionStore(Protocol):
    """Sessions by the hash of their id. An expired one is as if it had never been."""

    async def put(self, digest: bytes, owner: str, data: bytes, ttl_s: float, *, most: int) -> None:
        """Keep or replace one, for `ttl_s` seconds from now. `resource_exhausted` (`too_many_sessions`) where the owner
        would have more than `most`; those that are put at once may pass that by their number.
        """
        ...

    async def get(self, digest: bytes) -> Session | None:
        """The session, None where there is none or it has expired."""
        ...

    async def update(self, digest: bytes, data: bytes, *, before: bytes) -> bool:
        """Replace the data where it is `before`, not its time; whether it was. Of several at once one wins."""
        ...

    async def touch(self, digest: bytes, ttl_s: float) -> bool:
        """Let it live for `ttl_s` seconds from now; whether it is there."""
        ...

    async def drop(self, digest: bytes) -> bool:
        """End it; whether it was there."""
        ...

    async def drop_all(self, owner: str) -> int:
        """End all of an owner's; how many."""
        ...

    async def sweep(self) -> int:
        """Delete expired ones; how many."""
        ...


class SecretStore(Protocol):
    """Random keys that the replicas of a plane share."""

    async def get_or_make(self, name: str, candidate: bytes) -> bytes:
        """The secret of that name; `candidate` becomes it where there is none. All callers get the same one."""
        ...


class SecurityStore(Protocol):
    """A driver."""

    @property
    def keys(self) -> KeyStore:
        """API keys."""
        ...

    @property
    def audit(self) -> AuditStore:
        """The audit log."""
        ...

    @property
    def sessions(self) -> SessionStore:
        """Sessions."""
        ...

    @property
    def secrets(self) -> SecretStore:
        """Shared secrets."""
        ...

    async def aclose(self) -> None:
        """Close what this driver opened. Idempotent, ≤ 10 s."""
        ...
