"""What one server of the kit declares, and what a test holds of one that runs.

A server is one small module with one object `SERVER`, listed in `groundplane.testing.servers.names.MODULES`. It says
where its programs come from (`sources`), how they are started (`prepare`, `launch`), when they answer (`check`), how
they are told to end, and which URLs its clients use. Everything else is the kit's, once for all: ports, folders, users,
deadlines, process groups, faults, logs.

Nothing here is asynchronous: a server lives in the keeper's threads, and asynchronous tests call a handle through
`asyncio.to_thread`.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from groundplane.core.errors import FailedPrecondition, Unavailable

Report = Callable[[str], None]
"""Where an installation says, line by line, what it does."""


class ServerMissing(FailedPrecondition):
    """The server is not installed here and was not given by a URL; the message says which command brings it."""


class StartFailed(Unavailable):
    """A server ended or did not answer within the start-up limit; the message ends with its last log lines."""


class NotReady(Exception):
    """Raised by `Server.check` while the server does not answer yet. Any `OSError` means the same."""


@dataclass(frozen=True, kw_only=True)
class Installation:
    """Programs that are on this machine: where from, which version, where."""

    origin: str
    """One or two words for tables: `debian`, `pypi`, `go`, `maven`, `path`."""
    version: str
    """As the program itself reports it."""
    programs: Mapping[str, Path]
    """Name of a program → its file, or the folder of jars, or whatever `launch` needs."""
    folder: Path | None = None
    """The folder of the cache that holds it; None where the machine's own packages are used."""


class Source(ABC):
    """One way to get one version of a server's programs. Pinned: the same source brings the same version again."""

    origin: str
    version: str
    """What it brings: exact where the source is pinned, a prefix (`15`) where the distribution decides."""
    size_mb: int
    """What a download or a build leaves on the disk."""
    seconds: int
    """About how long `install` takes on two cores."""
    lacks: str = ""
    """What the kit wants of this server and this source does not bring: used where it is there, not counted as
    installed.
    """

    @property
    @abstractmethod
    def command(self) -> str:
        """The command that brings it, in one line, as somebody would type it."""

    @abstractmethod
    def find(self, folder: Path) -> Installation | None:
        """What is there already: `folder` is this server's and version's own in the cache and may not exist. Quick:
        never downloads, builds or starts anything but `program --version`.
        """

    @abstractmethod
    def obstacle(self) -> str | None:
        """Why `install` cannot work here, and the command that clears the way (`Go is not installed: apt-get install
        golang-go`); None where it can.
        """

    @abstractmethod
    def install(self, folder: Path, report: Report) -> None:
        """Bring the programs into `folder`, which is empty and is renamed to its place afterwards, so nothing may keep
        its path. Blocking. Raises `groundplane.testing.servers.sources.InstallFailed` with the end of the output.
        """


@dataclass(frozen=True)
class Account:
    """A user of this machine under which a server runs."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one instance lives. It stays the same over kill and restart; ports change only where one was taken."""

    name: str
    installation: Installation
    others: Mapping[str, Installation]
    """The installations that the server `needs`, by name."""
    folder: Path
    """This instance's own folder, absolute: configuration, sockets, logs. Owned by `account`."""
    data: Path
    """The data folder: `folder / "data"`, or the one that was asked for (a small disk). Owned by `account`."""
    ports: Mapping[str, int]
    """Free loopback ports, by the names in `Server.ports`."""
    account: Account | None
    """Who runs the programs; None = whoever runs the tests."""
    options: Mapping[str, Any]
    secret: str
    """A random word, for passwords and cookies of this instance."""

    @property
    def port(self) -> int:
        """The port of the clients: the first one declared."""
        return next(iter(self.ports.values()))

    def program(self, name: str) -> str:
        """The path of a program of the installation."""
        return str(self.installation.programs[name])


@dataclass(frozen=True, kw_only=True)
class Program:
    """One process to start; it leads a process group of its own and writes its output to the instance's log."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """On top of a small environment (PATH, HOME = the instance's folder, LANG, TZ)."""
    companion: bool = False
    """A helper beside the server (RabbitMQ's epmd, the etcd of an API server): kill, pause and restart leave it alone.
    Companions are started first, in order, and ended last.
    """
    stop_signal: signal.Signals | None = None
    """Other than the server's."""


class Server(ABC):
    """One kind of server. Stateless: all that belongs to an instance is in its `Place`."""

    name: ClassVar[str]
    """In lower case, as in `groundplane servers up NAME` and the fixture `NAME_server`."""
    title: ClassVar[str]
    """As its makers write it."""
    light: ClassVar[bool] = False
    """Whether `groundplane servers up` without names starts it."""
    ports: ClassVar[tuple[str, ...]] = ("client",)
    """Names of the ports it needs; the first is the one of `Running.port`."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of servers whose programs it starts as companions."""
    accounts: ClassVar[tuple[str, ...]] = ()
    """Users to run as when the tests run as root, the first that exists; empty = as root."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_timeout_s: ClassVar[float] = 15.0
    """After it the process group is killed."""
    durable: ClassVar[bool] = True
    """Whether what a client got confirmed is still there after kill and restart (with the options for it, if any)."""
    options: ClassVar[Mapping[str, str]] = {}
    """Options of `own_server(NAME, option=…)` with what each does; another one is refused."""
    customary: ClassVar[tuple[str, ...]] = ()
    """Variables in which a URL of such a server is customarily given, beside GROUNDPLANE_TEST_<NAME>_URL."""

    @abstractmethod
    def sources(self) -> Sequence[Source]:
        """Ways to get it, best first. `NAME@VERSION` picks the first whose version is VERSION or starts with it."""

    def prepare(self, place: Place) -> None:  # noqa: B027  most servers need nothing
        """Once for each instance, before its first start: make the data folder's content (`initdb`, `format`). Use
        `groundplane.testing.servers.processes.run` for commands, so that they run as `place.account`.
        """

    @abstractmethod
    def launch(self, place: Place) -> Sequence[Program]:
        """Before each start: write the configuration into `place.folder` and name the programs; the server's own is
        last. Must not start anything.
        """

    @abstractmethod
    def check(self, place: Place) -> None:
        """One try whether the server does what its clients need, bounded to about a second. Raises NotReady or OSError
        while it does not. Called again with growing pauses until the start-up limit.
        """

    def forget(self, place: Place) -> None:  # noqa: B027  few leave anything
        """After the last process is gone: remove what lives outside the folder (shared memory, mounts)."""

    @abstractmethod
    def url(self, place: Place) -> str:
        """The URL that clients use, with credentials where it has some."""

    def urls(self, place: Place) -> Mapping[str, str]:
        """Variables for programs under test: GROUNDPLANE_TEST_<NAME>_URL and the customary ones."""
        return dict.fromkeys((f"GROUNDPLANE_TEST_{self.name.upper()}_URL", *self.customary), self.url(place))


class Running(Protocol):
    """A server that runs, as a test holds it. Methods block; call them through `asyncio.to_thread` in a coroutine.

    A server given by a URL has no process: `pid` is 0 and its faults raise `Unsupported`.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str:
        """As the server's program reports it; `` where it was given by a URL."""

    @property
    def origin(self) -> str:
        """`debian`, `pypi`, `go`, `maven`, `path`, `url`, …: printed in the table of the run."""

    @property
    def pid(self) -> int:
        """Of the server's own process; another one after a restart; 0 while it is down."""

    @property
    def port(self) -> int:
        """Of the clients, on 127.0.0.1; stays the same over restarts."""

    @property
    def ports(self) -> Mapping[str, int]: ...
    @property
    def url(self) -> str: ...
    @property
    def urls(self) -> Mapping[str, str]:
        """Variable → URL or value, for the environment of a program under test."""

    @property
    def env(self) -> Mapping[str, str]:
        """This process's environment with `urls` in it."""

    @property
    def folder(self) -> Path: ...
    @property
    def data(self) -> Path: ...
    @property
    def ready_s(self) -> float:
        """Seconds from the start to the first successful check."""

    def kill(self) -> None:
        """SIGKILL to the server and everything it started; returns when they are gone."""

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing. Returns when it stands still."""

    def resume(self) -> None:
        """SIGCONT; returns when it answers again."""

    def stop(self) -> None:
        """The polite signal, then the hard one; idempotent. Data stay until the handle's owner ends."""

    def start(self) -> None:
        """Start it again on the same ports and data; returns when it answers. Does nothing where it runs."""

    def restart(self) -> None:
        """`stop`, then `start`."""

    def logs(self, lines: int = 50) -> str:
        """The last lines that its programs wrote."""

    def memory_bytes(self) -> int:
        """Resident memory of its processes together; 0 while it is down."""
