"""`groundplane servers`: real servers on this machine, without containers."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from groundplane.cli.output import EXIT_FAILURE, EXIT_OK, Output
from groundplane.core.errors import GroundplaneError, InvalidArgument, NotFound
from groundplane.testing.servers import installing
from groundplane.testing.servers.catalog import LIGHT, MODULES, chosen
from groundplane.testing.servers.handles import Handle, KeeperClient
from groundplane.testing.servers.instance import temporary_folder
from groundplane.testing.servers.processes import die_with
from groundplane.testing.servers.together import environment, open_all, users_keeper

_COLUMNS = ("name", "version", "origin", "installed", "pid", "port", "memory")


@Parameter(name="*")
@dataclass(frozen=True)
class Shown:
    """How results are printed."""

    json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False

    @property
    def output(self) -> Output:
        """Where results go."""
        return Output(json=self.json)


SHOWN = Shown()
Ports = Annotated[list[str] | None, Parameter(name="--port", negative="", help="Pin a port: NAME=PORT; repeatable.")]


def list_(*, shown: Shown = SHOWN) -> int:
    """List the servers that the kit knows: what is installed, what runs, on which port, with how much memory.

    Examples:

      groundplane servers list --json
    """
    running = {one.id: one for one in users_keeper().list()}
    with ThreadPoolExecutor(max_workers=8) as pool:
        plans = dict(zip(MODULES, pool.map(installing.plan, MODULES), strict=True))
    rows = []
    for name, plan in plans.items():
        there = plan.installed or plan.poorer
        row: dict[str, Any] = {
            "name": name, "title": plan.server.title, "light": plan.server.light,
            "version": there.version if there else _versions(name), "origin": there.origin if there else None,
            "installed": there is not None, "pid": None, "port": None, "memory": None,
        }  # fmt: skip
        rows.append({**row, **_running(running.pop(name))} if name in running else row)
    rows += [{"name": spec, "installed": True, **_running(one)} for spec, one in running.items()]
    for row in rows:
        row["installed_text"] = "yes" if row["installed"] else "no"
    shown.output.table(
        [{**row, "installed": row.pop("installed_text"), "memory": _megabytes(row)} for row in rows],
        _COLUMNS, empty="none", value={"servers": [_plain(row) for row in rows]},
    )  # fmt: skip
    return EXIT_OK


def install(*names: str, shown: Shown = SHOWN) -> int:
    """Install servers: says what it will do, how large that is and how long it takes, then does it. What is there
    already is left alone. Without names: the light ones.

    Examples:

      groundplane servers install postgres rabbitmq

      groundplane servers install postgres@16 kafka
    """
    specs = list(names) or list(LIGHT)
    plans = [installing.plan(spec) for spec in specs]
    for plan in plans:
        shown.output.note(plan.words)
    done, failed = [], 0
    for spec in specs:
        try:
            one = installing.install(spec, shown.output.note)
        except GroundplaneError as error:
            shown.output.error(error)
            failed += 1
        else:
            folder = str(one.folder) if one.folder else None
            done.append({"name": spec, "version": one.version, "origin": one.origin, "folder": folder})
    shown.output.table(done, ("name", "version", "origin", "folder"), empty="", value={"installed": done})
    return EXIT_FAILURE if failed else EXIT_OK


def up(*names: str, port: Ports = None, shown: Shown = SHOWN) -> int:
    """Start servers in the background, side by side; without names the light ones. They run until `servers down`.

    Examples:

      groundplane servers up

      groundplane servers up postgres rabbitmq --port postgres=5432
    """
    specs = list(names) or list(LIGHT)
    keeper = users_keeper()
    known = {one.id for one in keeper.list()}
    handles, errors = open_all(keeper, specs, _ports(port), each=lambda one: _note_ready(shown.output, one, known))
    rows = [_row(one) for one in handles.values()]
    shown.output.table(rows, ("name", "version", "origin", "pid", "port", "url"), empty="", value={"servers": rows})
    for error in errors.values():
        shown.output.error(error)
    if handles:
        shown.output.note('variables for programs and tests: eval "$(groundplane servers env)"')
    elif not known:
        keeper.shut()
    return EXIT_FAILURE if errors else EXIT_OK


def down(*names: str, shown: Shown = SHOWN) -> int:
    """End servers that `servers up` started, with their data; without names all of them.

    Examples:

      groundplane servers down rabbitmq
    """
    keeper = users_keeper()
    running = {one.id: one for one in keeper.list()}
    ended = [_named(running, name).id for name in dict.fromkeys(names)] if names else list(running)
    for name in ended if names else ():
        running[name].end()
    if set(ended) == set(running):
        keeper.shut()
    shown.output.result({"ended": ended}, f"ended: {', '.join(ended)}" if ended else "nothing was running")
    return EXIT_OK


def env(*names: str, shown: Shown = SHOWN) -> int:
    """Print variables that name the running servers, for `eval` of a shell: the kit's own and the customary ones.

    Examples:

      eval "$(groundplane servers env)"

      groundplane servers env postgres --json
    """
    running = {one.id: one for one in users_keeper().list()}
    chosen_ones = [_named(running, name) for name in names] if names else list(running.values())
    variables = environment(chosen_ones)
    lines = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    if not variables:
        shown.output.note("nothing is running: groundplane servers up")
    shown.output.result(variables, lines)
    return EXIT_OK


def logs(name: str, /, *, lines: int = 50, shown: Shown = SHOWN) -> int:
    """Print the last lines that a running server wrote.

    Examples:

      groundplane servers logs rabbitmq --lines 200
    """
    if lines < 1:
        raise InvalidArgument(f"lines: {lines!r} is less than 1")
    running = {one.id: one for one in users_keeper().list()}
    text = _named(running, name).logs(lines)
    shown.output.result({"name": name, "lines": text.splitlines()}, text)
    return EXIT_OK


def run(
    *names: str,
    port: Ports = None,
    command: Annotated[list[str] | None, Parameter(show=False)] = None,
    shown: Shown = SHOWN,
) -> int:
    """Start servers, run a command with their variables, and end them: `servers run [NAMES] -- COMMAND`. The command's
    exit code is this one's. Without names: the light ones.

    Examples:

      groundplane servers run postgres redis -- pytest tests/integration
    """
    if not command:
        raise InvalidArgument("command: is missing; say what to run after `--`: servers run postgres -- pytest")
    pid = os.getpid()
    keeper = KeeperClient(Path(temporary_folder()) / f"groundplane-run-{pid}-{secrets.token_hex(3)}", owner=pid)
    try:
        handles, errors = open_all(
            keeper, list(names) or list(LIGHT), _ports(port), each=lambda one: _note_ready(shown.output, one, set())
        )
        for error in errors.values():
            shown.output.error(error)
        return EXIT_FAILURE if errors else _execute(command, environment(list(handles.values())))
    finally:
        keeper.shut()


def _execute(command: Sequence[str], variables: dict[str, str]) -> int:
    """The exit code of the command, as a shell tells it. Signals that end us go to it first."""
    try:
        process = subprocess.Popen(
            list(command),
            env={**os.environ, **variables},
            preexec_fn=die_with(os.getpid(), signal.SIGTERM),  # noqa: PLW1509  the threads that started servers ended
        )
    except OSError as error:
        raise InvalidArgument(f"command: {command[0]!r} cannot be run: {error.strerror}") from error
    before = {
        number: signal.signal(number, lambda got, _: process.send_signal(got))
        for number in (signal.SIGTERM, signal.SIGHUP)
    }
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _ports(given: Sequence[str] | None) -> dict[str, int]:
    found = {}
    for one in given or ():
        name, equals, number = one.partition("=")
        if not equals or not number.isdigit() or not 0 < int(number) < 65_536:
            raise InvalidArgument(f"port: {one!r} is not NAME=PORT with a port from 1 to 65535")
        found[name] = int(number)
    return found


def _note_ready(output: Output, one: Handle, known: set[str]) -> None:
    if one.id in known:
        output.note(f"{one.name} {one.version}: runs already")
    else:
        output.note(f"{one.name} {one.version} ({one.origin}): ready after {one.ready_s:.1f} s")


def _named(running: dict[str, Handle], name: str) -> Handle:
    chosen(name)
    if name not in running:
        raise NotFound(f"server: {name!r} is not running; running: {', '.join(running) or 'none'}")
    return running[name]


def _row(one: Handle) -> dict[str, Any]:
    return {
        "name": one.id, "version": one.version, "origin": one.origin, "pid": one.pid, "port": one.port,
        "url": one.url, "ready_s": round(one.ready_s, 3), "data": str(one.data), "urls": dict(one.urls),
    }  # fmt: skip


def _running(one: Handle) -> dict[str, Any]:
    return {
        "version": one.version, "origin": one.origin, "pid": one.pid or None, "port": one.port,
        "memory": one.memory_bytes(),
    }  # fmt: skip


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {("memory_bytes" if key == "memory" else key): value for key, value in row.items()}


def _megabytes(row: dict[str, Any]) -> str | None:
    return None if row.get("memory") is None else f"{row['memory'] / 1e6:.0f} MB"


def _versions(name: str) -> str:
    _, sources = chosen(name)
    return sources[0].version
