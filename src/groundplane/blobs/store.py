"""The façade of blobs: checks, bounds and closing, over any driver."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from groundplane.blobs.drivers import open_driver
from groundplane.blobs.keys import check_characters, check_key, check_prefix
from groundplane.blobs.port import (
    OBJECT_BYTES_MAX,
    BlobDriver,
    BlobInfo,
    BlobPage,
    BlobReader,
    BlobVersion,
    Capability,
    PutOptions,
)
from groundplane.blobs.versions import Versions, is_version
from groundplane.core.clock import SYSTEM_CLOCK
from groundplane.core.errors import InvalidArgument, ResourceExhausted, Unsupported
from groundplane.core.lifecycle import Lifecycle
from groundplane.telemetry.calls import measured

T = TypeVar("T")

METADATA_BYTES_MAX = 2048
PAGE_MAX = 1000


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What went through this object since it was opened; sizes in bytes. Objects read in chunks are not counted."""

    puts: int
    put_bytes: int
    gets: int
    get_bytes: int
    deleted: int


class Blobs:
    """Objects by key. Everything may be called concurrently; nothing is retried: a stream cannot be read twice.

    Errors of every method: `closed`, `unavailable` (the store does not answer), `permission_denied`.
    """

    def __init__(self, driver: BlobDriver) -> None:
        self.driver = driver
        self._versions = Versions(driver)
        self._lifecycle = Lifecycle("blobs")
        self._lifecycle.on_close(driver.aclose)
        self._puts = self._put_bytes = self._gets = self._get_bytes = self._deleted = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str = "embedded://", *, state: Path | str = ".groundplane") -> AsyncIterator[Blobs]:
        """Open the store that the URL names; `embedded://` is `<state>/blobs`. `invalid_argument` for a bad URL."""
        blobs = cls(await open_driver(url, Path(state)))
        try:
            yield blobs
        finally:
            await blobs.aclose()

    @property
    def capabilities(self) -> Capability:
        """What the driver can do."""
        return self.driver.capabilities

    @measured("blobs")
    async def put(
        self,
        key: str,
        data: bytes | AsyncIterable[bytes],
        *,
        create: bool = False,
        if_match: str | None = None,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
        keep: int | None = None,
    ) -> BlobInfo:
        """Store an object, whole or not at all; durable when this returns. A stream is never held in memory.

        `create` raises `already_exists` for a key that is there, `if_match` raises `conflict` for another etag than
        this. With `keep` the last so many versions, this one included, can still be read (`versions`), older ones are
        deleted. A full disk is `resource_exhausted`, and leaves nothing behind; so does a cancelled call.
        """
        if create and if_match is not None:
            raise InvalidArgument(f"if_match: {if_match!r} and create exclude each other; give one of them")
        options = PutOptions(
            create=create,
            if_match=if_match,
            content_type=_check_content_type(content_type),
            metadata=_check_metadata(metadata or {}),
        )
        chunks = _bounded(_check_own(key), data)
        if keep is None:
            info = await self._run(self.driver.put(key, chunks, options))
        else:
            info = await self._run(self._versions.put(key, chunks, options, keep))
        self._puts += 1
        self._put_bytes += info.size
        return info

    @measured("blobs")
    async def get(self, key: str, *, version: str | None = None, bytes_max: int | None = None) -> bytes:
        """The whole object, or an earlier version of it, its checksum verified. Raises `not_found`;
        `resource_exhausted` above `bytes_max`.
        """
        data = await self._run(self._get(check_key(key), version, bytes_max))
        self._gets += 1
        self._get_bytes += len(data)
        return data

    @asynccontextmanager
    async def open_object(self, key: str, *, version: str | None = None) -> AsyncIterator[BlobReader]:
        """Read an object, or an earlier version, in chunks with bounded memory: `async for chunk in reader.chunks()`.
        Raises `not_found`.
        """
        self._lifecycle.check_open()
        async with self._opened(check_key(key), version) as reader:
            yield reader

    @measured("blobs")
    async def head(self, key: str) -> BlobInfo:
        """What is known of an object, without its bytes. Raises `not_found`."""
        return await self._run(self.driver.head(check_key(key)))

    @measured("blobs")
    async def list_page(self, prefix: str = "", *, cursor: str | None = None, limit: int = PAGE_MAX) -> BlobPage:
        """One page of objects whose key begins with `prefix`, by the bytes of their keys. It may hold fewer than
        `limit` and yet have a cursor.
        """
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidArgument(f"limit: {limit!r} must be 1 to {PAGE_MAX}")
        page = await self._run(self.driver.list_blobs(check_prefix(prefix), cursor=cursor, limit=limit))
        if any(is_version(info.key) for info in page.items):
            return BlobPage(items=[info for info in page.items if not is_version(info.key)], cursor=page.cursor)
        return page

    async def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        """All objects whose key begins with `prefix`, by the bytes of their keys, page by page."""
        cursor = None
        while True:
            page = await self.list_page(prefix, cursor=cursor)
            for info in page.items:
                yield info
            if page.cursor is None:
                return
            cursor = page.cursor

    async def versions(self, key: str, *, limit: int = 100) -> Sequence[BlobVersion]:
        """The versions of an object that can still be read, newest first: those that `put(keep=…)` has kept, or those
        of the store where it keeps them itself (`Capability.VERSIONS`).
        """
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidArgument(f"limit: {limit!r} must be 1 to {PAGE_MAX}")
        return await self._run(self._versions.told(check_key(key), limit))

    async def prune(self, key: str, *, keep: int) -> int:
        """Delete all versions of an object but the newest `keep`; how many."""
        if not 1 <= keep <= PAGE_MAX:
            raise InvalidArgument(f"keep: {keep!r} must be 1 to {PAGE_MAX}")
        return await self._run(self._versions.prune(check_key(key), keep))

    @measured("blobs")
    async def expire(self, prefix: str, *, older_than_s: float) -> int:
        """Delete the objects whose key begins with `prefix` and that were last changed so long ago, and what is kept of
        their versions; how many. A lifecycle rule for stores that have none: run it from time to time.
        """
        if not older_than_s > 0:
            raise InvalidArgument(f"older_than_s: {older_than_s!r} must be more than 0 seconds")
        before = SYSTEM_CLOCK.now_ms() - round(older_than_s * 1000)
        cursor, count = None, 0
        while True:
            page = await self._run(self.driver.list_blobs(check_prefix(prefix), cursor=cursor, limit=PAGE_MAX))
            old = [info.key for info in page.items if info.modified_at < before]
            count += await self._run(self.driver.delete(old)) if old else 0
            cursor = page.cursor
            if cursor is None:
                self._deleted += count
                return count

    @measured("blobs")
    async def delete(self, *keys: str) -> int:
        """Delete objects; how many there were. A missing one is no error. Kept versions stay."""
        count = await self._run(self.driver.delete([check_key(key) for key in keys]))
        self._deleted += count
        return count

    async def presign(self, key: str, *, expires_s: float) -> str:
        """A URL that reads the object for `expires_s` seconds. `unsupported` without `Capability.PRESIGN`."""
        if not expires_s > 0:
            raise InvalidArgument(f"expires_s: {expires_s!r} must be more than 0 seconds")
        if Capability.PRESIGN not in self.capabilities:
            raise Unsupported("presign: this store of blobs has no URLs; read the object with `open_object`")
        return await self._run(self.driver.presign(check_key(key), expires_s=expires_s))

    def statistics(self) -> Statistics:
        """Counters."""
        return Statistics(
            puts=self._puts,
            put_bytes=self._put_bytes,
            gets=self._gets,
            get_bytes=self._get_bytes,
            deleted=self._deleted,
        )

    async def aclose(self) -> None:
        """Fail the calls that are under way with `closed`, then close the driver. Idempotent, ≤ 10 s."""
        await self._lifecycle.aclose()

    def __repr__(self) -> str:
        return f"<Blobs {type(self.driver).__name__} {'closed' if self._lifecycle.closed else 'open'}>"

    async def _run(self, call: Coroutine[Any, Any, T]) -> T:
        if self._lifecycle.closed:
            call.close()
        return cast(T, await self._lifecycle.run(call))

    def _opened(self, key: str, version: str | None) -> AbstractAsyncContextManager[BlobReader]:
        return self.driver.open(key) if version is None else self._versions.open(key, version)

    async def _get(self, key: str, version: str | None, bytes_max: int | None) -> bytes:
        async with self._opened(key, version) as reader:
            if bytes_max is not None and reader.info.size > bytes_max:
                raise ResourceExhausted(f"bytes_max: {key!r} has {reader.info.size} bytes, more than {bytes_max!r}")
            return b"".join([chunk async for chunk in reader.chunks(max(1, reader.info.size))])


def _check_own(key: str) -> str:
    if is_version(check_key(key)):
        raise InvalidArgument(f"key: {key!r} ends as the keys of kept versions do; give it another name")
    return key


async def _bounded(key: str, data: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(data, bytes | bytearray | memoryview):
        yield bytes(data)
        return
    size = 0
    async for chunk in data:
        size += len(chunk)
        if size > OBJECT_BYTES_MAX:
            raise InvalidArgument(f"data: {key!r} is over {OBJECT_BYTES_MAX} bytes", reason="payload_too_large")
        yield chunk


def _check_content_type(value: str) -> str:
    if not 1 <= len(value) <= 255 or not value.isascii():
        raise InvalidArgument(f"content_type: {value!r} must be 1 to 255 characters of ASCII")
    return check_characters("content_type", value)


def _check_metadata(metadata: Mapping[Any, Any]) -> dict[str, str]:
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str) or not name:
            raise InvalidArgument(f"metadata: {name!r}={value!r} must be strings, the name not empty")
        check_characters("metadata", name)
    size = sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())
    if size > METADATA_BYTES_MAX:
        raise InvalidArgument(f"metadata: {size} bytes are more than {METADATA_BYTES_MAX}; store an object instead")
    return dict(metadata)
