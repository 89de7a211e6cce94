"""The table of settings: key in `groundplane.toml`, variable, what it takes, what it means."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from groundplane.core.durations import parse_duration
from groundplane.core.errors import InvalidArgument
from groundplane.core.names import check_name, did_you_mean
from groundplane.core.secrets import Secret, Url, check_url, mask_url

_SIZE = re.compile(r"(\d+)\s*(b|kb|kib|mb|mib|gb|gib)?", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 1000, "kib": 1024, "mb": 1000**2, "mib": 1024**2, "gb": 1000**3, "gib": 1024**3}
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("auto", "json", "console")
AUTHENTICATIONS = ("none", "keys", "oauth", "keys+oauth")


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


def credential(label: str, value: Any) -> Secret:
    """A key or token as it goes into a header; it is never shown."""
    text = value.reveal() if isinstance(value, Secret) else value
    if not isinstance(text, str) or not re.fullmatch(r"[!-~]{1,8192}", text):
        raise InvalidArgument(f"{label}: is no key or token; it has spaces, line ends, or is empty")
    return Secret(text)


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


def limit(least: int, most: int, *, fraction: bool = False) -> Callable[[str, Any], int | float | str]:
    """A number within bounds, or the word `none` for no limit."""
    what = "a number" if fraction else "a whole number"

    def parse(label: str, value: Any) -> int | float | str:
        if isinstance(value, str) and value.strip().lower() == "none":
            return "none"
        try:
            number = float(value) if isinstance(value, str) or type(value) in (int, float) else math.nan
        except ValueError:
            number = math.nan
        if not least <= number <= most or not (fraction or number.is_integer()):
            raise InvalidArgument(f"{label}: {value!r} is not {what} from {least} to {most}; none is no limit")
        return number if fraction else int(number)

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


def delay(label: str, value: Any) -> float:
    """Seconds, or a text with a unit; also 0."""
    return 0.0 if value in (0, "0", "0s") else duration(label, value)


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


def plain(label: str, value: Any) -> str:
    """A text."""
    return _text(label, value, "a text")


def web_address(label: str, value: Any) -> str:
    """A URL of http or https without user, query and fragment."""
    text = _text(label, value, "a URL of http or https")
    parts = urlsplit(check_url(label, text).reveal())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise InvalidArgument(f"{label}: {mask_url(text)!r} is not an address like https://gateway.example.com")
    return text


def pairs(label: str, value: Any) -> tuple[str, ...]:
    """`name=value` texts, as a list or separated by commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts:
        raise InvalidArgument(f"{label}: {value!r} is no list; write agents=tools:*,operators=operate")
    texts = [part.strip() if isinstance(part, str) else "" for part in parts]
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or not name.strip() or not rest.strip():
            raise InvalidArgument(f"{label}: {text!r} is not name=value; write agents=tools:*")
    return tuple(texts)


def addresses(label: str, value: Any) -> tuple[str, ...]:
    """Addresses of e-mail, as a list or separated by commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts:
        raise InvalidArgument(f"{label}: {value!r} is no list of addresses; write ops@example.com,me@example.com")
    texts = tuple(part.strip() if isinstance(part, str) else "" for part in parts)
    for text in texts:
        if not re.fullmatch(r"[^\s@,<>]+@[^\s@,<>]+", text):
            raise InvalidArgument(f"{label}: {text!r} is no address of e-mail; write ops@example.com")
    return texts


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
    Option(
        "security",
        "plane.security",
        "GROUNDPLANE_SECURITY_URL",
        url,
        "keys, audit log, sessions (default: where the jobs are)",
        secret=True,
    ),
    Option("kv", "plane.kv", "GROUNDPLANE_KV_URL", url, "small shared state, the registry of services", secret=True),
    Option("bus", "plane.bus", "GROUNDPLANE_BUS_URL", url, "requests, events and commands of services", secret=True),
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
    Option(
        "auth",
        "gateway.auth",
        "GROUNDPLANE_AUTH",
        one_of(*AUTHENTICATIONS),
        "who may call: none (whoever reaches the loopback), API keys, tokens of an OAuth issuer, or both",
    ),
    Option(
        "public_url",
        "gateway.public_url",
        "GROUNDPLANE_PUBLIC_URL",
        web_address,
        "where callers reach the gateway, as https://gateway.example.com; needed for oauth",
    ),
    Option("issuer", "gateway.issuer", "GROUNDPLANE_ISSUER", web_address, "the issuer of OAuth tokens"),
    Option(
        "audience",
        "gateway.audience",
        "GROUNDPLANE_AUDIENCE",
        plain,
        "what the audience of a token must name (default: public_url, and public_url/mcp)",
    ),
    Option(
        "jwks_url",
        "gateway.jwks_url",
        "GROUNDPLANE_JWKS_URL",
        web_address,
        "the issuer's keys (default: what its metadata names)",
    ),
    Option(
        "scope_map",
        "gateway.scope_map",
        "GROUNDPLANE_SCOPE_MAP",
        pairs,
        "scopes of tokens that stand for ours, as agents=tools:*,operators=operate; others count where they are ours",
    ),
    Option(
        "rate",
        "gateway.rate",
        "GROUNDPLANE_RATE",
        limit(1, 1_000_000, fraction=True),
        "requests per second of one caller, or none (default: 50 where callers are authenticated)",
    ),
    Option(
        "burst",
        "gateway.burst",
        "GROUNDPLANE_BURST",
        whole(1, 1_000_000),
        "how many of them may come at once (default: 100)",
    ),
    Option(
        "live_jobs",
        "gateway.live_jobs",
        "GROUNDPLANE_LIVE_JOBS",
        limit(1, 1_000_000),
        "jobs of one caller that have not ended, or none (default: 100 where callers are authenticated)",
    ),
    Option(
        "streams",
        "gateway.streams",
        "GROUNDPLANE_STREAMS",
        limit(1, 1_000_000),
        "open streams of one caller, or none (default: 20 where callers are authenticated)",
    ),
    Option(
        "drain_delay_s",
        "gateway.drain_delay",
        "GROUNDPLANE_DRAIN_DELAY",
        delay,
        "how long a gateway that was told to stop still serves, so that proxies see that it is not ready any more",
    ),
    Option(
        "connections",
        "gateway.connections",
        "GROUNDPLANE_CONNECTIONS",
        whole(1, 1_000_000),
        "connections at once, of all callers",
    ),
    Option("routes", "gateway.routes", "GROUNDPLANE_ROUTES", path, "routes.yaml, or a folder of such files"),
    Option(
        "client_url",
        "client.url",
        "GROUNDPLANE_URL",
        url,
        "gateway that commands call (default: the one on the state folder)",
        secret=True,
    ),
    Option(
        "client_key",
        "client.key",
        "GROUNDPLANE_API_KEY",
        credential,
        "API key or access token that commands send to the gateway",
        secret=True,
    ),
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
        "retention_audit_s",
        "retention.audit",
        "GROUNDPLANE_RETENTION_AUDIT",
        duration,
        "how long entries of the audit log are kept",
    ),
    Option("alerts_rules", "alerts.rules", "GROUNDPLANE_ALERTS_RULES", path, "TOML file of own rules of alerts"),
    Option(
        "alerts_webhook",
        "alerts.webhook",
        "GROUNDPLANE_ALERTS_WEBHOOK",
        url,
        "where alerts are posted, as Alertmanager posts them",
        secret=True,
    ),
    Option("alerts_smtp", "alerts.smtp", "GROUNDPLANE_ALERTS_SMTP", url, "mail server of alerts", secret=True),
    Option(
        "alerts_mail_to",
        "alerts.mail_to",
        "GROUNDPLANE_ALERTS_MAIL_TO",
        addresses,
        "who gets alerts by e-mail; separated by commas",
    ),
    Option(
        "alerts_mail_from",
        "alerts.mail_from",
        "GROUNDPLANE_ALERTS_MAIL_FROM",
        plain,
        "sender of e-mails (default: the first who gets them)",
    ),
    Option(
        "alerts_interval_s",
        "alerts.interval",
        "GROUNDPLANE_ALERTS_INTERVAL",
        duration,
        "how often rules of alerts are evaluated",
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
