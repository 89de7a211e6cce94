"""The command line: one module for each command group, imported when it is used."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, UnusedCliTokensError

from groundplane.cli.output import EXIT_OK, EXIT_USAGE, exit_code, show_error, to_json
from groundplane.core.errors import GroundplaneError
from groundplane.core.names import did_you_mean

EXIT_INTERRUPTED = 130

_ROOT = "Durable queues, an actor mesh, jobs, and a gateway for any MCP or HTTP client."
_EPILOGUE = """
Examples:

  groundplane dev app:app                 everything here, no server
  groundplane call pipeline value=5       start a job, print its result
  groundplane jobs list                   what runs, what ran
  groundplane doctor                      what is wrong, what to do
  groundplane --version                   this version, and what it stands on

Exit codes: 0 ok, 1 failure, 2 usage. Commands that print something take --json.
"""
_GROUPS = {
    "jobs": "Look at jobs and steer them; works on the state folder, no server needed.",
    "dead": "Dead letters: messages that are not tried again.",
    "keys": "API keys of the gateways; works on the store, no gateway needed.",
    "audit": "The audit log: who did what to what, and what was refused.",
    "queues": "The queues of the plane.",
    "services": "Services and their instances; works on the registry, no gateway needed.",
    "bus": "The bus: call services, publish events, send commands, look on.",
    "kv": "Small shared state: keys with revisions; works on the store, no server of ours needed.",
    "metrics": "Metrics: push those of a job that ends, ask a Prometheus.",
    "alerts": "Rules of alerts: list them, print them for Prometheus, watch them without one.",
    "config": "The effective settings.",
    "db": "The schema of the stored data.",
    "deploy": "Manifests of an app, for containers.",
    "servers": "Real servers on this machine, without containers: for tests and for trying things.",
}
_COMMANDS: dict[str, tuple[str, str]] = {
    "dev": ("dev:dev", "Run an app on this machine: gateway, sidecars, runtimes, with reload."),
    "run": ("run:run", "Run one role of an app, for many machines."),
    "call": ("call:call", "Start a job of a tool, show how it goes, print its result."),
    "mcp": ("mcp:mcp", "Serve MCP on standard input and output."),
    "doctor": ("doctor:doctor", "Find what is wrong, and say what to do."),
    "health": ("health:health", "Tell how the plane is: each process, each check."),
    "demo": ("demo:demo", "Make a library of Python code answerable, killing workers on the way."),
    "bench": ("bench:bench", "Run the benchmarks of the sources."),
    "conformance": ("conformance:conformance", "Run the suite of a port on the driver of a URL."),
    "completion": ("completion:completion", "Print the completion script of a shell."),
    "jobs list": ("jobs:list_", "List jobs, newest first."),
    "jobs show": ("jobs:show", "Show one job with its events."),
    "jobs cancel": ("jobs:cancel", "Cancel a job."),
    "jobs pause": ("jobs:pause", "Pause a job; its deadline stands still."),
    "jobs resume": ("jobs:resume", "Let a paused job go on."),
    "jobs answer": ("jobs:answer", "Answer what a job asks."),
    "jobs watch": ("jobs:watch", "Follow a job live until it ends."),
    "dead list": ("dead:list_", "List dead letters, oldest first."),
    "dead show": ("dead:show", "Show one dead letter."),
    "dead redrive": ("dead:redrive", "Send a dead letter again, or all of a queue."),
    "dead purge": ("dead:purge", "Delete dead letters for good."),
    "keys create": ("keys:create", "Make an API key and print it, once."),
    "keys list": ("keys:list_", "List API keys, without their secrets."),
    "keys revoke": ("keys:revoke", "End an API key."),
    "audit list": ("audit:list_", "List the audit log, newest first."),
    "queues definitions": ("queues:definitions", "Print what a broker is to load so that the queues are there."),
    "services list": ("services:list_", "List services, and how they are."),
    "services show": ("services:show", "Show one service and its instances."),
    "services watch": ("services:watch", "Follow instances as they come, change and go."),
    "bus publish": ("bus:publish", "Publish an event."),
    "bus request": ("bus:request", "Call a method of a service, print its result."),
    "bus send": ("bus:send", "Send a command, follow it, print its result."),
    "bus tail": ("bus:tail", "Print messages as they pass."),
    "kv get": ("kv:get", "Print the value of a key."),
    "kv put": ("kv:put", "Write a value."),
    "kv delete": ("kv:delete", "Delete a key."),
    "kv list": ("kv:list_", "List keys."),
    "kv watch": ("kv:watch", "Follow changes of keys."),
    "metrics push": ("metrics:push", "Push metrics to a Pushgateway."),
    "metrics query": ("metrics:query", "Ask a Prometheus, now or over a range of time."),
    "alerts rules": ("alerts:rules", "Print the rules as a rule file of Prometheus."),
    "alerts list": ("alerts:list_", "List the rules."),
    "alerts watch": ("alerts:watch", "Evaluate the rules over metrics pages, and deliver alerts."),
    "config show": ("config:show", "Print every setting with its value and its origin."),
    "db upgrade": ("db:upgrade", "Bring the stored data to the schema of this version."),
    "deploy compose": ("deploy:compose", "Render a Compose file, and a Dockerfile, of an app."),
    "deploy kubernetes": ("deploy:kubernetes", "Render the manifests of an app for Kubernetes and KEDA."),
    "servers list": ("servers:list_", "List the servers that the kit knows, and what runs."),
    "servers install": ("servers:install", "Install servers; what is there is left alone."),
    "servers up": ("servers:up", "Start servers in the background."),
    "servers down": ("servers:down", "End servers that were started."),
    "servers run": ("servers:run", "Start servers, run a command with their variables, end them."),
    "servers logs": ("servers:logs", "Print what a running server wrote last."),
    "servers env": ("servers:env", "Print variables that name the running servers."),
    "db check": ("db:check", "Say whether the stored data has the schema of this version."),
}
_PASSED_ON = {
    "sidecar": "The half of an actor that speaks to the queues; see `groundplane sidecar --help`.",
    "runtime": "The half of an actor that runs the handler; see `groundplane runtime --help`.",
}


def build(argv: Sequence[str] = ()) -> App:
    """The command line for these words: the command that they name is loaded, the others are only listed."""
    called = _called(argv).lstrip()
    app = App(name="groundplane", help=_ROOT, help_epilogue=_EPILOGUE, help_format="plaintext", version_flags=[])
    groups = {name: App(name=name, help=text, help_epilogue="", version_flags=[]) for name, text in _GROUPS.items()}
    for name, (target, summary) in _COMMANDS.items():
        group, _, command = name.rpartition(" ")
        parent = groups[group] if group else app
        if name == called:
            function = _load(target)
            parent.command(function, name=command, help_epilogue=_examples(function), version_flags=[])
        else:
            parent.command(f"groundplane.cli.{target}", name=command, help=summary, version_flags=[])
    for one in groups.values():
        app.command(one)
    for name, text in _PASSED_ON.items():
        app.command(_passed_on, name=name, help=text)
    return app


def run(argv: Sequence[str]) -> int:
    """Run one command; the exit code. Errors are printed here and nowhere else."""
    argv = _command_apart(argv)
    json = "--json" in argv
    unknown = _unknown_command(argv)
    if unknown:
        return _usage(unknown, json=json)
    try:
        outcome = build(argv)(list(argv), exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except UnusedCliTokensError as error:
        words = ", ".join(repr(word) for word in error.unused_tokens or ())
        return _usage(f"arguments: {words} is more than this command takes", json=json, command=_called(argv))
    except CycloptsError as error:
        return _usage(str(error), json=json, command=_called(argv))
    except GroundplaneError as error:
        show_error(error, json=json)
        return exit_code(error)
    except BrokenPipeError:  # the reader of the pipe has seen enough; the interpreter must not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return outcome if isinstance(outcome, int) else EXIT_OK


def _command_apart(argv: Sequence[str]) -> Sequence[str]:
    """`servers run NAMES -- COMMAND`: what follows `--` is another program's line, and none of it an option of ours."""
    if tuple(argv[:2]) != ("servers", "run") or "--" not in argv:
        return argv
    end = list(argv).index("--")
    return [*argv[:end], *(f"--command={word}" for word in argv[end + 1 :])]


def _unknown_command(argv: Sequence[str]) -> str:
    """What to say about a command that does not exist; said here so that nothing is loaded for it."""
    words = [word for word in argv[:2] if not word.startswith("-")]
    first = {name.partition(" ")[0] for name in _COMMANDS} | set(_PASSED_ON)
    if words and words[0] not in first:
        return f"command: {words[0]!r} does not exist{did_you_mean(words[0], first)}"
    second = {name.partition(" ")[2] for name in _COMMANDS if name.startswith(f"{argv[0]} ")}
    if second and len(words) > 1 and words[1] not in second:
        hint = did_you_mean(words[1], second) or f"; there is {', '.join(sorted(second))}"
        return f"command: '{words[0]} {words[1]}' does not exist{hint}"
    return ""


def _called(argv: Sequence[str]) -> str:
    """The command that these words name, with a space before it."""
    return next((f" {name}" for name in (" ".join(argv[:2]), " ".join(argv[:1])) if name in _COMMANDS), "")


def _usage(text: str, *, json: bool, command: str = "") -> int:
    message = " ".join(text.split())
    if json:
        record = {"code": "invalid_argument", "reason": "usage", "message": message, "details": {}, "retryable": False}
        sys.stderr.write(to_json({"error": record}) + "\n")
    else:
        sys.stderr.write(f"error [invalid_argument] {message}\n  See `groundplane{command} --help`.\n")
    return EXIT_USAGE


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(f"groundplane.cli.{module}"), name)


def _examples(function: Any) -> str:
    """The examples of a command's docstring, which the help would leave out."""
    lines = (function.__doc__ or "").splitlines()
    found = [line.strip() for line in lines if line.strip().startswith("groundplane ")]
    return "\nExamples:\n\n" + "\n".join(f"  {line}" for line in found) if found else ""


def _passed_on(*arguments: str) -> int:
    """`sidecar` and `runtime` are started before the command line is built, and never come here."""
    return EXIT_USAGE
