"""The folder of objects, in blocking calls: names, locks, atomic replacement, listing in the order of keys."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import heapq
import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from groundplane.blobs.drivers.object_file import read_info, trailer
from groundplane.blobs.drivers.synced import SyncedFolders, sync_folder
from groundplane.blobs.keys import MORE, OBJECT, PIECE_BYTES_MAX, decoded, path_of
from groundplane.blobs.port import BlobInfo, PutOptions
from groundplane.core.clock import SYSTEM_CLOCK
from groundplane.core.errors import (
    AlreadyExists,
    Closed,
    Conflict,
    GroundplaneError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from groundplane.core.ids import new_id

P = ParamSpec("P")
T = TypeVar("T")

_LOCKS = 64


class Folder:
    """`objects/` holds the files, `incoming/` what is being written, `locks/` one file per share of the keys."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "objects"
        self._incoming = root / "incoming"
        self._locks = root / "locks"
        self._synced = SyncedFolders(root)

    def prepare(self) -> None:
        """Makes the folders, and removes what writers that died have left."""
        for folder in (self._objects, self._incoming, self._locks):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(self.root)
        for left in self._incoming.iterdir():
            _remove_unless_locked(left)

    def close(self) -> None:
        """Gives up what is held open. Nothing else may run."""
        self._synced.close()

    def incoming(self) -> Incoming:
        """A new file to write an object into."""
        while True:
            path = self._incoming / new_id()
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:
                    return Incoming(path, descriptor)
            except BlockingIOError:
                pass  # another process took it for a dead writer's in this very moment: it is removing it
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def place(self, key: str, incoming: Incoming, options: PutOptions) -> BlobInfo:
        """Gives the written object its name: whole, durable, and only where the conditions hold."""
        (outcome,) = self.place_all([(key, incoming, options)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def place_all(self, written: Sequence[tuple[str, Incoming, PutOptions]]) -> list[BlobInfo | Exception]:
        """The same for several objects, each with its own outcome: their folders are synced once for all of them."""
        outcomes = [_tried(incoming.finish, key, options) for key, incoming, options in written]
        with self._locked(*(key for key, _, _ in written)):
            placed: dict[Path, list[int]] = {}
            for at, (key, incoming, options) in enumerate(written):
                if isinstance(outcomes[at], Exception):
                    continue
                named = _tried(self._placed, key, incoming, options)
                if isinstance(named, Exception):
                    outcomes[at] = named
                else:
                    placed.setdefault(named, []).append(at)
            for folder, members in placed.items():
                failure = _tried(self._synced.sync_up, folder)
                if failure is not None:
                    outcomes = [failure if at in members else one for at, one in enumerate(outcomes)]
        return outcomes

    def _placed(self, key: str, incoming: Incoming, options: PutOptions) -> Path:
        """Names the object; the folder of the name."""
        path = self._path(key)
        if options.if_match is not None:
            self._check_etag(key, options.if_match)
        while True:
            incoming.check()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._name(key, incoming.path, path, create=options.create)
                return path.parent
            except FileNotFoundError:
                if not incoming.path.exists():
                    raise
                continue  # the folder was pruned between the two calls

    def open(self, key: str) -> tuple[int, BlobInfo]:
        """A descriptor for reading, and the info."""
        path = str(self._path(key))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"key: {key!r} is not there; look at `list`") from error
        try:
            return descriptor, read_info(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise

    def head(self, key: str) -> BlobInfo:
        descriptor, info = self.open(key)
        os.close(descriptor)
        return info

    def delete(self, key: str) -> bool:
        """Removes the object, and folders that it leaves empty. Whether it was there."""
        path = self._path(key)
        with self._locked(key):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return False
            sync_folder(path.parent)
        self._prune(path.parent)
        return True

    def list(self, prefix: str, after: str | None, limit: int) -> list[BlobInfo]:
        """At most `limit` objects that begin with `prefix` and come after `after`, by the bytes of their keys."""
        wanted = _Wanted(prefix.encode(), after.encode() if after is not None else None)
        found: list[BlobInfo] = []
        for key in _walk(str(self._objects), b"", wanted):
            with contextlib.suppress(NotFound):  # deleted meanwhile
                found.append(self.head(key.decode()))
            if len(found) == limit:
                break
        return found

    def _path(self, key: str) -> Path:
        return self._objects.joinpath(*path_of(key))

    @contextlib.contextmanager
    def _locked(self, *keys: str) -> Iterator[None]:
        """Only one process and thread at a time changes a key; held for a rename and a sync, never for the bytes.

        Several are taken in the order of their shares, so that no two wait for each other.
        """
        with contextlib.ExitStack() as held:
            for share in sorted({zlib.crc32(key.encode()) % _LOCKS for key in keys}):
                descriptor = os.open(self._locks / str(share), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                held.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    def _check_etag(self, key: str, etag: str) -> None:
        try:
            found = self.head(key).etag
        except NotFound as error:
            raise Conflict(f"if_match: {etag!r} is wanted, but {key!r} is not there") from error
        if found != etag:
            raise Conflict(f"if_match: {etag!r} is wanted, but {key!r} has {found!r}; read it again")

    def _name(self, key: str, source: Path, target: Path, *, create: bool) -> None:
        if not create:
            source.replace(target)
            return
        try:
            os.link(source, target)
        except FileExistsError as error:
            raise AlreadyExists(f"key: {key!r} is there already; leave out create to replace it") from error
        source.unlink()

    def _prune(self, folder: Path) -> None:
        while folder != self._objects:
            try:
                folder.rmdir()
            except OSError:
                return  # not empty, or pruned by another
            folder = folder.parent


class Incoming:
    """A file that becomes an object. Locked while its writer lives."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size = 0
        self._cancelled = False
        self._descriptor: int | None = descriptor
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Appends to the object."""
        self._write_all(data)
        self._hash.update(data)
        self.size += len(data)

    def finish(self, key: str, options: PutOptions) -> BlobInfo:
        """Writes the info behind the bytes and makes both durable."""
        checksum = self._hash.hexdigest()
        info = BlobInfo(
            key=key,
            size=self.size,
            etag=checksum[:32],
            checksum=checksum,
            modified_at=SYSTEM_CLOCK.now_ms(),
            content_type=options.content_type,
            metadata=options.metadata,
        )
        self._write_all(trailer(info))
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        return info

    def cancel(self) -> None:
        """Its writer has lost interest: it becomes no object, unless it is becoming one at this moment."""
        self._cancelled = True

    def check(self) -> None:
        """Raises where the writer has cancelled."""
        if self._cancelled:
            raise Closed("put: it was cancelled")

    def discard(self) -> None:
        """Closes it, and removes what did not become an object. Idempotent."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _write_all(self, data: bytes) -> None:
        assert self._descriptor is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


class _Wanted:
    """Which subtrees a listing needs to enter."""

    def __init__(self, prefix: bytes, after: bytes | None) -> None:
        self.prefix = prefix
        self.after = after

    def key(self, key: bytes) -> bool:
        return key.startswith(self.prefix) and (self.after is None or key > self.after)

    def tree(self, root: bytes) -> bool:
        within = root.startswith(self.prefix) or self.prefix.startswith(root)
        return within and (self.after is None or root > self.after or self.after.startswith(root))


def _walk(folder: str, base: bytes, wanted: _Wanted) -> Iterator[bytes]:
    """The keys of the objects below `folder` in order; `base` is what they all begin with."""
    for _, group in itertools.groupby(_entries(folder, base), key=lambda one: one[0]):
        below = [_below(folder, base + data, name, ending, wanted) for _, data, ending, name in group]
        yield from heapq.merge(*below)


def _entries(folder: str, base: bytes) -> list[tuple[bytes, bytes, str, str]]:
    """Sorted by place, bytes, ending and name. A segment's folder sorts as if `/` followed, for its keys do; names
    of the full length share a place, because a folder of either kind may follow and their keys interleave."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []  # pruned meanwhile
    found = []
    for name in names:
        one = decoded(name)
        if one is not None:
            data, ending = one
            place = data if ending or len(data) == PIECE_BYTES_MAX else data + b"/"
            found.append((place, data, ending, name))
    return sorted(found)


def _below(folder: str, full: bytes, name: str, ending: str, wanted: _Wanted) -> Iterator[bytes]:
    if ending == OBJECT:
        return iter([full] if wanted.key(full) else [])
    root = full if ending == MORE else full + b"/"
    return _walk(f"{folder}/{name}", root, wanted) if wanted.tree(root) else iter(())


def _tried(call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T | Exception:
    """Its value, or what it raised: the outcome of one of several."""
    try:
        return call(*args, **named)
    except Exception as error:  # noqa: BLE001 - raised where that one is waited for
        return error


def _remove_unless_locked(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return  # its writer lives
    finally:
        os.close(descriptor)


def translate(error: OSError, root: Path) -> GroundplaneError:
    """The error of ours for one of the system's, by number."""
    what = f"blobs: {os.strerror(error.errno) if error.errno else error} in {str(root)!r}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return ResourceExhausted(f"{what}; free space, nothing acknowledged is lost", reason="disk_full")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PermissionDenied(f"{what}; mend the permissions of the folder", reason="read_only")
        case errno.ENAMETOOLONG:
            return InvalidArgument(f"key: its path is too long below {str(root)!r}; use a shorter key or state folder")
        case errno.EMFILE | errno.ENFILE:
            return ResourceExhausted(f"{what}; raise the limit of open files")
    return Unavailable(f"{what}; look at the disk and the kernel's log", reason="io_error")
