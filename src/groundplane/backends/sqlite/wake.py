"""Waking listeners in this and in other processes, after a write is durable or, for early bells, committed.

Each process that listens has one unix datagram socket per root of a topic (the part before the first slash) in the
folder `wake/` beside the database. Whoever has committed sends the topics there. A bell that is full, gone or dead is
harmless, because listeners also notice commits by polling `PRAGMA data_version` (`poll.py`), and rings are only hints:
a listener looks at the data after each.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from groundplane.backends.sqlite.loops import post
from groundplane.core.errors import Closed, FailedPrecondition, InvalidArgument

_DATAGRAM_MAX = 1024
_EVERYTHING = b"*"
_SETTLED_NS = 50_000_000
_STALE_S = 60.0
_PREFIXES_KEPT = 10_000


class Listener:
    """One waiter for one topic. A ring between two waits is never lost; a spurious one is possible."""

    def __init__(self, topic: str, loop: asyncio.AbstractEventLoop) -> None:
        self.topic = topic
        self.loop = loop
        self._rung = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, timeout_s: float | None = None) -> bool:
        """True when rung since the last wait ended, False after `timeout_s` (None: no limit).

        One wait at a time (`failed_precondition`). `closed` once the listener or its database is closed.
        """
        if self._waiter is not None:
            raise FailedPrecondition(f"topic: {self.topic!r} has a waiter already; open a listener for each")
        if not self._rung and not self._closed:
            await self._sleep(timeout_s)
        if self._closed:
            raise Closed(f"topic: the listener of {self.topic!r} was closed")
        rung, self._rung = self._rung, False
        return rung

    def ring(self) -> None:
        """Wakes the waiter, or the next one. Call it in the listener's loop."""
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        self._closed = True
        self.ring()

    async def _sleep(self, timeout_s: float | None) -> None:
        self._waiter = waiter = self.loop.create_future()
        timer = None if timeout_s is None else self.loop.call_later(timeout_s, _finish, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


class WakeHub:
    """All listeners of one file in this process, their bells, and the sender to the bells of others."""

    def __init__(self, path: str) -> None:
        self._folder = os.path.join(os.path.dirname(path), "wake")
        self._scope = os.path.basename(path)
        self._own = f".{os.getpid()}-{secrets.token_hex(4)}."
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._sender = _datagram_socket()
        self._lock = threading.Lock()
        self._listeners: dict[str, set[Listener]] = {}
        self._bells: dict[tuple[asyncio.AbstractEventLoop, str], _Bell] = {}
        self._prefixes: dict[str, str] = {}
        self._others: dict[str, list[str]] = {}
        self._others_as_of = 0
        self._count = 0
        self.rung = self.sent = self.undelivered = 0
        self._remove_stale()

    def listen(self, topic: str) -> Listener:
        """A listener in the running loop. Give it back with `unlisten`."""
        check_topic(topic)
        loop = asyncio.get_running_loop()
        listener = Listener(topic, loop)
        root = _root(topic)
        bell = self._bells.get((loop, root))
        if bell is None:
            self._count += 1
            name = f"{self._prefix(root)}{self._own}{self._count}"
            bell = _Bell(self._folder_fd, name, lambda topics: self._ring_here(loop, root, topics))
            self._bells[loop, root] = bell
            loop.add_reader(bell.socket.fileno(), bell.drain)
        bell.listeners += 1
        with self._lock:
            self._listeners.setdefault(topic, set()).add(listener)
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Ends the listener and, with the last one of its root, the bell. Call it in the listener's loop."""
        listener.close()
        with self._lock:
            members = self._listeners.get(listener.topic, set())
            if listener not in members:
                return
            members.discard(listener)
            if not members:
                del self._listeners[listener.topic]
        key = (listener.loop, _root(listener.topic))
        bell = self._bells[key]
        bell.listeners -= 1
        if not bell.listeners:
            listener.loop.remove_reader(bell.socket.fileno())
            bell.close()
            del self._bells[key]

    def ring(self, topics: Iterable[str]) -> None:
        """Rings the listeners of `topics` here and elsewhere. From any thread; never blocks, never fails."""
        by_root: defaultdict[str, set[str]] = defaultdict(set)
        for topic in topics:
            by_root[_root(topic)].add(topic)
        for root, members in by_root.items():
            self._ring_in_process(members | {root})
        others = self._bells_of_others()
        for root, members in by_root.items():
            for name in others.get(self._prefix(root), ()):
                self._send(name, _encode(members))

    def ring_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Rings every listener of one loop, in that loop."""
        with self._lock:
            found = [one for members in self._listeners.values() for one in members if one.loop is loop]
        _ring_all(found)

    def listening(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the loop has a listener."""
        return any(key[0] is loop for key in self._bells)

    def close(self) -> None:
        """Call it when no listener is left."""
        self._sender.close()
        os.close(self._folder_fd)

    def forget(self) -> None:
        """In a forked child: closes what belongs to the parent, without removing its bells."""
        self._sender.close()
        os.close(self._folder_fd)
        for bell in self._bells.values():
            bell.socket.close()

    def _prefix(self, root: str) -> str:
        known = self._prefixes.get(root)
        if known is None:
            known = hashlib.blake2b(f"{self._scope}\0{root}".encode(), digest_size=8).hexdigest()
            if len(self._prefixes) < _PREFIXES_KEPT:
                self._prefixes[root] = known
        return known

    def _ring_here(self, loop: asyncio.AbstractEventLoop, root: str, topics: set[str] | None) -> None:
        with self._lock:
            if topics is None:
                wanted = [m for t, m in self._listeners.items() if _root(t) == root]
            else:
                wanted = [self._listeners[t] for t in topics | {root} if t in self._listeners]
            found = [one for members in wanted for one in members if one.loop is loop]
        _ring_all(found)

    def _ring_in_process(self, topics: set[str]) -> None:
        with self._lock:
            found = [one for topic in topics for one in self._listeners.get(topic, ())]
        if not found:
            return
        self.rung += len(found)
        here = asyncio._get_running_loop()
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[Listener]] = defaultdict(list)
        for one in found:
            by_loop[one.loop].append(one)
        for loop, members in by_loop.items():
            if loop is here:
                _ring_all(members)
            else:
                post(loop, _ring_all, members)

    def _bells_of_others(self) -> dict[str, list[str]]:
        """Names by prefix. The listing is kept while the folder is unchanged and was so for a while: its time
        stamp is coarse."""
        changed = os.fstat(self._folder_fd).st_mtime_ns
        if changed == self._others_as_of:
            return self._others
        others: dict[str, list[str]] = {}
        for name in os.listdir(self._folder_fd):
            if not name.startswith(".") and self._own not in name:
                others.setdefault(name.partition(".")[0], []).append(name)
        settled = time.time_ns() - changed > _SETTLED_NS
        self._others, self._others_as_of = others, changed if settled else 0
        return others

    def _send(self, name: str, payload: bytes) -> None:
        try:
            self._sender.sendto(payload, _address(self._folder_fd, name))
            self.sent += 1
        except BlockingIOError:
            self.undelivered += 1  # its queue is full: it has rings to answer, and treats a full queue as all topics
        except FileNotFoundError:
            self._others_as_of = 0
        except ConnectionRefusedError:
            self._others_as_of = 0
            self._unlink(name)
        except OSError:
            self.undelivered += 1  # the safety poll of the listener sees the commit

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._folder_fd)
        except FileNotFoundError:
            return

    def _remove_stale(self) -> None:
        """Removes sockets whose process is dead. Names are never bound twice, so none can come back to life."""
        for name in os.listdir(self._folder_fd):
            try:
                found = os.stat(name, dir_fd=self._folder_fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISSOCK(found.st_mode):
                continue
            if not name.startswith("."):
                self._send(name, _EVERYTHING)
            elif time.time() - found.st_mtime > _STALE_S:
                self._unlink(name)


class _Bell:
    """A bound datagram socket; `ring` gets the topics, or None for all of the root."""

    def __init__(self, folder_fd: int, name: str, ring: Callable[[set[str] | None], None]) -> None:
        self._folder_fd = folder_fd
        self._name = name
        self._ring = ring
        self.listeners = 0
        self.socket = _datagram_socket()
        temporary = f".{name}"
        try:
            self.socket.bind(_address(folder_fd, temporary))
            os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        except BaseException:
            self.socket.close()
            raise

    def drain(self) -> None:
        """Reads all that has come. As many as the kernel queues means that some may have been turned away."""
        topics: set[str] | None = set()
        count = 0
        while count < 1000:
            try:
                payload = self.socket.recv(_DATAGRAM_MAX)
            except BlockingIOError:
                break
            count += 1
            if payload == _EVERYTHING or count >= _queue_length():
                topics = None
            elif topics is not None:
                topics.update(payload.decode().split("\n"))
        if count:
            self._ring(topics)

    def close(self) -> None:
        self.socket.close()
        try:
            os.unlink(self._name, dir_fd=self._folder_fd)
        except FileNotFoundError:
            return


def check_topic(topic: str) -> None:
    """`invalid_argument` for a topic that is empty, longer than 255 bytes, '*', or has a line end."""
    if not topic or topic == "*" or "\n" in topic or len(topic.encode()) > 255 or topic.startswith("/"):
        raise InvalidArgument(
            f"topic: {topic!r} must be 1 to 255 bytes, without line ends, not '*', not beginning with '/'"
        )


def _root(topic: str) -> str:
    return topic.partition("/")[0]


def _encode(topics: set[str]) -> bytes:
    payload = "\n".join(topics).encode()
    return payload if len(payload) <= _DATAGRAM_MAX else _EVERYTHING


def _ring_all(listeners: Iterable[Listener]) -> None:
    for one in listeners:
        one.ring()


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _datagram_socket() -> socket.socket:
    created = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    created.setblocking(False)
    return created


def _address(folder_fd: int, name: str) -> str:
    """A path that fits into the 107 bytes of a unix address, however deep the folder is."""
    return f"/proc/self/fd/{folder_fd}/{name}"


def _queue_length() -> int:
    global _QUEUE_LENGTH
    if not _QUEUE_LENGTH:
        try:
            _QUEUE_LENGTH = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        except (OSError, ValueError):
            _QUEUE_LENGTH = 10
    return _QUEUE_LENGTH


_QUEUE_LENGTH = 0
