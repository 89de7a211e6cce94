"""The table of settings: key in `groundplane.toml`, variable, what it takes, what it means."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from groundplane.core.durations import parse_duration
from groundplane.core.errors import InvalidArgument
from groundplane.core.names import check_name, did_you_mean
from groundplane.core.secrets import Url, check_url

_SIZE = re.compile(r"(\d+)\s*(b|kb|kib|mb|mib|gb|gib)?", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 1000, "kib": 1024, "mb": 1000**2, "mib": 1024**2, "gb": 1000**3, "gib": 1024**3}
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("auto", "json", "console")


class Option(NamedTuple):
    """One setting. `parse(label, value)` raises `InvalidArgument` that begins with the label."""

    field: str
    key: str
    variable: str
    parse: Callable[[str, Any], Any]
    help: str
    secret: bool = False
    customary: str = ""


def url(label: str, value: Any) -> Url:
    """A URL with a scheme."""
    return check_url(label, _text(label, value, "a URL"))


def path(label: str, value: Any) -> Path:
    """A path; `~` is the home folder."""
    if isinstance(value, Path):
        return value.expanduser()
    return Path(_text(label, value, "a path")).expanduser()


def whole(least: int, most: int) -> Callable[[str, Any], int]:
    """A whole number within bounds."""

    def parse(label: str, value: Any) -> int:
        number = value if type(value) is int else None
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip()):
            number = int(value)
        if number is None or not least <= number <= most:
            raise InvalidArgument(f"{label}: {value!r} is not a whole number from {least} to {most}")
        return number

    return parse


def size(label: str, value: Any) -> int:
    """Bytes, or a text with a unit: `256KiB`."""
    if type(value) is int and value > 0:
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    amount = int(found[1]) * _UNITS[(found[2] or "b").lower()] if found else 0
    if amount <= 0:
        raise InvalidArgument(f"{label}: {value!r} is not a size; write bytes (262144) or 256KiB, 100MiB")
    return amount


def duration(label: str, value: Any) -> float:
    """Seconds, or a text with a unit: `30s`."""
    if not isinstance(value, int | float | str):
        raise InvalidArgument(f"{label}: {value!r} is not a positive duration; write seconds (30) or 250ms, 30s, 5m")
    return parse_duration(label, value)


def one_of(*known: str) -> Callable[[str, Any], str]:
    """One of some words, in any case."""

    def parse(label: str, value: Any) -> str:
        word = _text(label, value, "a word").lower()
        word = "warning" if word == "warn" else word
        if word not in known:
            raise InvalidArgument(f"{label}: {value!r} is not one of {', '.join(known)}{did_you_mean(word, known)}")
        return word

    return parse


def host(label: str, value: Any) -> str:
    """A host name or address."""
    text = _text(label, value, "a host").strip("[]")
    if not re.fullmatch(r"[A-Za-z0-9.:_%-]{1,255}", text):
        raise InvalidArgument(f"{label}: {value!r} is not a host name or an address; write 127.0.0.1")
    return text


def hosts(label: str, value: Any) -> tuple[str, ...]:
    """Host names, as a list or separated by commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts:
        raise InvalidArgument(f"{label}: {value!r} is no list of host names; write gateway.example.com,other.example")
    return tuple(host(label, part.strip() if isinstance(part, str) else part) for part in parts)


def _text(label: str, value: Any, what: str) -> str:
    if isinstance(value, Url):
        return value.reveal()
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidArgument(f"{label}: {value!r} is not {what}")
    return value


OPTIONS: tuple[Option, ...] = (
    Option("name", "plane.name", "GROUNDPLANE_NAME", check_name, "namespace of everything that this plane stores"),
    Option("state", "plane.state", "GROUNDPLANE_STATE", path, "folder of the embedded storage, sockets and run files"),
    Option("queues", "plane.queues", "GROUNDPLANE_QUEUES_URL", url, "work queues and dead letters", secret=True),
    Option("jobs", "plane.jobs", "GROUNDPLANE_JOBS_URL", url, "jobs, their events, their outbox", secret=True),
    Option("ledger", "plane.ledger", "GROUNDPLANE_LEDGER_URL", url, "effects done once, joins", secret=True),
    Option("blobs", "plane.blobs", "GROUNDPLANE_BLOBS_URL", url, "large payloads and results", secret=True),
    Option("host", "gateway.host", "GROUNDPLANE_HOST", host, "address that the gateway listens on"),
    Option("port", "gateway.port", "GROUNDPLANE_PORT", whole(0, 65535), "port of the gateway; 0 takes a free one"),
    Option(
        "allowed_hosts",
        "gateway.allowed_hosts",
        "GROUNDPLANE_ALLOWED_HOSTS",
        hosts,
        "names beside the loopback's that callers may use, those of a reverse proxy; separated by commas",
    ),
    Option(
        "admin_host",
        "gateway.admin_host",
        "GROUNDPLANE_ADMIN_HOST",
        host,
        "address of metrics, probes and depths, which only read (default: the gateway's)",
    ),
    Option(
        "admin_port",
        "gateway.admin_port",
        "GROUNDPLANE_ADMIN_PORT",
        whole(0, 65535),
        "port of metrics and probes; 0 takes a free one",
    ),
    Option("routes", "gateway.routes", "GROUNDPLANE_ROUTES", path, "routes.yaml, or a folder of such files"),
    Option("grace_s", "mesh.grace", "GROUNDPLANE_GRACE_S", duration, "time that running work gets at a stop"),
    Option("hops_max", "mesh.hops_max", "GROUNDPLANE_HOPS_MAX", whole(1, 10_000), "hops before a route is a loop"),
    Option(
        "payload_inline_bytes_max",
        "mesh.payload_inline_max",
        "GROUNDPLANE_PAYLOAD_INLINE_MAX",
        size,
        "payloads above it travel as a claim check",
    ),
    Option("payload_bytes_max", "mesh.payload_max", "GROUNDPLANE_PAYLOAD_MAX", size, "largest payload"),
    Option(
        "retention_jobs_s", "retention.jobs", "GROUNDPLANE_RETENTION_JOBS", duration, "how long ended jobs are kept"
    ),
    Option(
        "retention_events_s", "retention.events", "GROUNDPLANE_RETENTION_EVENTS", duration, "how long events are kept"
    ),
    Option(
        "log_level",
        "log.level",
        "GROUNDPLANE_LOG_LEVEL",
        one_of(*LOG_LEVELS),
        "least level that is logged",
        customary="LOG_LEVEL",
    ),
    Option(
        "log_format",
        "log.format",
        "GROUNDPLANE_LOG_FORMAT",
        one_of(*LOG_FORMATS),
        "auto: console on a terminal, else JSON lines",
    ),
)
