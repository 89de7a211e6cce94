"""A runtime as a real process, and a client that speaks to it frame by frame, as a sidecar would."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

_numbers = itertools.count()
SOURCE = Path(__file__).resolve().parent.parent / "src" / "groundplane" / "mesh" / "runtime.py"
WAIT_S = 20.0
"""How long a condition may take on a busy machine before the test fails."""


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition()` is true; what it returned."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.002)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


class Runtime:
    """A started runtime: its process, its socket, and where its output goes."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, path: str) -> None:
        self.process = process
        self.folder = folder
        self.socket = path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(errors="replace")

    def workers(self) -> list[int]:
        """Pids of the children that run."""
        try:
            listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except OSError:
            return []
        return [int(pid) for pid in listed if alive(int(pid))]

    def wait_until_ready(self) -> Runtime:
        eventually(lambda: os.path.exists(self.socket) or self.process.poll() is not None, "the socket appears")
        assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.stderr}"
        return self

    def ended(self) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait(WAIT_S)

    def terminate(self) -> int:
        self.process.terminate()
        return self.ended()

    def connect(self, **hello: Any) -> Client:
        """A connection of protocol 1, greeted."""
        client = Client(self.socket)
        try:
            client.hello(**hello)
        except BaseException:
            client.sock.close()
            raise
        return client

    def old(self, message: Any) -> Any:
        """One message of protocol 0, on a connection of its own; the answer."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        client = Client(self.socket)
        with client:
            client.write(body)
            answer = json.loads(client.read())
            assert client.ended()
        return answer


class Client:
    """A connection to a runtime, frame by frame."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(path)
        self.welcome: dict[str, Any] = {}
        self._next = 0
        self._queued: list[dict[str, Any]] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def write(self, body: bytes) -> None:
        self.sock.sendall(len(body).to_bytes(4, "big") + body)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise EOFError(f"the runtime closed after {len(data)} of {size} bytes")
            data += piece
        return data

    def read(self) -> bytes:
        """One message; the parts of a continued one are put together."""
        length = int.from_bytes(self.exactly(4), "big")
        if length & 0x80000000:
            return self.exactly(length & 0x7FFFFFFF) + self.read()
        return self.exactly(length)

    def ended(self) -> bool:
        """Whether the peer closes without another byte."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def silent(self) -> bool:
        """Whether nothing can be read at this moment."""
        return not select.select([self.sock], [], [], 0)[0]

    def hello(self, **fields: Any) -> dict[str, Any]:
        said = {"protocol": 1, "codecs": ["msgpack", "json"], "session": "a-session", **fields}
        self.write(b"GPLN" + json.dumps(said).encode())
        self.welcome = json.loads(self.read())
        return self.welcome

    @property
    def worker(self) -> int:
        worker: int = self.welcome["worker"]
        return worker

    def send(self, message: Any) -> None:
        codec: Any = msgspec.msgpack if self.welcome["codec"] == "msgpack" else msgspec.json
        self.write(codec.encode(message))

    def receive(self) -> dict[str, Any]:
        body = self.read()
        message: dict[str, Any] = (
            msgspec.msgpack.decode(body) if self.welcome["codec"] == "msgpack" else json.loads(body)
        )
        return message

    def start(self, payload: Any, *, envelope: dict[str, Any] | None = None, **fields: Any) -> int:
        """Send a call; its id."""
        self._next += 1
        whole = {
            "id": "0190aaaa-0000-7000-8000-000000000001",
            "route": {"actors": ["first", "second"], "current": 0},
            "headers": {"trace": "t-1"},
            "payload": payload,
            "created_at": 1,
            **(envelope or {}),
        }
        self.send({"t": "call", "id": self._next, "envelope": whole, "attempt": 1, "idempotency_key": "k", **fields})
        return self._next

    def call(self, payload: Any, **fields: Any) -> dict[str, Any]:
        """A call and the frame that ends it."""
        return self.outcome(self.start(payload, **fields))

    def outcome(self, call: int) -> dict[str, Any]:
        """The frame that ends a call; those of others and events are kept back."""
        while True:
            message = self.receive()
            if message.get("id") == call and message["t"] in ("result", "error"):
                return message
            self._queued.append(message)

    def events(self) -> list[dict[str, Any]]:
        """What came before the frames that were waited for."""
        queued, self._queued = self._queued, []
        return queued

    def value(self, payload: Any, **fields: Any) -> Any:
        """The payload of the only output of a call."""
        answer = self.call(payload, **fields)
        assert answer["t"] == "result", answer
        assert len(answer["outputs"]) == 1, answer
        assert "fanout" not in answer
        return answer["outputs"][0]["payload"]

    def error(self, payload: Any, **fields: Any) -> dict[str, Any]:
        """The error of a call that fails."""
        answer = self.call(payload, **fields)
        assert answer["t"] == "error", answer
        error: dict[str, Any] = answer["error"]
        return error


@contextmanager
def runtime(
    folder: Path,
    handler: str,
    *flags: str,
    code: str | None = None,
    interpreter: Sequence[str] = (sys.executable,),
    source: Path | None = SOURCE,
    environment: dict[str, str] | None = None,
    path: str | None = None,
    ready: bool = True,
) -> Iterator[Runtime]:
    """A runtime in `folder`, where `code` is the module `handlers`; killed at the end, and it must leave no worker."""
    if code is not None:
        (folder / "handlers.py").write_text(code)
    where = path or str(folder / f"{next(_numbers)}.sock")
    command = [*interpreter, *([str(source)] if source else ["-m", "groundplane.mesh.runtime"])]
    command += ["--handler", handler] if handler else []
    command += ["--socket", where] if path != "" else []
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ASYA_", "GROUNDPLANE_H"))}
    with (folder / "stdout").open("ab") as out, (folder / "stderr").open("ab") as err:
        process = subprocess.Popen(
            [*command, *flags], cwd=folder, stdout=out, stderr=err, env={**kept, **(environment or {})}
        )
    running = Runtime(process, folder, where)
    try:
        yield running.wait_until_ready() if ready else running
    finally:
        workers = running.workers()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
        eventually(lambda: not any(map(alive, workers)), f"workers {workers} end with their supervisor")
