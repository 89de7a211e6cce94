"""The port of object storage: named bytes, whole objects, replaced atomically."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

OBJECT_BYTES_MAX = 5 * 1024**4


class Capability(enum.Flag):
    """What a driver declares; the suite asserts the refusal (`unsupported`) of what is absent."""

    NONE = 0
    PRESIGN = enum.auto()
    """URLs that give access for a time."""
    VERSIONS = enum.auto()
    """The store keeps earlier versions itself. Without, the façade keeps them under keys with a suffix."""

    SHARES_SYNC = enum.auto()
    """Puts that come together cost less than one by one: they wait for one sync of a disk. Nothing to refuse."""


class BlobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an object: size in bytes, etag (changes with the content), SHA-256 in hex, Unix ms of its last
    change.
    """

    key: str
    size: int
    etag: str
    checksum: str
    modified_at: int
    content_type: str = "application/octet-stream"
    metadata: dict[str, str] = {}


class BlobPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of objects in the order of their keys (by UTF-8 bytes); `cursor` of the next page, or None at the end."""

    items: list[BlobInfo]
    cursor: str | None = None


class BlobVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of an object: its id, bytes, etag, Unix ms of its writing, whether it is what `get` gives now."""

    key: str
    id: str
    size: int
    etag: str
    modified_at: int
    present: bool = False


class PutOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions and labels of a put: `create` refuses an existing key, `if_match` any etag but this one."""

    create: bool = False
    if_match: str | None = None
    content_type: str = "application/octet-stream"
    metadata: dict[str, str] = {}


class BlobReader(Protocol):
    """An open object: its info, and its bytes in chunks. The checksum is verified at the end of a whole read."""

    info: BlobInfo

    def chunks(self, chunk_bytes: int = 1024 * 1024) -> AsyncIterator[bytes]:
        """The bytes in order, with bounded memory. Raises `internal` (reason `checksum_mismatch`) for damaged bytes."""
        ...


class BlobDriver(Protocol):
    """One store of objects under one prefix. Keys are checked by the façade. May be called concurrently."""

    capabilities: Capability

    async def put(self, key: str, chunks: AsyncIterator[bytes], options: PutOptions) -> BlobInfo:
        """Store the bytes; visible as a whole when it returns, durable, and not at all when it fails or is cancelled
        (unless the cancel comes in the moment in which the object gets its name: then it is stored whole).

        Raises `already_exists` (`create`), `conflict` (`if_match`), `resource_exhausted` (disk full).
        """
        ...

    def open(self, key: str, *, version: str | None = None) -> AbstractAsyncContextManager[BlobReader]:
        """Read an object, or an earlier version of it. Raises `not_found`; `unsupported` for a version without
        `Capability.VERSIONS`.
        """
        ...

    async def head(self, key: str) -> BlobInfo:
        """What is known of it, without its bytes. Raises `not_found`."""
        ...

    async def list_blobs(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> BlobPage:
        """Objects whose key begins with `prefix`, in the order of keys."""
        ...

    async def delete(self, keys: Sequence[str], *, version: str | None = None) -> int:
        """Delete objects; how many there were. A missing one is no error. With `version`, which takes one key, that
        version alone is removed, for good; `unsupported` without `Capability.VERSIONS`.
        """
        ...

    async def versions(self, key: str, *, limit: int = 1000) -> list[BlobVersion]:
        """Versions of an object that the store keeps, newest first; none for a key that never was.

        `unsupported` without `Capability.VERSIONS`.
        """
        ...

    async def presign(self, key: str, *, expires_s: float) -> str:
        """A URL that reads the object for a time. `unsupported` without `Capability.PRESIGN`."""
        ...

    async def aclose(self) -> None:
        """Close what this driver opened. Idempotent, ≤ 10 s."""
        ...
