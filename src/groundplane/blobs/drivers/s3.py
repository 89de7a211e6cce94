"""Blobs in a bucket of S3, or of a store that speaks like it (MinIO, versitygw).

Address: `s3://bucket/prefix?endpoint=http://host:port&region=…`; credentials are `key:secret@` before the bucket (or
in the endpoint), else `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, else what boto3 finds. Options: `timeout` (30 s
between two answers of the store), `connect_timeout` (5 s), `style=path|virtual`, `keys=marked|plain` (see `s3_names`),
`versions=bucket` (earlier versions are those of the bucket, which must keep them), `create=true` (make a missing
bucket, with versions where these are asked for), `ca` (a file of certificates).
Guarantee: what the store gives; a put that returned is durable there and is seen whole or not at all.
Limits: the name of an object, prefix included, has 1024 bytes: keys that are longer are listed in the order of what
fits alone; labels together 2 KiB as headers, and the names of those that begin with `groundplane-` are ours; 5 TiB.
Listing costs a request for each object: labels are not in a listing of S3.
Cannot: count what `delete` deleted while another deletes the same; tell a bucket that went away from a missing key.
Escape hatch: `native` is obstore's store, `bucket` the administration (versioning, lifecycle, abandoned uploads).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from groundplane.backends.s3.address import S3Address, parse_url
from groundplane.backends.s3.bucket import Bucket, LifecycleRule
from groundplane.backends.s3.objects import Objects, Stat
from groundplane.blobs.drivers.s3_names import Names, info_of, labels
from groundplane.blobs.drivers.s3_upload import SINGLE_BYTES_MAX, Body, Whole, body_of, upload_parts
from groundplane.blobs.port import BlobDriver, BlobInfo, BlobPage, BlobReader, BlobVersion, Capability, PutOptions
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import (
    AlreadyExists,
    Closed,
    Conflict,
    FailedPrecondition,
    Internal,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)

if TYPE_CHECKING:
    from obstore import GetResult

T = TypeVar("T")

ABANDONED_S = 86_400.0
"""After this an upload that was not completed is taken for one whose process was killed."""

_UPLOADS_END_S = 4.0
_HEADS_AT_ONCE = 16
_INLINE_HASH_BYTES = 256 * 1024
_PIECE_BYTES = 4 * 1024 * 1024


class S3Blobs:
    """The driver."""

    def __init__(self, address: S3Address, clock: Clock = SYSTEM_CLOCK) -> None:
        self.address = address
        self.bucket = Bucket(address)
        self.capabilities = Capability.PRESIGN
        if address.versions == "bucket":
            self.capabilities |= Capability.VERSIONS
        self._objects: Objects | None = Objects(address)
        self._names = Names(address.prefix, plain=address.keys == "plain")
        self._clock = clock
        self._collected = False
        self._uploads = 0
        self._no_uploads = asyncio.Event()

    @property
    def native(self) -> Any:
        """obstore's `S3Store`."""
        return self._open.native

    async def put(self, key: str, chunks: AsyncIterator[bytes], options: PutOptions) -> BlobInfo:
        """See the port. One request for what is in memory; a longer stream goes through a file, then up in parts."""
        objects, name, doing = self._open, self._names.name(key), f"key: writing {key!r}"
        body = await body_of(chunks)
        try:
            modified_at = self._clock.now_ms()
            headers = labels(key, self._names.key(name), body.checksum, modified_at, options)
            try:
                if isinstance(body, Whole) and body.size <= SINGLE_BYTES_MAX:
                    etag = await objects.put(
                        name,
                        body.data,
                        {"Content-Type": options.content_type, **headers},
                        create=options.create,
                        if_match=options.if_match,
                        doing=doing,
                    )
                else:
                    etag = await self._put_parts(name, body, headers, options, doing)
            except (Conflict, NotFound) as error:
                raise await self._refused(key, error, options) from error
        finally:
            body.close()
        return BlobInfo(
            key=key,
            size=body.size,
            etag=etag,
            checksum=body.checksum,
            modified_at=modified_at,
            content_type=options.content_type,
            metadata=options.metadata,
        )

    @asynccontextmanager
    async def open(self, key: str, *, version: str | None = None) -> AsyncIterator[BlobReader]:
        """See the port. The request is made here; what it gives is one version of the object, whatever comes after."""
        if version is not None:
            self._check_versions()
        doing = f"key: reading {key!r}{f' of version {version!r}' if version else ''}"
        stat, found = await self._open.get(self._names.name(key), version=version, doing=doing)
        yield _Reader(self._open, _info(key, stat), found, doing)

    async def head(self, key: str) -> BlobInfo:
        """See the port."""
        return _info(key, await self._open.stat(self._names.name(key), doing=f"key: looking at {key!r}"))

    async def list_blobs(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> BlobPage:
        """See the port. The cursor is the last key of the page before."""
        start = self._names.start(prefix)
        after = self._names.before(start)
        if cursor is not None:
            after = max(after or "", self._names.name(cursor), key=str.encode)
        found: list[str] = []
        more = False
        doing = f"prefix: listing {prefix!r}"
        async with aclosing(self._open.names(start.rpartition("/")[0], after, doing)) as names:
            async for name in names:
                if not name.startswith(start):
                    break
                if len(found) == limit:
                    more = True
                    break
                if self._names.key(name) is not None:
                    found.append(name)
        infos = [info for info in await self._infos(found) if info is not None and info.key.startswith(prefix)]
        last = await self._key_of(found[-1]) if more else None
        return BlobPage(items=infos, cursor=last)

    async def delete(self, keys: Sequence[str], *, version: str | None = None) -> int:
        """See the port. Looks first, for S3 does not tell what was there."""
        objects = self._open
        if version is not None:
            return await self._delete_version(keys, version)
        names = [self._names.name(key) for key in dict.fromkeys(keys)]
        there = [name for name, stat in zip(names, await self._stats(names), strict=True) if stat is not None]
        await objects.delete(there, "key: deleting")
        return len(there)

    async def versions(self, key: str, *, limit: int = 1000) -> list[BlobVersion]:
        """See the port. Marks that deletions left are not told."""
        self._check_versions()
        found = await self.bucket.versions(self._names.name(key), limit, f"key: versions of {key!r}")
        return [
            BlobVersion(
                key=key, id=one.version, size=one.size, etag=one.etag, modified_at=one.modified_at, present=one.present
            )
            for one in found
            if not one.deleted
        ]

    async def presign(self, key: str, *, expires_s: float) -> str:
        """See the port. S3 takes whole seconds, up to seven days."""
        return await self._open.sign(self._names.name(key), max(1, round(expires_s)), f"key: signing {key!r}")

    async def aclose(self) -> None:
        """See the port. Uploads in parts that end now get 4 s to throw their parts away."""
        objects, self._objects = self._objects, None
        if objects is not None:
            objects.close()
        if self._uploads:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_UPLOADS_END_S):
                    await self._no_uploads.wait()
        await self.bucket.aclose()

    async def collect_abandoned(self, older_than_s: float = ABANDONED_S) -> int:
        """Throw away the parts of uploads below the prefix that were begun so long ago and never completed: those of
        processes that were killed. How many uploads. The first upload in parts of a process does this by itself.
        """
        doing = "uploads: collecting abandoned ones"
        before = self._clock.now_ms() - round(older_than_s * 1000)
        folder = f"{self._names.folder}/" if self._names.folder else ""
        old = [one for one in await self.bucket.uploads(folder, doing) if one.begun_at <= before]
        for one in old:
            await self.bucket.abort(one.name, one.id, doing)
        return len(old)

    async def set_lifecycle(self, rules: Sequence[LifecycleRule]) -> None:
        """What the store itself does with the objects of this plane: prefixes are those of keys. Rules that others have
        set on the bucket stay. Raises as `Bucket.set_lifecycle` does.
        """
        mark = f"groundplane:{self._names.folder}:"
        ours = [
            msgspec.structs.replace(one, id=f"{mark}{one.id}", prefix=self._names.start(one.prefix)) for one in rules
        ]
        others = [one for one in await self.bucket.lifecycle() if not str(one.get("ID", "")).startswith(mark)]
        await self.bucket.set_lifecycle(ours, others)

    async def check(self) -> None:
        """Prove that the bucket answers; with `create=true` make it first where it is missing."""
        try:
            await self._open.check()
        except NotFound:
            if not self.address.create:
                raise
            await self.bucket.create()
            if self.address.versions == "bucket":
                await self.bucket.set_versioning(True)
            await self._open.check()
        if self.address.versions == "bucket" and not await self.bucket.versioning():
            raise FailedPrecondition(
                f"blobs: versions=bucket, but {self.address.shown} keeps no versions; switch them on (aws s3api "
                f"put-bucket-versioning --bucket {self.address.bucket} --versioning-configuration Status=Enabled), or "
                "leave the option out",
            )

    @property
    def _open(self) -> Objects:
        if self._objects is None:
            raise Closed("blobs: the store is closed; open it again to use it")
        return self._objects

    def _check_versions(self) -> None:
        if Capability.VERSIONS not in self.capabilities:
            raise Unsupported(f"version: {self.address.shown} was opened without versions=bucket; add it to the URL")

    async def _delete_version(self, keys: Sequence[str], version: str) -> int:
        self._check_versions()
        (key,) = keys
        name, doing = self._names.name(key), f"key: deleting version {version!r} of {key!r}"
        try:
            await self._open.stat(name, version=version, doing=doing)
        except NotFound:
            return 0
        await self.bucket.delete_version(name, version, doing)
        return 1

    async def _put_parts(self, name: str, body: Body, headers: dict[str, str], options: PutOptions, doing: str) -> str:
        if not self._collected:
            self._collected = True
            with contextlib.suppress(PermissionDenied, Unsupported):  # who may put need not see what others put
                await self.collect_abandoned()
        self._uploads += 1
        self._no_uploads.clear()
        try:
            return await upload_parts(
                self.bucket,
                name,
                body,
                content_type=options.content_type,
                metadata=headers,
                create=options.create,
                if_match=options.if_match,
                doing=doing,
            )
        finally:
            self._uploads -= 1
            if not self._uploads:
                self._no_uploads.set()

    async def _refused(self, key: str, error: Conflict | NotFound, options: PutOptions) -> Exception:
        """What a condition that was not met is for the caller. Stores differ in how they say it."""
        if error.reason == "bucket_not_found":
            return error
        if options.if_match is not None:
            return Conflict(f"if_match: {key!r} is not, or no more, what {options.if_match!r} names; read it again")
        if not options.create:
            return error
        try:
            await self.head(key)
        except NotFound:
            return Unavailable(f"key: {key!r} was being written by another at this moment; try again")
        return AlreadyExists(f"key: {key!r} is there already; leave out create to replace it")

    async def _infos(self, names: Sequence[str]) -> list[BlobInfo | None]:
        stats = await self._stats(names)
        return [
            _info(self._names.key(name) or "", stat) if stat is not None else None
            for name, stat in zip(names, stats, strict=True)
        ]

    async def _key_of(self, name: str) -> str:
        key = self._names.key(name)
        if key:
            return key
        return _info("", await self._open.stat(name, doing="prefix: listing")).key

    async def _stats(self, names: Sequence[str]) -> list[Stat | None]:
        turns = asyncio.Semaphore(_HEADS_AT_ONCE)

        async def one(name: str) -> Stat | None:
            async with turns:
                try:
                    return await self._open.stat(name, doing="key: looking")
                except NotFound as error:
                    if error.reason == "bucket_not_found":
                        raise
                    return None

        if len(names) == 1:
            return [await one(names[0])]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(name)) for name in names]
        return [task.result() for task in tasks]


class _Reader:
    """An object that is being read."""

    def __init__(self, objects: Objects, info: BlobInfo, found: GetResult, doing: str) -> None:
        self.info = info
        self._objects = objects
        self._found = found
        self._doing = doing

    async def chunks(self, chunk_bytes: int = 1024 * 1024) -> AsyncIterator[bytes]:
        """See the port."""
        digest, size = hashlib.sha256(), 0
        if self.info.size <= chunk_bytes:
            yield await self._whole()
            return
        async for piece in self._pieces(chunk_bytes):
            view = memoryview(piece)
            size += len(view)
            digest.update(view)
            for at in range(0, len(view), chunk_bytes):
                yield bytes(view[at : at + chunk_bytes])
        self._check(size, digest.hexdigest())

    async def _whole(self) -> bytes:
        """All bytes; of many, those that are there are hashed in a thread while others come."""
        digest, loop = hashlib.sha256(), asyncio.get_running_loop()
        if self.info.size <= _INLINE_HASH_BYTES:
            data = bytes(await self._objects.answer(self._found.bytes_async(), self._doing))
            digest.update(data)
            self._check(len(data), digest.hexdigest())
            return data
        pieces: list[memoryview] = []
        hashing: asyncio.Future[None] | None = None
        try:
            async for piece in self._pieces(_PIECE_BYTES):
                if hashing is not None:
                    await hashing
                pieces.append(memoryview(piece))
                hashing = loop.run_in_executor(None, digest.update, pieces[-1])
        finally:
            if hashing is not None:
                await hashing
        data = b"".join(pieces)
        self._check(len(data), digest.hexdigest())
        return data

    async def _pieces(self, size: int) -> AsyncIterator[Any]:
        stream = self._found.stream(min_chunk_size=size)
        while (piece := await self._objects.answer(anext(stream, None), self._doing)) is not None:
            yield piece

    def _check(self, size: int, checksum: str) -> None:
        if size != self.info.size or (self.info.checksum and checksum != self.info.checksum):
            raise Internal(
                f"key: the bytes of {self.info.key!r} do not match their checksum; restore it from a backup",
                reason="checksum_mismatch",
                details={"key": self.info.key},
            )


def _info(key: str, stat: Stat) -> BlobInfo:
    return info_of(key, stat.size, stat.etag, stat.modified_at, stat.headers)


async def open_driver(url: str, state: Path) -> BlobDriver:
    """Open the bucket that the URL names. `invalid_argument` for a bad URL, `not_found` without the bucket,
    `permission_denied` for wrong credentials, `unavailable` where nothing answers.
    """
    driver = S3Blobs(parse_url("blobs", url))
    try:
        await driver.check()
    except BaseException:
        await driver.aclose()
        raise
    return driver


_: type[BlobDriver] = S3Blobs
