"""Three gateways on one plane of servers, behind nginx with the configuration of `docs/howto/behind-a-proxy.md`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from groundplane.testing.servers.ports import Ports
from integration import dev_plane
from integration.server_lab import listens
from leaks import eventually
from stacks import Stack

PAGE = Path(__file__).resolve().parent.parent / "docs" / "howto" / "behind-a-proxy.md"
COUNT = 3


def block(kind: str) -> str:
    """The one block of code of that kind on the page."""
    (code,) = re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return str(code)


class Replicas:
    """Gateways as processes on ports of their own, and the URL that asks them in turn."""

    def __init__(self, folder: Path, stack: Stack, ports: list[int], url: str) -> None:
        self.folder = folder
        self.stack = stack
        self.ports = ports
        self.url = url
        self.key = ""
        """An API key that may do everything, where callers are authenticated."""
        self._running: dict[int, tuple[dev_plane.Running, AbstractContextManager[Any]]] = {}
        self._actors: tuple[dev_plane.Running, AbstractContextManager[Any]] | None = None

    def start_actors(self) -> None:
        """Every actor with its sidecar and runtime, and the ends."""
        context = dev_plane.serving(
            "run", "app:app", "--json", "--role", "actors", "--state", self.folder / "actors", folder=self.folder
        )
        self._actors = (context.__enter__(), context)

    def end_actors(self, number: int = signal.SIGTERM) -> int:
        """Stop them all; with SIGKILL supervisor, sidecars and runtimes at once."""
        assert self._actors is not None
        (running, context), self._actors = self._actors, None
        if number == signal.SIGKILL:
            os.killpg(running.process.pid, number)
        try:
            return running.stop(number)
        finally:
            context.__exit__(None, None, None)

    def direct(self, number: int) -> str:
        """The URL of one of them, past the proxy."""
        return f"http://127.0.0.1:{self.ports[number]}"

    def start(self, number: int) -> None:
        """Start one and wait until it is ready."""
        own = self.folder / f"gateway-{number}"
        options = ("run", "app:app", "--json", "--role", "gateway", "--port", self.ports[number], "--state", own)
        context = dev_plane.serving(*map(str, options), folder=self.folder)
        self._running[number] = (context.__enter__(), context)
        assert eventually(lambda: self._answers(number, "/readyz"), 60.0), f"gateway {number} is not ready"

    def stop(self, number: int) -> int:
        """Send SIGTERM and wait for the exit."""
        return self._leave(number, lambda running: running.stop(timeout_s=60.0))

    def kill(self, number: int) -> int:
        """SIGKILL."""
        return self._leave(number, lambda running: running.stop(signal.SIGKILL))

    def refusals(self) -> str:
        """What nginx answered with 4xx or 5xx, by which gateways, and what all of them complained about."""
        complaints = [
            line
            for log in sorted(self.folder.glob("log-*.txt"))
            for line in log.read_text().splitlines(keepends=True)
            if '"WARNING"' in line or '"ERROR"' in line
        ]
        return "".join([*((self.folder / "nginx" / name).read_text() for name in ("refusals", "log")), *complaints])

    def hang_up(self) -> None:
        """SIGHUP to each: they read `routes.yaml` again."""
        for running, _ in self._running.values():
            running.process.send_signal(signal.SIGHUP)

    def restart(self, number: int) -> None:
        """As an operator does."""
        assert self.stop(number) == 0
        self.start(number)

    def whole(self) -> None:
        """Start those that are not there."""
        for number in range(COUNT):
            if number not in self._running:
                self.start(number)

    def end(self) -> list[int]:
        """Stop all; their exit codes."""
        return [self.stop(number) for number in list(self._running)]

    def abandon(self) -> None:
        """Whatever is left goes."""
        for number in list(self._running):
            self.kill(number)
        if self._actors is not None:
            self.end_actors(signal.SIGKILL)

    def _leave(self, number: int, how: Callable[[dev_plane.Running], int]) -> int:
        running, context = self._running.pop(number)
        try:
            return how(running)
        finally:
            context.__exit__(None, None, None)

    def _answers(self, number: int, path: str) -> bool:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(self.direct(number) + path, timeout=10) as response:
                return bool(response.status == 200)
        return False


@contextmanager
def replicas(
    folder: Path, app: Path, stack: Stack, *, routes: str | None = None, keys: bool = False
) -> Iterator[Replicas]:
    """The plane of an app: actors in their own processes, three gateways, nginx. `keys`: callers need an API key."""
    folder.mkdir()
    shutil.copy(app, folder / "app.py")
    lines = ["[plane]", 'name = "replicas"', *(f'{port} = "{url}"' for port, url in stack.urls.items())]
    lines += ["[gateway]"] + ['auth = "keys"'] * keys
    if routes is not None:
        (folder / "routes.yaml").write_text(routes)
        lines += [f'routes = "{folder / "routes.yaml"}"']
    (folder / "groundplane.toml").write_text("\n".join([*lines, ""]))
    upgraded = dev_plane.groundplane("db", "upgrade", "--state", folder / "state", folder=folder)
    assert upgraded.returncode == 0, upgraded.stderr
    held = Ports()
    with ExitStack() as closing:
        closing.callback(held.release)
        ports = [held.take() for _ in range(COUNT)]
        listen = held.take()
        one = Replicas(folder, stack, ports, f"http://127.0.0.1:{listen}")
        closing.callback(one.abandon)
        if keys:
            one.key = _key(folder)
        one.start_actors()
        with ThreadPoolExecutor(COUNT) as starting:
            list(starting.map(one.start, range(COUNT)))
        closing.enter_context(_nginx(folder / "nginx", ports, listen))
        yield one
        assert one.end() == [0] * COUNT
        assert one.end_actors() == 0


def _key(folder: Path) -> str:
    scopes = [word for scope in ("admin", "tools:*") for word in ("--scope", scope)]
    made = dev_plane.groundplane("keys", "create", "operator", *scopes, "--state", folder / "state", folder=folder)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def configuration(ports: list[int], listen: int, scratch: Path) -> str:
    """The page's configuration with these ports, in a whole file."""
    text = block("nginx").replace("listen 127.0.0.1:8080;", f"listen 127.0.0.1:{listen};")
    for number, port in enumerate(ports, 1):
        text = text.replace(f"127.0.0.1:808{number} ", f"127.0.0.1:{port} ")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {scratch / kind};\n" for kind in kinds)
    user = "user root;\n" if os.geteuid() == 0 else ""
    head = f"{user}daemon off;\nworker_processes 1;\npid {scratch}/pid;\nerror_log stderr warn;\n"
    record = "$request $status by $upstream_addr: $upstream_status after $request_time s"
    refused = f"map $status $refused {{ default 0; ~^[45] 1; }}\nlog_format refusals '{record}';\n"
    log = f"{refused}access_log {scratch / 'refusals'} refusals if=$refused;\n"
    return f"{head}events {{ worker_connections 1024; }}\nhttp {{\n{log}{temporary}{text}}}\n"


@contextmanager
def _nginx(folder: Path, ports: list[int], listen: int) -> Iterator[None]:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is missing; `groundplane servers install nginx` brings it")
    folder.mkdir()
    (folder / "nginx.conf").write_text(configuration(ports, listen, folder))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", "stderr"], stdout=log, stderr=log
        )
    try:
        up = eventually(lambda: process.poll() is not None or listens(listen), 20.0)
        assert up, (folder / "log").read_text()
        assert process.poll() is None, (folder / "log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(10)


async def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    """Something of the laboratory that waits for processes, while clients go on."""
    return await asyncio.to_thread(call, *arguments)
