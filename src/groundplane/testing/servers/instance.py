"""One running server: its folder, ports and processes, and the faults that tests put on it.

The keeper holds instances; a test that needs no keeper may hold one itself (`with Instance.open("redis") as server`).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from groundplane.core.errors import GroundplaneError, InvalidArgument, Unavailable
from groundplane.testing.servers import processes
from groundplane.testing.servers.catalog import chosen
from groundplane.testing.servers.contract import (
    Account,
    Installation,
    NotReady,
    Place,
    Program,
    Running,
    Server,
    StartFailed,
)
from groundplane.testing.servers.installing import find
from groundplane.testing.servers.ports import Ports
from groundplane.testing.servers.settings import KitSettings

_TAKEN = re.compile(r"address already in use|eaddrinuse|address in use|failed to bind", re.IGNORECASE)
_PORT_TRIES = 3
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.01, 5.0
COMMON_OPTIONS = {"data": "Folder for the data instead of the instance's own (for a small disk); it is not removed."}


class Instance:
    """A server as `groundplane.testing.servers.contract.Running` says, started by this process. Its methods may be
    called from several threads; those that change it wait for each other.
    """

    def __init__(
        self,
        spec: str,
        *,
        folder: Path,
        options: Mapping[str, Any] | None = None,
        ports: Mapping[str, int] | None = None,
        settings: KitSettings | None = None,
    ) -> None:
        self.server, _ = chosen(spec)
        self.spec = spec
        self.settings = settings or KitSettings.load()
        self.ready_s = 0.0
        self._options = _checked(self.server, dict(options or {}))
        self._wanted = dict(ports or {})
        self._root = folder
        self._ports = Ports()
        self._place: Place | None = None
        self._installation = find(spec)
        self._others = {name: find(name) for name in self.server.needs}
        self._main: subprocess.Popen[bytes] | None = None
        self._companions: list[subprocess.Popen[bytes]] = []
        self._stops: dict[int, Program] = {}
        self._ended = threading.Event()
        self._lock = threading.RLock()

    @classmethod
    @contextmanager
    def open(cls, spec: str, **options: Any) -> Iterator[Instance]:
        """A started server without a keeper, in a temporary folder; ended and removed at the end of the block."""
        settings = KitSettings.load()
        folder = Path(tempfile.mkdtemp(prefix=f"groundplane-{spec.partition('@')[0]}-", dir=temporary_folder()))
        folder.chmod(0o711)
        one = cls(spec, folder=folder / "server", options=options, settings=settings)
        try:
            one.start()
            yield one
        finally:
            one.end()
            if not settings.keep:
                shutil.rmtree(folder, ignore_errors=True)

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.pid else "down"
        return f"<{self.name} {self.version} ({self.origin}) {state}, port {self._place.port if self._place else '-'}>"

    # What it is ----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def version(self) -> str:
        return self._installation.version

    @property
    def origin(self) -> str:
        return self._installation.origin

    @property
    def place(self) -> Place:
        if self._place is None:
            raise Unavailable(f"{self.name}: was never started")
        return self._place

    @property
    def pid(self) -> int:
        main = self._main
        return main.pid if main is not None and main.poll() is None else 0

    @property
    def port(self) -> int:
        return self.place.port

    @property
    def ports(self) -> Mapping[str, int]:
        return self.place.ports

    @property
    def url(self) -> str:
        return self.server.url(self.place)

    @property
    def urls(self) -> Mapping[str, str]:
        return self.server.urls(self.place)

    @property
    def env(self) -> Mapping[str, str]:
        return {**os.environ, **self.urls}

    @property
    def folder(self) -> Path:
        return self.place.folder

    @property
    def data(self) -> Path:
        return self.place.data

    @property
    def log(self) -> Path:
        """The file into which its programs write."""
        return self._root / "output.log"

    def logs(self, lines: int = 50) -> str:
        return processes.tail_of(self.log, lines)

    def memory_bytes(self) -> int:
        return processes.memory_bytes(self._tree())

    # What may be done to it ----------------------------------------------------------------------------------------

    def start(self) -> None:
        with self._lock:
            if self.pid:
                return
            if self._main is not None and not processes.alive(self._main.pid):
                processes.kill_tree([self._main.pid])  # what it left would answer in place of the new one
            first = self._place is None
            for left in reversed(range(_PORT_TRIES if first else 1)):
                try:
                    self._start(first)
                    return
                except StartFailed as error:
                    self._end_processes()
                    if not left or not _TAKEN.search(str(error)):
                        raise
                    self._forget()  # somebody took a port between our look and the server's bind
                except BaseException:
                    self._end_processes()
                    raise

    def kill(self) -> None:
        with self._lock:
            if self._main is not None:
                processes.kill_tree([self._main.pid])
                self._main.wait()

    def pause(self) -> None:
        if self.pid:
            processes.freeze_tree([self.pid])

    def resume(self) -> None:
        tree = self._tree()
        if not tree:
            raise Unavailable(f"{self.name}: is not running; start it")
        processes.send(tree, signal.SIGCONT)
        self._wait_ready(time.monotonic())

    def stop(self) -> None:
        with self._lock:
            for one in (self._main, *reversed(self._companions)):
                if one is not None:
                    self._stop(one)
            self._companions.clear()

    def restart(self) -> None:
        with self._lock:
            self.stop()
            self.start()

    def end(self) -> None:
        """Kill all of it, give back the ports and remove the folder (unless the settings keep it); idempotent."""
        self._ended.set()
        with self._lock:
            self._end_processes()
            self._ports.release()
            if self._place is not None:
                self.server.forget(self._place)
            if not self.settings.keep:
                shutil.rmtree(self._root, ignore_errors=True)

    # How -----------------------------------------------------------------------------------------------------------

    def _start(self, first: bool) -> None:
        started = time.monotonic()
        if self._place is None:
            self._place = self._make_place()
        try:
            if first:
                self.server.prepare(self._place)
            programs = list(self.server.launch(self._place))
        except (GroundplaneError, OSError) as error:
            raise StartFailed(f"{self.name}: could not be prepared: {error}") from error
        processes.give(self._place.folder, self._place.account)
        self._companions = [one for one in self._companions if one.poll() is None]
        for program in programs:
            if program.companion:
                if len(self._companions) < sum(p.companion for p in programs):
                    self._companions.append(self._spawn(program))
            else:
                self._main = self._spawn(program)
        self._wait_ready(started)
        self.ready_s = time.monotonic() - started

    def _spawn(self, program: Program) -> subprocess.Popen[bytes]:
        place = self.place
        process = processes.spawn(program.argv, home=place.folder, env=program.env, account=place.account, log=self.log)
        self._stops[process.pid] = program
        return process

    def _make_place(self) -> Place:
        account = processes.account_of(self.server.accounts)
        self._root.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        folder = self._root / "place"
        folder.mkdir()
        own_data = "data" not in self._options
        data = folder / "data" if own_data else Path(self._options["data"]).absolute()
        data.mkdir(exist_ok=True)
        if not own_data and not processes.may_walk(data, account):
            raise InvalidArgument(
                f"data: {str(data)!r} cannot be reached by user {account.name if account else ''!r}, who runs "
                f"{self.name}: choose a folder whose parents everybody may walk through"
            )
        processes.give(folder, account)
        processes.give(data, account)
        for one in (self._root, folder):
            one.chmod(0o711 if one == self._root else 0o700)
        return Place(
            name=self.name, installation=_readable(self._installation, account),
            others={name: _readable(one, account) for name, one in self._others.items()},
            folder=folder, data=data, account=account, options=self._options, secret=secrets.token_hex(12),
            ports={name: self._ports.take(self._wanted.get(name)) for name in self.server.ports},
        )  # fmt: skip

    def _forget(self) -> None:
        self._ports.release()
        self._place = None
        shutil.rmtree(self._root, ignore_errors=True)

    def _wait_ready(self, started: float) -> None:
        """Checks with growing pauses until one succeeds; `StartFailed` when the process ends or the limit is over."""
        deadline = started + self.settings.startup_timeout_s
        begun = time.monotonic()
        why: BaseException | None = None
        while True:
            if self._ended.is_set() or not self.pid:
                raise StartFailed(self._failure(f"ended with {self._code()} before it was ready"))
            try:
                self.server.check(self.place)
                if self.pid:
                    return
                continue
            except (NotReady, OSError) as error:
                why = error
            if time.monotonic() > deadline:
                limit = self.settings.startup_timeout_s
                raise StartFailed(self._failure(f"not ready within {limit:g} s ({why})")) from why
            self._ended.wait(min(_PAUSE_MAX_S, max(_PAUSE_MIN_S, (time.monotonic() - begun) / 10)))

    def _failure(self, what: str) -> str:
        return f"{self.name} {self.version}: {what}; its last lines:\n{self.logs(20) or '(it wrote nothing)'}"

    def _code(self) -> int | None:
        return self._main.poll() if self._main is not None else None

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        program = self._stops.pop(process.pid, None)
        number = (program.stop_signal if program else None) or self.server.stop_signal
        if process.poll() is None:
            tree = processes.descendants([process.pid])
            processes.send(tree, signal.SIGCONT)  # a paused one hears nothing
            processes.send([process.pid], number)
            try:
                process.wait(self.server.stop_timeout_s)
            except subprocess.TimeoutExpired:
                pass
            processes.kill_tree([process.pid, *tree])
        process.wait()

    def _end_processes(self) -> None:
        for one in (self._main, *reversed(self._companions)):
            if one is not None:
                processes.kill_tree([one.pid])
                one.wait()
        self._companions.clear()

    def _tree(self) -> list[int]:
        return processes.descendants([self.pid]) if self.pid else []


def _checked(server: Server, options: dict[str, Any]) -> dict[str, Any]:
    known = {**COMMON_OPTIONS, **server.options}
    for name in options:
        if name not in known:
            raise InvalidArgument(f"option: {name!r} is not one of {server.name}; it has {', '.join(known)}")
    return options


def _readable(installation: Installation, account: Account | None) -> Installation:
    """The installation where the account can read it."""
    folder = installation.folder
    if folder is None:
        return installation
    moved = processes.reachable(folder, account)
    programs = {name: moved / path.relative_to(folder) for name, path in installation.programs.items()}
    return Installation(origin=installation.origin, version=installation.version, programs=programs, folder=moved)


def temporary_folder() -> str:
    """A folder for instances that every account may walk through, with a path short enough for unix sockets."""
    given = Path(tempfile.gettempdir()).resolve()
    open_to_all = all(one.stat().st_mode & 0o001 for one in (given, *given.parents))
    return str(given) if open_to_all and len(str(given)) < 34 else "/tmp"


_: Callable[..., Running] = Instance
