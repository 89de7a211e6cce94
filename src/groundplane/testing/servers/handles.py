"""Speaking to a keeper: starting one, and the handles of its servers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from groundplane.core.errors import ErrorRecord, GroundplaneError, Unavailable, from_record
from groundplane.testing.servers.contract import Running, ServerMissing, StartFailed
from groundplane.testing.servers.processes import alive, tail_of

_TYPES: dict[str, Callable[[str], GroundplaneError]] = {"ServerMissing": ServerMissing, "StartFailed": StartFailed}
_LAUNCH_TIMEOUT_S = 30.0
_LONGEST_S = 900.0


class KeeperClient:
    """A keeper's address; the keeper is started at the first request that needs it. Holds no descriptor, thread or
    child, so it may be made at any time and passed to other processes as its folder's path.
    """

    def __init__(self, folder: Path, *, owner: int | None) -> None:
        self.folder, self.owner = folder, owner

    @property
    def running(self) -> bool:
        """Whether a keeper answers at the address."""
        with contextlib.suppress(OSError):
            self._connect().close()
            return True
        return False

    def open(
        self,
        spec: str,
        *,
        options: Mapping[str, Any] | None = None,
        ports: Mapping[str, int] | None = None,
        shared: bool = True,
    ) -> Handle:
        """A server that answers: the run's own one of this name, or with `shared=False` another one."""
        self.start()
        return Handle(
            self, self.ask("open", spec=spec, options=dict(options or {}), ports=dict(ports or {}), shared=shared)
        )

    def ticket(self, name: str) -> int:
        """A number that nobody else of the run got under this name."""
        self.start()
        return int(self.ask("ticket", name=name))

    def list(self) -> list[Handle]:
        """The servers that run here; none where no keeper does."""
        return [Handle(self, one) for one in self.ask("list")] if self.running else []

    def start(self) -> None:
        """Start the keeper where none answers; several at once start one."""
        if self.running:
            return
        with _locked(self.folder):
            if not self.running:
                self._launch()

    def shut(self) -> None:
        """End all servers and the keeper; returns when its guard is gone. Does nothing where none answers."""
        if not self.running:
            return
        guard = int(self.ask("shut"))
        deadline = time.monotonic() + 15
        while alive(guard):
            if time.monotonic() > deadline:
                raise Unavailable(f"keeper: its guard {guard} does not end; its log is in {self.folder}")
            time.sleep(0.01)

    def ask(self, what: str, **words: Any) -> Any:
        """One request. Raises what the keeper raised, or `unavailable` where it does not answer."""
        try:
            with self._connect() as connection, connection.makefile("rwb") as stream:
                stream.write(json.dumps({"do": what, **words}, default=str).encode() + b"\n")
                stream.flush()
                line = stream.readline()
        except OSError as error:
            raise Unavailable(f"keeper: {self.folder} does not answer: {error}") from error
        if not line:
            raise Unavailable(f"keeper: {self.folder} ended: {tail_of(self.folder / 'keeper.log', 5)}")
        answer = json.loads(line)
        if "error" in answer:
            record = answer["error"]
            known = _TYPES.get(record["type"])
            raise known(record["message"]) if known else from_record(ErrorRecord(record["code"], record["message"]))
        return answer["ok"]

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_LONGEST_S)
        try:
            connection.connect(str(self.folder / "keeper.sock"))
        except BaseException:
            connection.close()
            raise
        return connection

    def _launch(self) -> None:
        (self.folder / "keeper.sock").unlink(missing_ok=True)
        words = [] if self.owner is None else ["--owner", str(self.owner)]
        try:
            subprocess.run(
                [sys.executable, "-m", "groundplane.testing.servers.keeper", str(self.folder), *words],
                check=True, capture_output=True, text=True, timeout=_LAUNCH_TIMEOUT_S, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            words_of_it = error.stderr or tail_of(self.folder / "keeper.log", 10)
            raise Unavailable(f"keeper: did not start: {words_of_it}") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(folder.name + ".lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


class Handle:
    """`groundplane.testing.servers.contract.Running`, for a server of a keeper; may be used by several threads."""

    def __init__(self, keeper: KeeperClient, known: Mapping[str, Any]) -> None:
        self.keeper = keeper
        self._known = known

    def __repr__(self) -> str:
        known = self._known
        return f"<{self.name} {self.version} ({self.origin}) pid {known['pid'] or 'down'}, port {self.port}>"

    @property
    def id(self) -> str:
        return str(self._known["id"])

    @property
    def name(self) -> str:
        return str(self._known["name"])

    @property
    def version(self) -> str:
        return str(self._known["version"])

    @property
    def origin(self) -> str:
        return str(self._known["origin"])

    @property
    def pid(self) -> int:
        return int(self.keeper.ask("describe", key=self.id)["pid"])

    @property
    def port(self) -> int:
        return int(self._known["port"])

    @property
    def ports(self) -> Mapping[str, int]:
        return dict(self._known["ports"])

    @property
    def url(self) -> str:
        return str(self._known["url"])

    @property
    def urls(self) -> Mapping[str, str]:
        return dict(self._known["urls"])

    @property
    def env(self) -> Mapping[str, str]:
        return {**os.environ, **self.urls}

    @property
    def folder(self) -> Path:
        return Path(self._known["folder"])

    @property
    def data(self) -> Path:
        return Path(self._known["data"])

    @property
    def ready_s(self) -> float:
        return float(self._known["ready_s"])

    def kill(self) -> None:
        self._call("kill")

    def pause(self) -> None:
        self._call("pause")

    def resume(self) -> None:
        self._call("resume")

    def stop(self) -> None:
        self._call("stop")

    def start(self) -> None:
        self._call("start")

    def restart(self) -> None:
        self._call("restart")

    def end(self) -> int:
        """Kill it and remove its folder; how many servers the keeper still has. Idempotent."""
        return int(self.keeper.ask("end", key=self.id))

    def logs(self, lines: int = 50) -> str:
        return str(self.keeper.ask("logs", key=self.id, lines=lines))

    def memory_bytes(self) -> int:
        return int(self.keeper.ask("memory", key=self.id))

    def _call(self, verb: str) -> None:
        self._known = self.keeper.ask("call", key=self.id, verb=verb)


_: Callable[..., Running] = Handle
