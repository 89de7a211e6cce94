"""Earlier versions of objects, on any driver: the store's own where it keeps them, else under keys with a suffix.

With suffixes, `put(key, keep=n)` stores the bytes as `<key>~<Unix ms>.<8 hex digits>` first and as the present object
then, so that no version that was ever present is lost, whoever writes at the same time. Listings leave these keys out.
A put that is killed between the two leaves a version that never was present.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from groundplane.blobs.keys import KEY_CHARS_MAX
from groundplane.blobs.port import BlobDriver, BlobInfo, BlobReader, BlobVersion, Capability, PutOptions
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import AlreadyExists, InvalidArgument, NotFound

KEEP_MAX = 1000
_ID = re.compile(r"\d{13}\.[0-9a-f]{8}")
_SUFFIX = re.compile(r"~\d{13}\.[0-9a-f]{8}$")
_SUFFIX_CHARS = 23


def is_version(key: str) -> bool:
    """Whether the key is that of an earlier version of another."""
    return _SUFFIX.search(key) is not None


class Versions:
    """Versions of the objects of one driver. May be used concurrently."""

    def __init__(self, driver: BlobDriver, clock: Clock = SYSTEM_CLOCK) -> None:
        self._driver = driver
        self._clock = clock
        self._native = Capability.VERSIONS in driver.capabilities

    async def put(self, key: str, chunks: AsyncIterator[bytes], options: PutOptions, keep: int) -> BlobInfo:
        """Store an object; it and the `keep` - 1 versions before it stay. What is older is deleted."""
        if not 1 <= keep <= KEEP_MAX:
            raise InvalidArgument(f"keep: {keep!r} must be 1 to {KEEP_MAX}")
        info = await (self._driver.put(key, chunks, options) if self._native else self._put(key, chunks, options))
        await self.prune(key, keep)
        return info

    async def told(self, key: str, limit: int) -> list[BlobVersion]:
        """Versions, newest first."""
        if self._native:
            return await self._driver.versions(key, limit=limit)
        kept = await self._kept(key)
        try:
            present: BlobInfo | None = await self._driver.head(key)
        except NotFound:
            present = None
        return _told(key, kept, present)[:limit]

    @asynccontextmanager
    async def open(self, key: str, version: str) -> AsyncIterator[BlobReader]:
        """Read one of them. Raises `not_found`."""
        if self._native:
            async with self._driver.open(key, version=version) as reader:
                yield reader
            return
        if not _ID.fullmatch(version):
            raise NotFound(f"version: {version!r} of {key!r} is not there; look at `versions`")
        async with self._driver.open(f"{key}~{version}") as reader:
            yield reader

    async def prune(self, key: str, keep: int) -> int:
        """Delete all but the newest `keep`; how many."""
        old = (await self.told(key, KEEP_MAX + keep))[keep:]
        if self._native:
            return sum([await self._driver.delete([key], version=one.id) for one in old])
        return await self._driver.delete([f"{key}~{one.id}" for one in old]) if old else 0

    async def _put(self, key: str, chunks: AsyncIterator[bytes], options: PutOptions) -> BlobInfo:
        if len(key) + _SUFFIX_CHARS > KEY_CHARS_MAX:
            raise InvalidArgument(
                f"key: {key!r} has {len(key)} characters; one of which versions are kept has at most "
                f"{KEY_CHARS_MAX - _SUFFIX_CHARS}"
            )
        await self._keep_what_is_there(key)
        name = f"{key}~{self._clock.now_ms():013d}.{secrets.token_hex(4)}"
        await self._driver.put(name, chunks, msgspec.structs.replace(options, create=True, if_match=None))
        try:
            async with self._driver.open(name) as reader:
                return await self._driver.put(key, reader.chunks(), options)
        except BaseException:
            await self._driver.delete([name])
            raise

    async def _keep_what_is_there(self, key: str) -> None:
        """An object that was put without `keep` becomes a version when one with `keep` replaces it."""
        try:
            async with self._driver.open(key) as reader:
                info = reader.info
                if any(one.checksum == info.checksum for one in await self._kept(key)):
                    return
                options = PutOptions(create=True, content_type=info.content_type, metadata=info.metadata)
                await self._driver.put(f"{key}~{_id(info)}", reader.chunks(), options)
        except (NotFound, AlreadyExists):
            return

    async def _kept(self, key: str) -> list[BlobInfo]:
        """Newest first."""
        found: list[BlobInfo] = []
        cursor = None
        while True:
            page = await self._driver.list_blobs(f"{key}~", cursor=cursor, limit=1000)
            found += [one for one in page.items if _ID.fullmatch(one.key[len(key) + 1 :])]
            cursor = page.cursor
            if cursor is None:
                return found[::-1]


def _told(key: str, kept: list[BlobInfo], present: BlobInfo | None) -> list[BlobVersion]:
    """The present one is the newest of those that have its bytes; one that was put without `keep` stands first."""
    versions = [_version(key, one.key[len(key) + 1 :], one) for one in kept]
    if present is None:
        return versions
    at = next((n for n, one in enumerate(kept) if one.checksum == present.checksum), None)
    if at is None:
        return [msgspec.structs.replace(_version(key, _id(present), present), present=True), *versions]
    versions[at] = msgspec.structs.replace(versions[at], present=True)
    return versions


def _version(key: str, version: str, info: BlobInfo) -> BlobVersion:
    return BlobVersion(key=key, id=version, size=info.size, etag=info.etag, modified_at=info.modified_at)


def _id(info: BlobInfo) -> str:
    return f"{info.modified_at:013d}.{info.checksum[:8] or '0' * 8}"
