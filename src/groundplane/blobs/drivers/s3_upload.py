"""Bodies of uploads: gathered in memory while they are small, else on their way through a file, then sent in parts.

The checksum of an object is one of its headers, which S3 takes at the beginning of an upload. So the bytes must have
been seen before: a stream that is not small is written to a file without a name first, and sent from there.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from typing import IO, Protocol

from groundplane.backends.s3.bucket import Bucket
from groundplane.core.errors import Closed, ResourceExhausted, Unavailable

GATHERED_BYTES_MAX = 8 * 1024 * 1024
SINGLE_BYTES_MAX = 64 * 1024 * 1024
"""What is whole in memory is sent in one request up to here."""

PART_BYTES = 8 * 1024 * 1024
PARTS_MAX = 10_000
_PARTS_AT_ONCE = 4
_PARTS_END_S = 2.0
_INLINE_HASH_BYTES = 256 * 1024


class Body(Protocol):
    """Bytes that are known: how many, and their SHA-256 in hex."""

    size: int
    checksum: str

    def section(self, offset: int, size: int) -> Section:
        """A part of them, as a file."""
        ...

    def close(self) -> None:
        """Forget them."""
        ...


class Section(io.RawIOBase):
    """Some of the bytes of a body, read by a thread. `stop` ends it with an error at the next read."""

    def __init__(self, read: Callable[[int, int], bytes], offset: int, size: int) -> None:
        super().__init__()
        self._read = read
        self._offset = offset
        self._size = size
        self._at = 0
        self._stopped = False

    def __len__(self) -> int:
        return self._size

    def stop(self) -> None:
        """The upload is not wanted any more."""
        self._stopped = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        if self._stopped:
            raise Closed("put: it was cancelled")
        left = max(0, self._size - self._at)
        data = self._read(self._offset + self._at, left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data


class Whole:
    """A body in memory."""

    def __init__(self, data: bytes, checksum: str) -> None:
        self.data = data
        self.size = len(data)
        self.checksum = checksum

    def section(self, offset: int, size: int) -> Section:
        view = memoryview(self.data)
        return Section(lambda at, count: bytes(view[at : at + count]), offset, size)

    def close(self) -> None:
        """Nothing to do."""


class Spooled:
    """A body in a file without a name, which is gone when its process is."""

    def __init__(self, file: IO[bytes], size: int, checksum: str) -> None:
        self.size = size
        self.checksum = checksum
        self._file = file

    def section(self, offset: int, size: int) -> Section:
        descriptor = self._file.fileno()
        return Section(lambda at, count: os.pread(descriptor, count, at), offset, size)

    def close(self) -> None:
        self._file.close()


async def body_of(chunks: AsyncIterator[bytes]) -> Whole | Spooled:
    """All bytes of a stream. What comes in one piece stays in memory, as does what is small.

    Raises what the stream raises, `resource_exhausted` (`disk_full`) where there is no room for the file.
    """
    waiting: list[bytes] = []
    size = 0
    async for chunk in chunks:
        if waiting and size + len(chunk) > GATHERED_BYTES_MAX:
            return await _spooled(waiting, chunk, chunks)
        waiting.append(chunk)
        size += len(chunk)
    data = waiting[0] if len(waiting) == 1 else b"".join(waiting)
    if size <= _INLINE_HASH_BYTES:
        return Whole(data, hashlib.sha256(data).hexdigest())
    return Whole(data, (await asyncio.to_thread(hashlib.sha256, data)).hexdigest())


async def _spooled(waiting: list[bytes], chunk: bytes, rest: AsyncIterator[bytes]) -> Spooled:
    digest, size = hashlib.sha256(), 0
    file = await asyncio.to_thread(_nameless)
    pieces = [*waiting, chunk]
    waiting.clear()
    held = sum(map(len, pieces))

    def write(data: list[bytes]) -> None:
        for piece in data:
            file.write(piece)
            digest.update(piece)

    try:
        while True:
            await _written(write, pieces)
            size += held
            pieces, held = [], 0
            async for one in rest:
                pieces.append(one)
                held += len(one)
                if held >= GATHERED_BYTES_MAX:
                    break
            if not pieces:
                break
        await _written(lambda _: file.flush(), [])
    except BaseException:
        file.close()
        raise
    return Spooled(file, size, digest.hexdigest())


def _nameless() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="groundplane-put-")


async def _written(write: Callable[[list[bytes]], None], data: list[bytes]) -> None:
    """In a thread. Cancelled, it is waited for: the file must not be closed under it."""
    work = asyncio.ensure_future(asyncio.to_thread(write, data))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
    except OSError as error:
        raise ResourceExhausted(
            f"put: the stream could not be written to {tempfile.gettempdir()!r} on its way ({error.strerror}); free "
            "space there, or set TMPDIR",
            reason="disk_full",
        ) from error


async def upload_parts(
    bucket: Bucket,
    name: str,
    body: Body,
    *,
    content_type: str,
    metadata: dict[str, str],
    create: bool,
    if_match: str | None,
    doing: str,
) -> str:
    """Send a body in parts and make them the object at once; its etag. Where it fails or is cancelled, no object is
    made, and the parts are thrown away.
    """
    upload = await _begun(bucket, name, content_type, metadata, doing)
    try:
        etags = await _sent(bucket, name, upload, body, doing)
        return await bucket.complete(name, upload, etags, create=create, if_match=if_match, doing=doing)
    except BaseException:
        await _aborted(bucket, name, upload, doing)
        raise


async def _begun(bucket: Bucket, name: str, content_type: str, metadata: dict[str, str], doing: str) -> str:
    """Cancelled, it is waited for: an upload whose id nobody knows cannot be aborted."""
    work = asyncio.ensure_future(bucket.begin(name, content_type, metadata, doing))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        if not work.cancelled() and work.exception() is None:
            await _aborted(bucket, name, work.result(), doing)
        raise


async def _sent(bucket: Bucket, name: str, upload: str, body: Body, doing: str) -> list[str]:
    part_bytes = max(PART_BYTES, -(-body.size // PARTS_MAX))
    sections = [
        body.section(at, min(part_bytes, body.size - at)) for at in range(0, body.size, part_bytes)
    ]  # fmt: skip
    turns = asyncio.Semaphore(_PARTS_AT_ONCE)

    async def one(number: int, section: Section) -> str:
        async with turns:
            return await bucket.part(name, upload, number, section, doing)

    tasks = [asyncio.ensure_future(one(number, section)) for number, section in enumerate(sections, 1)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        return [task.result() for task in tasks if task.done()]
    finally:
        for section in sections:
            section.stop()
        await _ended(tasks)


async def _ended(tasks: Sequence[asyncio.Future[str]]) -> None:
    """A part that is still being sent when the upload is aborted may outlive it: threads get a moment to end."""
    try:
        await asyncio.wait(tasks, timeout=_PARTS_END_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _aborted(bucket: Bucket, name: str, upload: str, doing: str) -> None:
    """The parts are gone, or the store cannot be reached: then they are collected later."""
    work = asyncio.ensure_future(bucket.abort(name, upload, doing))
    try:
        await asyncio.shield(work)
    except (Unavailable, Closed):
        return
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
