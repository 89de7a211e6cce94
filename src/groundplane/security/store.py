"""The façade of security: checks, retries, caches and upkeep, over any driver."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import GroundplaneError, InvalidArgument, NotFound, Unavailable
from groundplane.core.lifecycle import Lifecycle
from groundplane.core.names import check_name
from groundplane.core.retry import RetryPolicy
from groundplane.core.secrets import Secret
from groundplane.security.access import Action, Caller, check_principal, check_scopes
from groundplane.security.audit import AuditLog
from groundplane.security.drivers import open_driver
from groundplane.security.keys import digest_of, new_key
from groundplane.security.port import (
    PAGE_MAX,
    ApiKey,
    AuditEntry,
    AuditQuery,
    NewKey,
    Outcome,
    SecurityStore,
)
from groundplane.security.sessions import Sessions
from groundplane.security.verifying import KeyVerifier
from groundplane.telemetry.calls import measured
from groundplane.telemetry.logs import get_logger

T = TypeVar("T")

SECRET_BYTES = 32
UPKEEP_S = 60.0
AUDIT_ENTRIES_MAX = 1_000_000
_RETRY = RetryPolicy(attempts=3, base_s=0.05, cap_s=1.0)
_RETRY_WITHIN_S = 2.0
"""A store that took longer to say that it is away is not asked again: its callers wait for seconds already."""
_log = get_logger("security")


class CreatedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A new key. `secret` is the whole of it, which nobody can show again."""

    key: ApiKey
    secret: Secret


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of this object since it was opened."""

    lookups: int
    audit_written: int
    audit_waiting: int


class Security:
    """Keys, audit log, sessions and secrets of one namespace. Everything may be called concurrently, in the loop that
    opened it. Errors of every method: `closed`, and `unavailable` after three attempts.
    """

    def __init__(
        self, driver: SecurityStore, *, audit_retention_s: float = 90 * 86400.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.driver = driver
        self._clock = clock
        self._audit_retention_s = audit_retention_s
        self._lifecycle = Lifecycle("security")
        self._lifecycle.on_close(driver.aclose)
        self._lifecycle.on_close(self._write_last)
        self._audit = AuditLog(driver.audit)
        self._verifier = KeyVerifier(lambda key_id: self._call(lambda: driver.keys.find(key_id)), clock)
        self._secrets: dict[str, bytes] = {}
        self._keeps = False
        self.sessions = Sessions(driver.sessions, self._call)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str = "embedded://",
        *,
        namespace: str = "default",
        state: Path | str = ".groundplane",
        upgrade: bool = False,
        inline: bool = False,
        audit_retention_s: float = 90 * 86400.0,
    ) -> AsyncIterator[Security]:
        """Open the store that the URL names; `embedded://` is `<state>/plane.db`. `upgrade` migrates an older schema
        (else `failed_precondition`, `schema_old`). `inline` runs short calls in the loop instead of a thread.
        """
        driver = await open_driver(
            url, namespace=check_name("namespace", namespace), state=Path(state), upgrade=upgrade, inline=inline
        )
        security = cls(driver, audit_retention_s=audit_retention_s)
        try:
            yield security
        finally:
            await security.aclose()

    def __repr__(self) -> str:
        return f"<Security {'closed' if self._lifecycle.closed else 'open'} on {self.driver!r}>"

    def keep(self) -> None:
        """Begin the upkeep: entries are written, uses of keys noted, what has expired deleted. Idempotent."""
        if not self._keeps:
            self._keeps = True
            self._lifecycle.spawn(self._audit.run(), name="audit")
            self._lifecycle.spawn(self._upkeep(), name="upkeep")

    @measured("security")
    async def create_key(
        self, name: str, scopes: object, *, principal: str | None = None, ttl_s: float | None = None
    ) -> CreatedKey:
        """Make a key. `principal` owns what its holder starts; without it that is the name. `ttl_s` None: for ever.

        Raises `already_exists` where a key of that name is not revoked, `invalid_argument`.
        """
        if ttl_s is not None and not 1 <= ttl_s <= 100 * 365 * 86400:
            raise InvalidArgument(f"ttl_s: {ttl_s!r} is not 1 second to 100 years; leave it out for a key without end")
        key_id, secret = new_key()
        new = NewKey(
            key_id=key_id,
            digest=digest_of(secret.reveal()),
            name=check_name("name", name),
            principal=check_principal("principal", name if principal is None else principal),
            scopes=check_scopes("scopes", scopes),
            ttl_s=ttl_s,
        )
        self._lifecycle.check_open()
        return CreatedKey(key=await self.driver.keys.add(new), secret=secret)  # again after an error: another key

    @measured("security")
    async def list_keys(self, *, after: str = "", limit: int = PAGE_MAX) -> list[ApiKey]:
        """Keys in order of their ids, without secrets; `after` is the last id of the page before."""
        _check_limit(limit)
        return await self._call(lambda: self.driver.keys.page(after=after, limit=limit))

    @measured("security")
    async def revoke_key(self, key_id: str) -> ApiKey:
        """End a key; gateways refuse it within 5 s. Raises `not_found` (`key_not_found`). Idempotent."""
        revoked = await self._call(lambda: self.driver.keys.revoke(key_id))
        if revoked is None:
            shown = repr(key_id) if len(key_id) <= 16 else f"of {len(key_id)} characters"  # it may be most of a key
            raise NotFound(f"key_id: no key has the id {shown}; an id has 16", reason="key_not_found")
        return revoked

    async def verify(self, key: str) -> Caller | None:
        """The holder of an API key; None where it opens nothing. Known keys cost microseconds, for at most 5 s."""
        self._lifecycle.check_open()
        return await self._verifier.verify(key)

    @measured("security")
    async def caller_of(self, key_id: str) -> Caller | None:
        """The holder of the key of that id, while it opens something: for a login that was made with it."""
        self._lifecycle.check_open()
        return await self._verifier.caller_of(key_id)

    def record(
        self, caller: Caller | None, action: Action, outcome: Outcome, *, resource: str = "", detail: str = ""
    ) -> None:
        """Take an entry of the audit log: durable within 1 s after `keep` was called, and when this is closed."""
        self._lifecycle.check_open()
        self._audit.record(caller, action, outcome, resource=resource, detail=detail)

    async def flush(self) -> None:
        """Write the entries that wait, durably."""
        await self._audit.flush()

    @measured("security")
    async def list_audit(self, query: AuditQuery | None = None) -> list[AuditEntry]:
        """Entries of the audit log, newest first; those of this process that wait are written before."""
        wanted = query or AuditQuery()
        _check_limit(wanted.limit)
        await self._audit.flush()
        return await self._call(lambda: self.driver.audit.page(wanted))

    @measured("security")
    async def secret(self, name: str) -> bytes:
        """32 random bytes of that name, the same for all processes of the namespace; made at the first call."""
        known = self._secrets.get(check_name("name", name))
        if known is None:
            made = secrets.token_bytes(SECRET_BYTES)
            known = self._secrets[name] = await self._call(lambda: self.driver.secrets.get_or_make(name, made))
        return known

    async def upkeep(self) -> None:
        """Note which keys were used; delete expired sessions, and entries of the audit log beyond its bounds."""
        used, self._verifier.used = self._verifier.used, set()
        if used:
            await self._call(lambda: self.driver.keys.touch(used))
        await self._call(self.driver.sessions.sweep)
        await self._call(lambda: self.driver.audit.prune(older_than_s=self._audit_retention_s, keep=AUDIT_ENTRIES_MAX))

    def statistics(self) -> Statistics:
        """Counters."""
        return Statistics(
            lookups=self._verifier.lookups, audit_written=self._audit.written, audit_waiting=self._audit.waiting
        )

    async def aclose(self) -> None:
        """Write the entries that wait, and close. Idempotent, ≤ 10 s."""
        await self._lifecycle.aclose()

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_S * (0.75 + random.random() / 2))  # replicas take turns
            try:
                await self.upkeep()
            except GroundplaneError as error:
                _log.warning("upkeep_failed", code=error.code, error=error.message)

    async def _write_last(self) -> None:
        """What waits is written before the driver closes. What cannot be written is told."""
        try:
            used = self._verifier.used
            if used:
                await self.driver.keys.touch(used)
            await self._audit.flush()
        except GroundplaneError as error:
            _log.error("audit_not_written", waiting=self._audit.waiting, code=error.code, error=error.message)

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        attempt, start = 1, self._clock.monotonic()
        while True:
            self._lifecycle.check_open()
            try:
                return await call()
            except Unavailable:
                if attempt >= _RETRY.attempts or self._clock.monotonic() - start > _RETRY_WITHIN_S:
                    raise
            await asyncio.sleep(_RETRY.delay_s(attempt))
            attempt += 1


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidArgument(f"limit: {limit!r} is not 1 to {PAGE_MAX}")


__all__ = ["CreatedKey", "Security", "Statistics"]
