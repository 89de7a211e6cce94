"""Structured logs: one line per event on standard error, JSON when it is no terminal.

    log = get_logger("sidecar", actor="double")
    log.info("ready", socket=path)

A line has `time` (ISO 8601, Z), `level`, `logger`, `event`, the ids of what its task is about (`about`: trace, job,
message), and the keys that were bound or given. Payloads and secrets are never passed to it. The level comes from
`GROUNDPLANE_LOG_LEVEL`, `LOG_LEVEL` or `ASYA_LOG_LEVEL`, else INFO. Written here instead of taken from a library
because a sidecar has 40 MB for everything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TextIO

import msgspec

from groundplane.core.clock import SYSTEM_CLOCK, iso_z
from groundplane.core.errors import InvalidArgument

Format = Literal["json", "console", "auto"]

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_ENVIRONMENT = ("GROUNDPLANE_LOG_LEVEL", "LOG_LEVEL", "ASYA_LOG_LEVEL")


class _Sink:
    """Where the lines of this process go. Only `configure` changes it."""

    level = LEVELS["INFO"]
    stream: TextIO | None = None
    json = True


_sink = _Sink()
_about: ContextVar[Mapping[str, Any]] = ContextVar("groundplane_log_about", default={})  # noqa: B039  never changed


def configure(level: str | None = None, *, form: Format = "auto", stream: TextIO | None = None) -> None:
    """Set the level (a name; None: from the environment), the form of a line, and where it goes."""
    name = (level or level_from(os.environ)).upper()
    if name not in LEVELS:
        raise InvalidArgument(f"log_level: {name!r} is not one of {', '.join(LEVELS)}")
    _sink.level = LEVELS[name]
    _sink.stream = stream
    out = stream or sys.stderr
    _sink.json = not out.isatty() if form == "auto" else form == "json"


def level_from(environ: Mapping[str, str]) -> str:
    """The name of the level that the environment asks for."""
    return next((environ[name] for name in _ENVIRONMENT if environ.get(name)), "INFO")


@contextmanager
def about(**keys: Any) -> Iterator[None]:
    """Lines of this task, and of tasks that it starts, have these keys too while open; those without a value are left
    out.
    """
    token = _about.set({**_about.get(), **{key: value for key, value in keys.items() if value}})
    try:
        yield
    finally:
        _about.reset(token)


def also_about(**keys: Any) -> None:
    """More keys for the innermost `about` of this task, as they become known."""
    _about.set({**_about.get(), **{key: value for key, value in keys.items() if value}})


class Logger:
    """Writes events with the keys that are bound to it."""

    __slots__ = ("_keys", "_name")

    def __init__(self, name: str, keys: Mapping[str, Any]) -> None:
        self._name = name
        self._keys = dict(keys)

    def bind(self, **keys: Any) -> Logger:
        """A logger with more keys."""
        return Logger(self._name, {**self._keys, **keys})

    def debug(self, event: str, **keys: Any) -> None:
        """For who looks for a fault."""
        self._write("DEBUG", event, keys)

    def info(self, event: str, **keys: Any) -> None:
        """What an operator wants to have seen."""
        self._write("INFO", event, keys)

    def warning(self, event: str, **keys: Any) -> None:
        """Something went wrong and is handled."""
        self._write("WARNING", event, keys)

    def error(self, event: str, **keys: Any) -> None:
        """Something went wrong and somebody should look."""
        self._write("ERROR", event, keys)

    def critical(self, event: str, **keys: Any) -> None:
        """The process cannot go on."""
        self._write("CRITICAL", event, keys)

    def _write(self, level: str, event: str, keys: Mapping[str, Any]) -> None:
        if LEVELS[level] < _sink.level:
            return
        head = {"time": iso_z(SYSTEM_CLOCK.now_ms()), "level": level, "logger": self._name, "event": event}
        line = _json_line if _sink.json else _console_line
        text = line(head, {**_about.get(), **self._keys, **keys})
        out = _sink.stream or sys.stderr
        try:
            out.write(text + "\n")
            out.flush()
        except (OSError, ValueError):
            return  # the reader of our standard error is gone; work goes on


def get_logger(name: str, **keys: Any) -> Logger:
    """A logger whose lines carry `name` and `keys`."""
    return Logger(name, keys)


def _json_line(head: dict[str, Any], keys: dict[str, Any]) -> str:
    return msgspec.json.encode({**head, **keys}, enc_hook=repr).decode("utf-8", "replace")


def _console_line(head: dict[str, Any], keys: dict[str, Any]) -> str:
    rest = " ".join(f"{key}={value!r}" for key, value in keys.items())
    return f"{head['time'][11:23]} {head['level']:<8}{head['logger']}: {head['event']} {rest}".rstrip()


__all__ = ["LEVELS", "Logger", "about", "also_about", "configure", "get_logger", "level_from"]
