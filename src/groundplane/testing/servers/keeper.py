"""The process that owns running servers: `python -m groundplane.testing.servers.keeper FOLDER [--owner PID]`.

Two processes in a session of their own. The *keeper* starts servers when it is asked to over a unix socket, and ends
all of them when it is told to or its owner is gone (also by SIGKILL, seen by a pidfd). The *guard*, its parent, ends
whatever is left when the keeper itself dies; the keeper ends all when the guard dies. Both adopt orphans among their
descendants, so that also a server's grandchildren are found.

The protocol is a line of JSON each way, one request for each connection; `handles` in this package speaks it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socketserver
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from groundplane.core.errors import GroundplaneError, Internal, InvalidArgument, NotFound
from groundplane.testing.servers import processes
from groundplane.testing.servers.instance import Instance
from groundplane.testing.servers.settings import KitSettings

SOCKET = "keeper.sock"
GUARD = "guard.pid"
_REQUEST_BYTES_MAX = 1_000_000


class Keeper:
    """The servers of one run, by id; every method may be called from any thread."""

    def __init__(self, folder: Path, settings: KitSettings) -> None:
        self.folder, self.settings = folder, settings
        self.instances: dict[str, Instance] = {}
        self.tickets: Counter[str] = Counter()
        self.ending = threading.Event()
        """Nothing is started any more."""
        self.over = threading.Event()
        """The process may go: whoever asked for the end has the answer."""
        self._starting: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def open(self, spec: str, options: dict[str, Any], ports: dict[str, int], shared: bool) -> dict[str, Any]:
        """Start one, or give the shared one that runs already; returns when it answers."""
        with self._lock:
            self.tickets["servers"] += 1
            key = spec if shared else f"{spec}-{self.tickets['servers']}"
            lock = self._starting.setdefault(key, threading.Lock())
        with lock:
            instance = self.instances.get(key)
            if instance is None:
                instance = Instance(
                    spec, folder=self.folder / key, options=options, ports=ports, settings=self.settings
                )
                try:
                    instance.start()
                    if self.ending.is_set():
                        raise InvalidArgument("keeper: is ending; start another run")
                except BaseException:
                    instance.end()
                    raise
                self.instances[key] = instance
            else:
                instance.start()  # one that was stopped or has crashed answers again
            return self.describe(key)

    def describe(self, key: str) -> dict[str, Any]:
        """What a handle shows."""
        one = self._instance(key)
        return {
            "id": key, "spec": one.spec, "name": one.name, "version": one.version, "origin": one.origin,
            "pid": one.pid, "port": one.port, "ports": dict(one.ports), "url": one.url, "urls": dict(one.urls),
            "folder": str(one.folder), "data": str(one.data), "log": str(one.log), "ready_s": one.ready_s,
        }  # fmt: skip

    def list(self) -> list[dict[str, Any]]:
        """All that were opened and not ended, with their memory."""
        return [{**self.describe(key), "memory_bytes": self._instance(key).memory_bytes()} for key in [*self.instances]]

    def call(self, key: str, verb: str) -> dict[str, Any]:
        """`start`, `stop`, `restart`, `kill`, `pause` or `resume`, and how it is then."""
        one = self._instance(key)
        verbs: dict[str, Callable[[], None]] = {
            "start": one.start, "stop": one.stop, "restart": one.restart,
            "kill": one.kill, "pause": one.pause, "resume": one.resume,
        }  # fmt: skip
        if verb not in verbs:
            raise InvalidArgument(f"verb: {verb!r} is not one of {', '.join(verbs)}")
        verbs[verb]()
        return self.describe(key)

    def logs(self, key: str, lines: int) -> str:
        return self._instance(key).logs(lines)

    def memory(self, key: str) -> int:
        return self._instance(key).memory_bytes()

    def end(self, key: str) -> int:
        """End one for good, which may have been ended already; how many are left."""
        one = self.instances.pop(key, None)
        if one is not None:
            one.end()
        return len(self.instances)

    def ticket(self, name: str) -> int:
        """Another number for each call with this name: namespaces of tests in several processes do not meet."""
        with self._lock:
            self.tickets[name] += 1
            return self.tickets[name]

    def shut(self) -> int:
        """End everything, at once and side by side; the guard's pid, which goes last."""
        self.ending.set()
        threads = [threading.Thread(target=one.end) for one in [*self.instances.values()]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.instances.clear()
        return os.getppid()

    def _instance(self, key: str) -> Instance:
        found = self.instances.get(key)
        if found is None:
            raise NotFound(f"server: {key!r} is not running here; running: {', '.join(self.instances) or 'none'}")
        return found


class _Conversation(socketserver.StreamRequestHandler):
    """One request and its answer."""

    server: _Listener

    def handle(self) -> None:
        line = self.rfile.readline(_REQUEST_BYTES_MAX)
        if not line:
            return
        verb, answer = self._answer(line)
        with contextlib.suppress(OSError):  # who asked is gone
            self.wfile.write(json.dumps(answer).encode() + b"\n")
        if verb == "shut":
            self.server.keeper.over.set()

    def _answer(self, line: bytes) -> tuple[str, dict[str, Any]]:
        verb = ""
        try:
            request = json.loads(line)
            verb = str(request.pop("do"))
            if verb.startswith("_") or not callable(getattr(self.server.keeper, verb, None)):
                raise InvalidArgument(f"do: {verb!r} is not something that the keeper does")
            return verb, {"ok": getattr(self.server.keeper, verb)(**request)}
        except GroundplaneError as error:
            return verb, {"error": {"type": type(error).__name__, "code": error.code, "message": error.message}}
        except Exception as error:  # noqa: BLE001  reported to who asked, with its name
            wrapped = Internal(f"keeper: {error!r}")
            return verb, {"error": {"type": "Internal", "code": wrapped.code, "message": wrapped.message}}


class _Listener(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        super().__init__(str(keeper.folder / SOCKET), _Conversation)


def serve(folder: Path, owner: int | None, guard: int, ready: int) -> None:
    """The keeper: until it is told to end, or its owner or its guard is gone. `guard` is a pipe's end that closes with
    the guard; `ready` is written to when requests are taken.
    """
    keeper = Keeper(folder, KitSettings.load())
    with _Listener(keeper) as listener:
        os.chmod(folder / SOCKET, 0o600)
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        signal.signal(signal.SIGTERM, lambda *_: keeper.over.set())
        os.write(ready, b"ready\n")
        os.close(ready)
        _wait(keeper, owner, guard)
        keeper.shut()
        listener.shutdown()


def _wait(keeper: Keeper, owner: int | None, guard: int) -> None:
    poll = select.poll()
    poll.register(guard, select.POLLIN | select.POLLHUP)
    if owner is not None:
        try:
            poll.register(os.pidfd_open(owner), select.POLLIN)
        except ProcessLookupError:
            return
    while not keeper.over.is_set():
        if poll.poll(50):
            return


def guard(folder: Path, keeper: int) -> None:
    """The keeper's parent: when the keeper has ended, however, end what it left, and remove the folder."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(keeper, signal.SIGTERM))
    os.waitpid(keeper, 0)
    while left := [pid for pid in processes.descendants([os.getpid()]) if pid != os.getpid()]:
        processes.send(left, signal.SIGKILL)
        _reap_all()
        time.sleep(0.005)
    _reap_all()
    if not KitSettings.load().keep:
        shutil.rmtree(folder, ignore_errors=True)


def _reap_all() -> None:
    """Take the exit codes of everything that ended, so that no zombie is handed to an init which may not care."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def main(argv: list[str]) -> int:
    """Start both in the background; returns when requests are taken. 1 where that fails."""
    folder = Path(argv[0])
    owner = int(argv[argv.index("--owner") + 1]) if "--owner" in argv else None
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.chmod(0o711)
    report, ready = os.pipe()
    if os.fork():
        os.close(ready)
        return 0 if os.read(report, 100) else 1
    os.close(report)
    os.setsid()
    with (folder / "keeper.log").open("ab", buffering=0) as log, open(os.devnull, "rb") as nothing:
        for target, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(target.fileno(), number)
    processes.become_reaper()
    watched, held = os.pipe()
    child = os.fork()
    if child:
        os.close(watched)
        os.close(ready)
        (folder / GUARD).write_text(str(os.getpid()))
        guard(folder, child)
    else:
        os.close(held)
        processes.become_reaper()
        serve(folder, owner, watched, ready)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
