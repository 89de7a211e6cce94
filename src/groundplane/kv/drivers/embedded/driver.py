"""The driver: each call is one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from groundplane.backends.sqlite import Database, MigrationSet, Transaction
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import Closed, InvalidArgument
from groundplane.core.secrets import mask_url
from groundplane.kv.drivers.embedded import rows
from groundplane.kv.drivers.embedded.feed import EmbeddedFeed, Expiry, Place
from groundplane.kv.port import (
    VALUE_BYTES_MAX,
    BucketOptions,
    Capability,
    Entry,
    KeyPage,
    KVDriver,
    Limits,
    Selection,
    Status,
    Write,
    WriteOptions,
)
from groundplane.kv.refusals import check_after

MIGRATIONS = MigrationSet(component="kv", package="groundplane.kv.sql.sqlite")
TTL_RESOLUTION_S = 0.001
FORGET_EVERY_S = 60.0
CLEARED_AT_ONCE = 500


class EmbeddedKV:
    """One bucket in one file."""

    def __init__(
        self, database: Database, bucket: rows.Bucket, options: BucketOptions, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.native = database
        self.capabilities = Capability.HISTORY | Capability.FENCES
        if options.ttl:
            self.capabilities |= Capability.TTL
        self.limits = Limits(
            value_bytes_max=VALUE_BYTES_MAX,
            ttl_resolution_s=TTL_RESOLUTION_S if options.ttl else None,
            history=options.history,
        )
        self._bucket_id = bucket.bucket_id
        self._options = options
        self._clock = clock
        self._expiry: asyncio.Task[None] | None = None
        self._watches = 0
        self._forgot_at = clock.monotonic()
        self._closed = False

    async def get(self, keys: Sequence[str]) -> dict[str, Entry]:
        """See the port."""
        now = self._clock.now_ms()
        return await self.native.read(lambda tx: rows.read_entries(tx, self._bucket_id, keys, now))

    async def write(self, writes: Sequence[Write], options: WriteOptions) -> list[int]:
        """See the port. A write that failed was not done, so `repeated` needs no care."""
        forgets = self._clock.monotonic() - self._forgot_at > FORGET_EVERY_S
        if forgets:
            self._forgot_at = self._clock.monotonic()

        def write(tx: Transaction) -> list[int]:
            now = self._clock.now_ms()
            revisions = rows.write_all(tx, self._bucket_id, writes, options.fence, now)
            if forgets:
                rows.forget_removals(tx, self._bucket_id, now)
            return revisions

        return await self.native.write(write)

    async def clear(self, prefix: str) -> int:
        """See the port. In steps, so that other writers get their turn."""
        total = 0
        while True:
            count = await self.native.write(
                lambda tx: rows.clear(tx, self._bucket_id, prefix, CLEARED_AT_ONCE, self._clock.now_ms())
            )
            total += count
            if count < CLEARED_AT_ONCE:
                return total

    async def keys(self, prefix: str, *, cursor: str | None, limit: int) -> KeyPage:
        """See the port."""
        now = self._clock.now_ms()
        found = await self.native.read(lambda tx: rows.read_keys(tx, self._bucket_id, prefix, cursor, limit + 1, now))
        return KeyPage(items=found[:limit], cursor=found[limit - 1] if len(found) > limit else None)

    async def history(self, key: str) -> list[Entry]:
        """See the port."""
        now = self._clock.now_ms()
        return await self.native.read(
            lambda tx: rows.read_history(tx, self._bucket_id, key, self._options.history, now)
        )

    async def status(self) -> Status:
        """See the port."""
        now = self._clock.now_ms()
        count, size, revision, history, ttl = await self.native.read(
            lambda tx: rows.read_sizes(tx, self._bucket_id, now)
        )
        return Status(
            bucket=self._options.bucket,
            backend="embedded",
            keys=count,
            bytes=size,
            revision=revision,
            history=history,
            ttl=bool(ttl),
            limits=self.limits,
        )

    @asynccontextmanager
    async def watch(self, selection: Selection) -> AsyncIterator[EmbeddedFeed]:
        """See the port."""
        place = Place(self.native, self._bucket_id, self._clock)
        async with self.native.listen(rows.topic_of(self._bucket_id)) as listener:
            if self._expiry is None or self._expiry.done():
                self._expiry = asyncio.create_task(Expiry(place).run(), name="groundplane-kv-expiry")
            self._watches += 1
            try:
                last = await self.native.read(lambda tx: rows.last_revision(tx, self._bucket_id))
                yield EmbeddedFeed(place, check_after(selection, last), listener, last)
            finally:
                self._watches -= 1
                await self._end_expiry()

    async def aclose(self) -> None:
        """See the port. Listeners of feeds end with the database."""
        self._closed = True
        await self._end_expiry()
        await self.native.aclose()

    def __repr__(self) -> str:
        return f"<EmbeddedKV {self._options.namespace!r}/{self._options.bucket!r} on {self.native!r}>"

    async def _end_expiry(self) -> None:
        """Where nobody watches any more, or this is closed."""
        task = self._expiry
        if task is None or (self._watches and not self._closed):
            return
        self._expiry = None
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and not isinstance(task.exception(), Closed):
            task.result()


@asynccontextmanager
async def open_driver(url: str, options: BucketOptions) -> AsyncIterator[KVDriver]:
    """Open a bucket; `invalid_argument` for a URL with more than a folder in it."""
    path = _folder(url, options.state) / "plane.db"
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database.open(path, [MIGRATIONS], upgrade=options.upgrade, inline=options.inline)
        )
        bucket = await database.read(lambda tx: rows.find_bucket(tx, options))
        if bucket is None:
            bucket = await database.write(lambda tx: rows.make_bucket(tx, options))
        driver = EmbeddedKV(database, bucket, options)
        stack.push_async_callback(driver.aclose)
        yield driver


def _folder(url: str, state: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise InvalidArgument(
            f"kv: {mask_url(url)!r} takes nothing but a folder: embedded:// or embedded:///state/folder"
        )
    return Path(unquote(parts.path)) if parts.path.strip("/") else Path(state)


_: type[KVDriver] = EmbeddedKV
