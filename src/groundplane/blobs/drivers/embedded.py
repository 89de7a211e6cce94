"""Blobs in a folder of the state folder.

Address: `embedded://` (`<state>/blobs`), or `embedded:///absolute/state/folder`.
Guarantee: a put that returned survives SIGKILL and a loss of power, and is seen whole or not at all, by any process.
Limits: a local file system with `flock`, rename and link; at most 16 calls at once touch the disk, the rest wait.
Cannot: `PRESIGN` (there is no server that a URL would lead to), `VERSIONS`.
Escape hatch: `native` is the folder's path; the layout is in `groundplane.blobs.keys` and `object_file`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import unquote, urlsplit

from groundplane.blobs.drivers.folder import Folder, Incoming, translate
from groundplane.blobs.port import BlobDriver, BlobInfo, BlobPage, BlobReader, BlobVersion, Capability, PutOptions
from groundplane.core.errors import Closed, Internal, InvalidArgument, Unsupported
from groundplane.core.secrets import mask_url

T = TypeVar("T")

_THREADS = 16
_HELD_S, _CLOSE_S = 4.0, 5.0
_WRITE_BYTES = 1024 * 1024
_SMALL_BYTES = 64 * 1024
_LANES, _LANE_PUTS = 2, 32


class FileBlobs:
    """The driver. Every call that touches the disk runs in a thread; a cancelled one is waited for and undone."""

    capabilities = Capability.SHARES_SYNC

    def __init__(self, root: Path) -> None:
        self.native = root
        self._folder = Folder(root)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="groundplane-blobs")
        self._small: list[tuple[_Whole, asyncio.Future[BlobInfo]]] = []
        self._lanes: set[asyncio.Task[None]] = set()
        self._held = 0
        self._idle = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    async def put(self, key: str, chunks: AsyncIterator[bytes], options: PutOptions) -> BlobInfo:
        """See the port. What fits into one piece makes one trip to a thread, small ones together."""
        pieces = _gathered(chunks)
        first = await anext(pieces, b"")
        if len(first) < _WRITE_BYTES:
            return await self._put_whole(_Whole(self._folder, key, first, options))
        incoming = await self._hold(self._folder.incoming, undo=Incoming.discard)
        try:
            await self._run(lambda: incoming.write(first))
            async for piece in pieces:
                await self._run(lambda piece=piece: incoming.write(piece))  # type: ignore[misc]
            return await self._run(lambda: self._folder.place(key, incoming, options), cancel=incoming.cancel)
        finally:
            await self._release(incoming.discard)

    @asynccontextmanager
    async def open(self, key: str, *, version: str | None = None) -> AsyncIterator[BlobReader]:
        """See the port."""
        if version is not None:
            raise _no_versions()
        descriptor, info = await self._hold(lambda: self._folder.open(key), undo=lambda one: os.close(one[0]))
        try:
            yield _Reader(self, descriptor, info)
        finally:
            await self._release(lambda: os.close(descriptor))

    async def head(self, key: str) -> BlobInfo:
        """See the port."""
        return await self._run(lambda: self._folder.head(key))

    async def list_blobs(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> BlobPage:
        """See the port. The cursor is the last key of the page before."""
        found = await self._run(lambda: self._folder.list(prefix, cursor, limit + 1))
        return BlobPage(items=found[:limit], cursor=found[limit - 1].key if len(found) > limit else None)

    async def delete(self, keys: Sequence[str], *, version: str | None = None) -> int:
        """See the port."""
        if version is not None:
            raise _no_versions()
        return await self._run(lambda: sum(self._folder.delete(key) for key in dict.fromkeys(keys)))

    async def versions(self, key: str, *, limit: int = 1000) -> list[BlobVersion]:
        """Always `unsupported`."""
        raise _no_versions()

    async def presign(self, key: str, *, expires_s: float) -> str:
        """Always `unsupported`."""
        raise Unsupported("presign: blobs in a folder have no URL; read them with `open`, or use a server's store")

    async def aclose(self) -> None:
        """See the port. Waits for open objects and puts that are under way; after 4 s it goes on without them."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="groundplane-blobs-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HELD_S):
                    await self._idle.wait()
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def wait() -> None:
            self._threads.shutdown(wait=True)
            self._folder.close()
            loop.call_soon_threadsafe(ended.set_result, None)

        waiter = threading.Thread(target=wait, name="groundplane-blobs-close", daemon=True)
        waiter.start()
        async with asyncio.timeout(_CLOSE_S):
            await asyncio.shield(ended)
        waiter.join()

    def prepare(self) -> Folder:
        """Make the folders; blocking."""
        self._folder.prepare()
        return self._folder

    async def _put_whole(self, put: _Whole) -> BlobInfo:
        if self._closing is not None:
            raise Closed("blobs: the store is closed; open it again to use it")
        self._held += 1
        self._idle.clear()
        try:
            if len(put.data) <= _SMALL_BYTES:
                return await self._waited_for(self._together(put), cancel=put.cancel)
            return await self._run(put, cancel=put.cancel)
        finally:
            self._let_go()

    def _together(self, put: _Whole) -> asyncio.Future[BlobInfo]:
        """Put it with the others that are there when a lane is free: the folder is synced once for all of them."""
        future: asyncio.Future[BlobInfo] = asyncio.get_running_loop().create_future()
        self._small.append((put, future))
        if len(self._lanes) < _LANES:
            self._lanes.add(asyncio.create_task(self._lane(), name="groundplane-blobs-puts"))
        return future

    async def _lane(self) -> None:
        try:
            while self._small:
                chosen, self._small = self._small[:_LANE_PUTS], self._small[_LANE_PUTS:]
                await self._put_small(chosen)
        finally:  # in the same step in which nothing was left: what comes next opens another
            self._lanes.remove(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _put_small(self, chosen: Sequence[tuple[_Whole, asyncio.Future[BlobInfo]]]) -> None:
        puts = [put for put, _ in chosen]
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._threads, _put_all, puts)
        except Exception as error:  # noqa: BLE001 - handed to each caller
            outcomes = [error] * len(chosen)
        for (_, future), outcome in zip(chosen, outcomes, strict=True):
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    async def _hold(self, call: Callable[[], T], *, undo: Callable[[T], None]) -> T:
        """Take a descriptor, which `_release` gives back: closing waits for it."""
        if self._closing is not None:
            raise Closed("blobs: the store is closed; open it again to use it")
        value = await self._run(call, undo=undo)
        self._held += 1
        self._idle.clear()
        return value

    async def _release(self, call: Callable[[], None]) -> None:
        try:
            if self._closing is not None and self._closing.done():
                call()
            else:
                await self._run(call)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._held -= 1
        if not self._held:
            self._idle.set()

    async def _run(
        self,
        call: Callable[[], T],
        *,
        undo: Callable[[T], None] | None = None,
        cancel: Callable[[], None] | None = None,
    ) -> T:
        """`call` in a thread. Cancelled, it is told by `cancel`, waited for, so that nothing goes on behind the
        caller's back, and undone."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, call)
        return await self._waited_for(work, undo=undo, cancel=cancel)

    async def _waited_for(
        self,
        work: asyncio.Future[T],
        *,
        undo: Callable[[T], None] | None = None,
        cancel: Callable[[], None] | None = None,
    ) -> T:
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if cancel is not None:
                cancel()
            await asyncio.wait({work})
            if work.exception() is None and undo is not None:
                undo(work.result())
            raise
        except OSError as error:
            raise translate(error, self.native) from error


class _Whole:
    """The put of a small object, as one call."""

    def __init__(self, folder: Folder, key: str, data: bytes, options: PutOptions) -> None:
        self.folder = folder
        self.key = key
        self.data = data
        self.options = options
        self._incoming: Incoming | None = None
        self._cancelled = False

    def __call__(self) -> BlobInfo:
        try:
            return self.folder.place(self.key, self.written(), self.options)
        finally:
            self.discard()

    def written(self) -> Incoming:
        """The bytes, in a file without their name. `discard` it in the end, also when this raises."""
        self._incoming = incoming = self.folder.incoming()
        if self._cancelled:
            incoming.cancel()
        incoming.write(self.data)
        return incoming

    def discard(self) -> None:
        """See `Incoming.discard`."""
        if self._incoming is not None:
            self._incoming.discard()

    def cancel(self) -> None:
        """Its caller has lost interest."""
        self._cancelled = True
        if self._incoming is not None:
            self._incoming.cancel()


def _put_all(puts: Sequence[_Whole]) -> list[BlobInfo | Exception]:
    """Several puts, each with an outcome of its own."""
    outcomes: dict[_Whole, BlobInfo | Exception] = {}
    written: dict[_Whole, Incoming] = {}
    try:
        for put in puts:
            try:
                written[put] = put.written()
            except Exception as error:  # noqa: BLE001 - the outcome of this one
                outcomes[put] = error
        if written:
            placed = puts[0].folder.place_all([(put.key, file, put.options) for put, file in written.items()])
            outcomes.update(zip(written, placed, strict=True))
        return [outcomes[put] for put in puts]
    finally:
        for put in puts:
            put.discard()


class _Reader:
    """An open object."""

    def __init__(self, driver: FileBlobs, descriptor: int, info: BlobInfo) -> None:
        self.info = info
        self._driver = driver
        self._descriptor = descriptor

    async def chunks(self, chunk_bytes: int = 1024 * 1024) -> AsyncIterator[bytes]:
        """See the port."""
        digest = hashlib.sha256()
        offset = 0
        while offset < self.info.size:
            piece = await self._driver._run(lambda at=offset: self._read(at, chunk_bytes, digest.update))  # type: ignore[misc]
            if not piece:
                break
            offset += len(piece)
            yield piece
        if offset != self.info.size or digest.hexdigest() != self.info.checksum:
            raise Internal(
                f"key: the bytes of {self.info.key!r} do not match their checksum; restore it from a backup",
                reason="checksum_mismatch",
                details={"key": self.info.key},
            )

    def _read(self, offset: int, chunk_bytes: int, seen: Callable[[bytes], None]) -> bytes:
        piece = os.pread(self._descriptor, min(chunk_bytes, self.info.size - offset), offset)
        seen(piece)
        return piece


def _no_versions() -> Unsupported:
    return Unsupported("version: blobs in a folder keep none by themselves; use `put(keep=…)` and `Blobs.versions`")


async def open_driver(url: str, state: Path) -> BlobDriver:
    """Open the folder that the URL names, or that of `state`."""
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise InvalidArgument(f"blobs: {mask_url(url)!r} must be embedded:// or embedded:///absolute/state/folder")
    driver = FileBlobs((Path(unquote(parts.path)) if parts.path else state) / "blobs")
    try:
        await driver._run(driver.prepare)
    except BaseException:
        await driver.aclose()
        raise
    return driver


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes in pieces worth a trip to a thread: small ones put together, memory still bounded."""
    waiting: list[bytes] = []
    size = 0
    async for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size >= _WRITE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


_: type[BlobDriver] = FileBlobs
