"""The command line: one lazily imported module for each command group."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError

from groundplane.cli.output import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, exit_code, show_error, to_json
from groundplane.core.errors import GroundplaneError

_EPILOGUE = """
Examples:

  groundplane dev app:app                     everything on this machine, no server
  groundplane call pipeline value:=5          start a job, watch it, print its result
  groundplane jobs list --state-is running    what runs now
  groundplane doctor                          what is wrong, and what to do

Exit codes: 0 ok, 1 failure, 2 usage. Every command takes --json.
"""

_GROUPS: dict[str, tuple[str, dict[str, str]]] = {
    "jobs": (
        "Look at jobs and steer them; works on the state folder, no server needed.",
        {name: f"groundplane.cli.jobs:{name}_" if name == "list" else f"groundplane.cli.jobs:{name}"
         for name in ("list", "show", "cancel", "pause", "resume", "watch")},
    ),
    "dead": (
        "Dead letters: messages that are not tried again.",
        {"list": "groundplane.cli.dead:list_", "show": "groundplane.cli.dead:show",
         "redrive": "groundplane.cli.dead:redrive", "purge": "groundplane.cli.dead:purge"},
    ),
    "config": ("The effective settings.", {"show": "groundplane.cli.config:show"}),
    "db": (
        "The schema of the stored data.",
        {"upgrade": "groundplane.cli.db:upgrade", "check": "groundplane.cli.db:check"},
    ),
}  # fmt: skip
_COMMANDS = {
    "dev": "groundplane.cli.dev:dev",
    "run": "groundplane.cli.run:run",
    "call": "groundplane.cli.call:call",
    "mcp": "groundplane.cli.mcp:mcp",
    "doctor": "groundplane.cli.doctor:doctor",
    "demo": "groundplane.cli.demo:demo",
    "bench": "groundplane.cli.bench:bench",
    "completion": "groundplane.cli.completion:completion",
}
_PASSED_ON = {
    "sidecar": "The half of an actor that speaks to the queues; its own flags: groundplane sidecar --help.",
    "runtime": "The half of an actor that runs the handler; its own flags: groundplane runtime --help.",
}


def build() -> App:
    """The whole command line; commands are imported when they are used."""
    app = App(
        name="groundplane",
        help="Durable queues, an actor mesh, jobs, and a gateway for any MCP or HTTP client.",
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
        version_flags=[],
        result_action="return_value",
    )
    for name, target in _COMMANDS.items():
        app.command(target, name=name)
    for name, (text, commands) in _GROUPS.items():
        group = App(name=name, help=text, help_format="plaintext", version_flags=[])
        for command, target in commands.items():
            group.command(target, name=command)
        app.command(group)
    for name, text in _PASSED_ON.items():
        app.command(_passed_on, name=name, help=text)
    return app


def run(argv: Sequence[str]) -> int:
    """Run one command; the exit code. Errors are printed here and nowhere else."""
    json = "--json" in argv
    try:
        outcome = build()(list(argv), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _usage(error, json=json)
    except GroundplaneError as error:
        show_error(error, json=json)
        return exit_code(error)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return EXIT_OK
    except KeyboardInterrupt:
        return 130
    return outcome if isinstance(outcome, int) else EXIT_OK


def _usage(error: CycloptsError, *, json: bool) -> int:
    message = " ".join(str(error).split())
    if json:
        record = {"code": "invalid_argument", "reason": "usage", "message": message, "details": {}, "retryable": False}
        sys.stderr.write(to_json({"error": record}) + "\n")
    else:
        sys.stderr.write(f"error [invalid_argument] {message}\n  See `groundplane --help`.\n")
    return EXIT_USAGE


def _passed_on(*arguments: str) -> Any:
    raise AssertionError("sidecar and runtime are started before the command line is built")


__all__ = ["EXIT_FAILURE", "EXIT_OK", "EXIT_USAGE", "build", "run"]
