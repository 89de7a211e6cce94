"""The façade of key-value storage: checks, retries, counts and closing, over any driver."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import msgspec

from groundplane.core.errors import GroundplaneError, InvalidArgument, Unsupported
from groundplane.core.fencing import Fence, check_fence
from groundplane.core.ids import new_id
from groundplane.core.lifecycle import Lifecycle
from groundplane.core.names import check_name
from groundplane.core.retry import RetryPolicy
from groundplane.kv.drivers import open_driver
from groundplane.kv.keys import check_key, check_prefix
from groundplane.kv.port import (
    HISTORY_MAX,
    BucketOptions,
    Capability,
    Entry,
    KeyPage,
    KVDriver,
    Limits,
    Selection,
    Status,
    Write,
    WriteKind,
    WriteOptions,
)
from groundplane.kv.watching import Watch
from groundplane.telemetry.calls import measured

T = TypeVar("T")

PAGE_MAX = 1000
TTL_MAX_S = 100 * 365 * 86400.0
RETRY = RetryPolicy(attempts=8, base_s=0.05, factor=3.0, cap_s=1.0)
RETRY_WITHIN_S = 6.0
"""After so long no further attempt is begun."""


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since opening: keys asked for, keys written, keys removed, calls that were tried again, open watches."""

    gets: int
    puts: int
    removals: int
    retries: int
    watches: int


class KV:
    """One bucket of keys. Everything may be called concurrently in the loop that opened it.

    Calls that fail with a retryable error are tried again, for up to 6 s; a write that was done although its
    answer was lost is not done twice. Errors of every method: `closed`, `invalid_argument`, `unavailable`. Of every
    write: `conflict` with reason `term_old` for a fence that is older than one seen before, `deadline_exceeded` with
    reason `outcome_unknown`.
    """

    def __init__(self, driver: KVDriver, *, retry: RetryPolicy = RETRY) -> None:
        """Put the façade on a driver that is open already; closing the façade closes it."""
        self.driver = driver
        self._retry = retry
        self._lifecycle = Lifecycle("kv")
        self._lifecycle.on_close(driver.aclose)
        self._gets = self._puts = self._removals = self._retries = self._watches = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str = "embedded://",
        *,
        bucket: str = "default",
        namespace: str = "groundplane",
        state: str | os.PathLike[str] = ".groundplane",
        history: int = 1,
        ttl: bool = False,
        create: bool = True,
        upgrade: bool = False,
        inline: bool = False,
    ) -> AsyncIterator[KV]:
        """Open a bucket, which is made where there is none; without `create`, `not_found` (`bucket_not_found`).

        `history` values of each key are kept, 1 to 64, `ttl` allows values that expire: what another process opened
        the bucket with stays kept, and each handle sees what it asked for. `state` is the folder of the embedded
        driver when the URL names none; `upgrade` brings an older schema to the present one; `inline` runs short calls
        in the loop instead of a thread.
        """
        if type(history) is not int or not 1 <= history <= HISTORY_MAX:
            raise InvalidArgument(f"history: {history!r} is not a whole number from 1 to {HISTORY_MAX}")
        if not isinstance(url, str):
            raise InvalidArgument(f"url: {url!r} is not a string, such as 'embedded://' or 'nats://host:4222'")
        if not isinstance(ttl, bool):
            raise InvalidArgument(f"ttl: {ttl!r} is neither True nor False; a time goes with each write, as ttl_s")
        options = BucketOptions(
            bucket=check_name("bucket", bucket),
            namespace=check_name("namespace", namespace),
            state=os.fspath(state),
            history=history,
            ttl=ttl,
            create=create,
            upgrade=upgrade,
            inline=inline,
        )
        async with AsyncExitStack() as stack:
            kv = cls(await stack.enter_async_context(open_driver(url, options)))
            stack.push_async_callback(kv.aclose)
            if history > 1 and Capability.HISTORY not in kv.capabilities:
                raise Unsupported("history: this store keeps the last value alone; open the bucket with history=1")
            yield kv

    def __repr__(self) -> str:
        state = "closed" if self._lifecycle.closed else f"{self._watches} watches"
        return f"<KV on {self.driver!r}, {state}>"

    @property
    def capabilities(self) -> Capability:
        """What the driver, and the bucket as it was opened, can do."""
        return self.driver.capabilities

    @property
    def limits(self) -> Limits:
        """The numbers of the bucket as it was opened."""
        return self.driver.limits

    @measured("kv")
    async def get(self, key: str) -> Entry | None:
        """The live entry of a key, None where there is none."""
        check_key(key)
        self._gets += 1
        return (await self._call(lambda: self.driver.get((key,)))).get(key)

    @measured("kv")
    async def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The live entries of up to 1,000 keys, in their order, in one round trip; absent ones are left out."""
        wanted = self._check_many(keys)
        self._gets += len(wanted)
        return await self._call(lambda: self.driver.get(wanted)) if wanted else {}

    async def exists(self, key: str) -> bool:
        """Whether the key has a live entry."""
        return await self.get(key) is not None

    @measured("kv")
    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, fence: Fence | None = None) -> int:
        """Write a value, durably, whatever there was; its revision. It expires `ttl_s` seconds later, by the server's
        clock; without, never: writing renews, or ends, what was set before.
        """
        return await self._put(key, value, None, ttl_s, fence)

    @measured("kv")
    async def create(self, key: str, value: bytes, *, ttl_s: float | None = None, fence: Fence | None = None) -> int:
        """Write a value where there is none; its revision. `already_exists` (details: revision) where there is one."""
        return await self._put(key, value, 0, ttl_s, fence)

    @measured("kv")
    async def update(
        self, key: str, value: bytes, *, revision: int, ttl_s: float | None = None, fence: Fence | None = None
    ) -> int:
        """Write a value over the one with that revision; its revision. Raises `not_found`, and `conflict` where the
        entry has another one (details: expected, actual).
        """
        return await self._put(key, value, _check_revision(revision), ttl_s, fence)

    @measured("kv")
    async def delete(self, key: str, *, revision: int | None = None, fence: Fence | None = None) -> None:
        """Delete a key. A missing one is no error, unless it should have a `revision`: `not_found`, or `conflict`
        where it has another one. Older values stay in the history.
        """
        await self._remove(WriteKind.DELETE, key, revision, fence)

    @measured("kv")
    async def purge(self, key: str, *, revision: int | None = None, fence: Fence | None = None) -> None:
        """Delete a key together with its history."""
        await self._remove(WriteKind.PURGE, key, revision, fence)

    @measured("kv")
    async def put_many(
        self, values: Mapping[str, bytes], *, ttl_s: float | None = None, fence: Fence | None = None
    ) -> dict[str, int]:
        """Write up to 1,000 values, all or none, in one round trip; their revisions, in the order given."""
        if not isinstance(values, Mapping):
            raise InvalidArgument(f"values: {type(values).__name__} is no mapping of keys to bytes")
        keys = self._check_many(values)
        self._check_ttl(ttl_s)
        writes = [Write(kind=WriteKind.PUT, key=key, value=self._check_value(values[key]), ttl_s=ttl_s) for key in keys]
        revisions = await self._write(writes, fence)
        self._puts += len(keys)
        return dict(zip(keys, revisions, strict=True))

    @measured("kv")
    async def delete_many(self, keys: Iterable[str], *, fence: Fence | None = None) -> int:
        """Delete up to 1,000 keys, all or none, in one round trip; how many there were."""
        writes = [Write(kind=WriteKind.DELETE, key=key) for key in self._check_many(keys)]
        count = sum(revision > 0 for revision in await self._write(writes, fence))
        self._removals += count
        return count

    @measured("kv")
    async def clear(self, prefix: str) -> int:
        """Delete every key that begins with `prefix`, and nothing else; how many there were. Not in one step: keys
        that are written meanwhile, in a cluster also some milliseconds before, may stay.
        """
        check_prefix(prefix)
        count = await self._call(lambda: self.driver.clear(prefix))
        self._removals += count
        return count

    @measured("kv")
    async def keys(self, prefix: str = "", *, cursor: str | None = None, limit: int = PAGE_MAX) -> KeyPage:
        """One page of live keys that begin with `prefix`, by the bytes of their UTF-8 form. In a cluster what a replica
        lists may be some milliseconds old.
        """
        check_prefix(prefix)
        if cursor is not None:
            check_key(cursor, "cursor")
        if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
            raise InvalidArgument(f"limit: {limit!r} must be 1 to {PAGE_MAX}")
        return await self._call(lambda: self.driver.keys(prefix, cursor=cursor, limit=limit))

    @measured("kv")
    async def history(self, key: str) -> list[Entry]:
        """The values of a key that are kept, newest first, removals left out: as many as the bucket was opened with.

        They stay when the key is deleted, and go when it is purged. A value that has a TTL is the only one of its key.
        """
        check_key(key)
        return await self._call(lambda: self.driver.history(key))

    @measured("kv")
    async def status(self) -> Status:
        """Keys, bytes, last revision and settings of the bucket now."""
        return await self._call(self.driver.status)

    @asynccontextmanager
    async def watch(
        self, key: str | None = None, *, prefix: str | None = None, after: int | None = None
    ) -> AsyncIterator[Watch]:
        """The changes of a key, of all keys with a prefix, or of all.

        With `after` it begins with what has changed since that revision, instead of what is there; removals that are
        older than an hour, on NATS values that expired a minute ago (with history: a second), may be missing then.
        """
        if key is not None and prefix is not None:
            raise InvalidArgument(f"prefix: {prefix!r} and key {key!r} exclude each other; give one of them")
        if after is not None and (type(after) is not int or after < 0):
            raise InvalidArgument(f"after: {after!r} is not a revision; give a whole number from 0")
        selection = Selection(
            key=None if key is None else check_key(key),
            prefix=check_prefix("" if prefix is None else prefix),
            after=after,
        )
        async with AsyncExitStack() as stack:
            feed = await self._call(lambda: stack.enter_async_context(self.driver.watch(selection)))
            self._watches += 1
            stack.callback(self._unwatch)
            yield Watch(feed)

    def statistics(self) -> Statistics:
        """Counters."""
        return Statistics(
            gets=self._gets,
            puts=self._puts,
            removals=self._removals,
            retries=self._retries,
            watches=self._watches,
        )

    async def aclose(self) -> None:
        """Close the bucket; watches and calls that wait raise `closed`. Idempotent, ≤ 10 s."""
        await self._lifecycle.aclose()

    async def _put(self, key: str, value: bytes, expected: int | None, ttl_s: float | None, fence: Fence | None) -> int:
        self._check_ttl(ttl_s)
        write = Write(
            kind=WriteKind.PUT, key=check_key(key), value=self._check_value(value), ttl_s=ttl_s, expected=expected
        )
        [revision] = await self._write((write,), fence)
        self._puts += 1
        return revision

    async def _remove(self, kind: WriteKind, key: str, revision: int | None, fence: Fence | None) -> None:
        expected = None if revision is None else _check_revision(revision)
        [done] = await self._write((Write(kind=kind, key=check_key(key), expected=expected),), fence)
        self._removals += done > 0

    async def _write(self, writes: Sequence[Write], fence: Fence | None) -> list[int]:
        if fence is not None:
            check_fence(fence)
            if Capability.FENCES not in self.capabilities:
                raise Unsupported("fence: this store cannot check terms; use one with Capability.FENCES")
        self._lifecycle.check_open()
        if not writes:
            return []
        name, tries = new_id(), 0

        def write() -> Awaitable[list[int]]:
            nonlocal tries
            tries += 1
            return self.driver.write(writes, WriteOptions(id=name, fence=fence, repeated=tries > 1))

        return await self._call(write)

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        attempt, began = 1, time.monotonic()
        while True:
            self._lifecycle.check_open()
            try:
                return await call()
            except GroundplaneError as error:
                late = attempt >= self._retry.attempts or time.monotonic() - began > RETRY_WITHIN_S
                if late or not error.retryable:
                    raise
            self._retries += 1
            await asyncio.sleep(self._retry.delay_s(attempt))
            attempt += 1

    def _unwatch(self) -> None:
        self._watches -= 1

    def _check_many(self, keys: Iterable[str]) -> list[str]:
        if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
            raise InvalidArgument(f"keys: {keys!r} is not several keys; give a list of them")
        wanted = list(dict.fromkeys(check_key(key) for key in keys))
        if len(wanted) > self.limits.many_max:
            raise InvalidArgument(
                f"keys: {len(wanted)!r} at once are more than {self.limits.many_max}; make more calls"
            )
        return wanted

    def _check_value(self, value: object) -> bytes:
        if not isinstance(value, bytes):
            raise InvalidArgument(f"value: {type(value).__name__} is not bytes; encode it before")
        most = self.limits.value_bytes_max
        if len(value) > most:
            raise InvalidArgument(
                f"value: {len(value)!r} bytes are more than {most}; put large data into blobs and its key here",
                reason="payload_too_large",
                details={"bytes": len(value), "bytes_max": most},
            )
        return value

    def _check_ttl(self, ttl_s: object) -> None:
        if ttl_s is None:
            return
        if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0 < ttl_s <= TTL_MAX_S:
            raise InvalidArgument(
                f"ttl_s: {ttl_s!r} is not a number of seconds above 0, at most {TTL_MAX_S:g}; leave it out for a value "
                "that stays"
            )
        resolution = self.limits.ttl_resolution_s
        if Capability.TTL not in self.capabilities or resolution is None:
            raise Unsupported("ttl_s: the bucket was opened without TTL; open it with ttl=True")
        steps = ttl_s / resolution
        if not math.isclose(steps, round(steps), rel_tol=1e-9):
            raise Unsupported(
                f"ttl_s: {ttl_s!r} is finer than this store's {resolution:g} s; give a multiple of that",
                details={"ttl_s": ttl_s, "ttl_resolution_s": resolution},
            )


def _check_revision(revision: object) -> int:
    if type(revision) is not int or revision < 1:
        raise InvalidArgument(f"revision: {revision!r} is not one; give the revision of an entry")
    return revision


__all__ = ["KV", "Statistics"]
