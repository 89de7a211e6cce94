"""The sidecar's settings: flags over environment over a JSON document over defaults. `ASYA_*` names are fallbacks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from groundplane.core.durations import parse_duration
from groundplane.core.envelope import ERROR_END, HAPPY_END
from groundplane.core.environment import EnvironmentView
from groundplane.core.errors import InvalidArgument
from groundplane.core.names import check_name, did_you_mean
from groundplane.core.secrets import Url, mask_url
from groundplane.mesh.spec import ActorSpec, Limits

START_TIMEOUT_S = 30.0


class SidecarConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a sidecar needs to know. An empty URL means: without that part (jobs, blobs, ledger, bus).

    `exchange` is that of the broker, where `queues` does not name it; other queues have none and take no notice.
    With `gateway_url` reports go there instead of to the job store. `window` deliveries are held at once (None: as
    many as keep the handler busy). `start_timeout_s` is how long it waits for socket and queue.
    """

    actor: ActorSpec
    socket: str
    limits: Limits = Limits()
    namespace: str = "default"
    state: str = ".groundplane"
    queues: str = "embedded://"
    jobs: str = "embedded://"
    blobs: str = "embedded://"
    ledger: str = "embedded://"
    bus: str = "embedded://"
    exchange: str | None = None
    protocol: Literal["auto", "0", "1"] = "auto"
    window: int | None = None
    happy_end: str = HAPPY_END
    error_end: str = ERROR_END
    gateway_url: str | None = None
    heartbeat_s: float = 10.0
    start_timeout_s: float = START_TIMEOUT_S
    admin_host: str = "127.0.0.1"
    admin_port: int = 0
    ready_file: str | None = None
    declare: bool = False
    log_level: str | None = None


class _Option(msgspec.Struct, frozen=True):
    """One flag: where it goes in the document, its variables (own first), how its text is read, what it means."""

    flag: str
    path: tuple[str, ...]
    variables: tuple[str, ...]
    help: str
    kind: Literal["text", "count", "duration"] = "text"
    secret: bool = False


OPTIONS = (
    _Option("queue", ("actor", "name"), ("GROUNDPLANE_QUEUE_NAME", "ASYA_QUEUE_NAME"), "the actor's name and queue"),
    _Option("handler", ("actor", "handler"), ("GROUNDPLANE_HANDLER", "ASYA_HANDLER"), "for logs; the runtime loads it"),
    _Option("socket", ("socket",), ("GROUNDPLANE_SOCKET_PATH", "ASYA_SOCKET_PATH"), "path of the runtime's socket"),
    _Option("protocol", ("protocol",), ("GROUNDPLANE_SOCKET_PROTOCOL",), "auto, 0 or 1"),
    _Option(
        "queues",
        ("queues",),
        ("GROUNDPLANE_QUEUES_URL", "ASYA_RABBITMQ_URL", "RABBITMQ_URL"),
        "URL of the queues",
        secret=True,
    ),
    _Option("exchange", ("exchange",), ("GROUNDPLANE_EXCHANGE", "ASYA_RABBITMQ_EXCHANGE"), "exchange of the broker"),
    _Option(
        "jobs", ("jobs",), ("GROUNDPLANE_JOBS_URL", "DATABASE_URL"), "URL of the job store, '' for none", secret=True
    ),
    _Option("blobs", ("blobs",), ("GROUNDPLANE_BLOBS_URL",), "URL of the blobs, '' for none", secret=True),
    _Option(
        "ledger", ("ledger",), ("GROUNDPLANE_LEDGER_URL", "DATABASE_URL"), "URL of the ledger, '' for none", secret=True
    ),
    _Option("bus", ("bus",), ("GROUNDPLANE_BUS_URL", "NATS_URL"), "URL of the bus, '' for none", secret=True),
    _Option(
        "gateway-url",
        ("gateway_url",),
        ("GROUNDPLANE_GATEWAY_URL", "ASYA_GATEWAY_URL"),
        "report over HTTP",
        secret=True,
    ),
    _Option("state", ("state",), ("GROUNDPLANE_STATE",), "folder of embedded drivers"),
    _Option("namespace", ("namespace",), ("GROUNDPLANE_NAME",), "name of the plane"),
    _Option(
        "happy-end", ("happy_end",), ("GROUNDPLANE_HAPPY_END", "ASYA_STEP_HAPPY_END"), "queue after the last actor"
    ),
    _Option("error-end", ("error_end",), ("GROUNDPLANE_ERROR_END", "ASYA_STEP_ERROR_END"), "queue of failures"),
    _Option(
        "timeout",
        ("actor", "timeout_s"),
        ("GROUNDPLANE_ACTOR_TIMEOUT", "ASYA_RUNTIME_TIMEOUT"),
        "longest call, as 30s",
        "duration",
    ),
    _Option("concurrency", ("actor", "concurrency"), ("GROUNDPLANE_CONCURRENCY",), "calls at once", "count"),
    _Option("window", ("window",), ("GROUNDPLANE_ACTOR_WINDOW",), "deliveries held at once", "count"),
    _Option("hops-max", ("limits", "hops_max"), ("GROUNDPLANE_HOPS_MAX",), "longest route", "count"),
    _Option("grace", ("limits", "grace_s"), ("GROUNDPLANE_GRACE_S",), "time for calls after SIGTERM", "duration"),
    _Option(
        "start-timeout",
        ("start_timeout_s",),
        ("GROUNDPLANE_ACTOR_START_TIMEOUT",),
        "how long to wait for socket and queue",
        "duration",
    ),
    _Option("admin-host", ("admin_host",), ("GROUNDPLANE_ACTOR_ADMIN_HOST",), "address of /metrics and /readyz"),
    _Option("admin-port", ("admin_port",), ("GROUNDPLANE_ACTOR_ADMIN_PORT",), "its port, 0 for a free one", "count"),
    _Option("ready-file", ("ready_file",), ("GROUNDPLANE_ACTOR_READY_FILE",), "written when messages flow"),
    _Option("log-level", ("log_level",), ("GROUNDPLANE_LOG_LEVEL", "ASYA_LOG_LEVEL", "LOG_LEVEL"), "least level shown"),
)

_CUSTOMARY = {
    "RABBITMQ_URL": ("amqp", "amqps"),
    "DATABASE_URL": ("postgresql", "postgres"),
    "NATS_URL": ("nats", "tls"),
}
_PLAIN_ACTOR = {"handler": ""}


def load(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> SidecarConfig:
    """The settings of this process. `invalid_argument` names what is wrong; `--help` exits."""
    given = _parser().parse_args(arguments)
    document: dict[str, Any] = _document(given.config) if given.config else {}
    _check_known(document)
    document.setdefault("actor", {})
    environment = EnvironmentView(environ)
    for option in OPTIONS:
        text = getattr(given, option.flag.replace("-", "_"))
        source = f"--{option.flag}"
        if text is None and not _present(document, option.path):
            source, text = first_of(environment, option.variables, secret=option.secret)
        if text is not None:
            _place(document, option.path, _read(option, source, text))
    if given.declare:
        document["declare"] = True
    return _checked(document)


def first_of(environment: EnvironmentView, names: Sequence[str], *, secret: bool) -> tuple[str, str | None]:
    """The first of these variables that is set, and its text; a secret's may lie in the file that `NAME_FILE` names.
    One with a name that other programs use too is passed over where no driver of ours has its scheme.
    """
    for name in names:
        found = environment.get(name, secret=secret)
        if found is not None and Url(found.value).scheme in _CUSTOMARY.get(name, (Url(found.value).scheme,)):
            return name, found.value
    return "", None


def _checked(document: dict[str, Any]) -> SidecarConfig:
    document["actor"] = {**_PLAIN_ACTOR, **document["actor"]}
    for field, flag in (("name", "--queue"), ("socket", "--socket")):
        if not (document["actor"] if field == "name" else document).get(field):
            raise InvalidArgument(f"{field}: is missing; give {flag}")
    try:
        config = msgspec.convert(document, SidecarConfig, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"config: {error}") from error
    check_name("queue", config.actor.name)
    check_name("namespace", config.namespace)
    if config.actor.concurrency < 1:
        raise InvalidArgument(f"concurrency: {config.actor.concurrency!r} must be at least 1")
    if config.window is not None and config.window < config.actor.concurrency:
        raise InvalidArgument(f"window: {config.window!r} is less than the concurrency {config.actor.concurrency!r}")
    if not config.actor.timeout_s > 0:
        raise InvalidArgument(f"timeout_s: {config.actor.timeout_s!r} must be more than 0 seconds")
    if config.gateway_url is not None and not config.gateway_url.startswith(("http://", "https://")):
        raise InvalidArgument(f"gateway_url: {mask_url(config.gateway_url)!r} does not begin with http:// or https://")
    return msgspec.structs.replace(config, queues=with_exchange(config.queues, config.exchange))


def with_exchange(queues: str, exchange: str | None) -> str:
    """The URL of the queues with the name of the broker's exchange, where it is a broker's and does not name one."""
    url = Url(queues)
    if exchange is None or url.scheme not in ("amqp", "amqps") or "exchange" in url.query():
        return queues
    return f"{queues}{'&' if '?' in queues else '?'}exchange={quote(exchange, safe='')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="groundplane sidecar",
        description="Carries messages between an actor's queue and its runtime.",
        epilog="exit codes: 0 drained, 1 failed, 2 usage, 3 runtime_not_ready, 4 queue_not_ready, 5 store_not_ready. "
        "A variable of a URL may end in _FILE: then it names the file that holds it.",
    )
    parser.add_argument("--config", help="a JSON document, or the name of a file with one")
    parser.add_argument("--declare", action="store_true", help="create the queues that are missing")
    for option in OPTIONS:
        variables = ", ".join(option.variables)
        parser.add_argument(f"--{option.flag}", help=f"{option.help} ({variables})".replace("%", "%%"))
    return parser


def _document(text: str) -> dict[str, Any]:
    try:
        data = text.encode() if text.lstrip().startswith("{") else Path(text).read_bytes()
        document = msgspec.json.decode(data)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidArgument(f"config: {text[:200]!r} is neither JSON nor a file with JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidArgument(f"config: {text[:200]!r} is not a JSON object")
    return document


def _check_known(document: dict[str, Any]) -> None:
    known = SidecarConfig.__struct_fields__
    for key in document:
        if key not in known:
            raise InvalidArgument(
                f"config: {key!r} is no setting of a sidecar{did_you_mean(key, known)}", reason="unknown_setting"
            )
    for key, struct in (("actor", ActorSpec), ("limits", Limits)):
        for name in document.get(key) or {}:
            if name not in struct.__struct_fields__:
                raise InvalidArgument(f"config: {key}.{name} is unknown", reason="unknown_setting")


def _present(document: dict[str, Any], path: tuple[str, ...]) -> bool:
    inner: Any = document
    for key in path:
        if not isinstance(inner, dict) or key not in inner:
            return False
        inner = inner[key]
    return True


def _place(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document.setdefault(key, {})
    document[path[-1]] = value


def _read(option: _Option, source: str, text: str) -> Any:
    if option.kind == "duration":
        return parse_duration(source, text)
    if option.kind == "count":
        try:
            return int(text)
        except ValueError as error:
            raise InvalidArgument(f"{source}: {text!r} is not a whole number") from error
    return text
