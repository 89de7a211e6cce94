"""The environment as a source of settings: `.env` files, `NAME_FILE` for secrets, and the names people already have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from groundplane.core.errors import InvalidArgument, NotFound

_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)")
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP)(_\w+)?$")
_SECRET_BYTES_MAX = 64 * 1024


class Variable(NamedTuple):
    """A value of the environment and where it came from: `environment` or `file:line`."""

    value: str
    source: str


class EnvironmentView:
    """The process environment over an `--env-file`. A value is taken by `get`, also from the file that `NAME_FILE`
    names.
    """

    def __init__(self, environ: Mapping[str, str], env_file: Path | None = None) -> None:
        self._values: dict[str, Variable] = {}
        if env_file is not None:
            self._values.update(read_env_file(env_file))
        self._values.update({name: Variable(value, "environment") for name, value in environ.items()})

    def get(self, name: str, *, secret: bool = False) -> Variable | None:
        """The value of `name`, None where it is not set or empty. For a secret, `NAME_FILE` may name a file instead."""
        direct = self._values.get(name)
        direct = direct if direct is not None and direct.value != "" else None
        if not secret:
            return direct
        named = self._values.get(f"{name}_FILE")
        if named is None or named.value == "":
            return direct
        if direct is not None:
            raise InvalidArgument(f"{name}: is set beside {name}_FILE={named.value!r}; set one of the two")
        return Variable(_read_secret(f"{name}_FILE", Path(named.value)), f"{name}_FILE={named.value}")

    def names(self) -> dict[str, str]:
        """Every name that is set, with its source."""
        return {name: variable.source for name, variable in self._values.items()}


def read_env_file(path: Path) -> dict[str, Variable]:
    """`NAME=value` lines; `export`, comments and quotes as a shell has them, without expansion.

    Raises `not_found` for a missing file, `invalid_argument` with file and line for what is no such line, or a name
    that is set twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"env_file: {str(path)!r} does not exist; mend --env-file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"env_file: {str(path)!r} cannot be read: {error}") from error
    values: dict[str, Variable] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        found = _LINE.fullmatch(stripped)
        if found is None:  # the line itself is not shown: it may be a secret
            raise InvalidArgument(f"env_file: {path}:{number}: the line is not NAME=value")
        if found["name"] in values:
            raise InvalidArgument(
                f"{found['name']}: {path}:{number}: is set twice, first at {values[found['name']].source}"
            )
        values[found["name"]] = Variable(_unquoted(found["value"], path, number), f"{path}:{number}")
    return values


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes made the variable for a service of that name (`GROUNDPLANE_PORT=tcp://10.0.0.1:80`)."""
    return bool(_SERVICE_LINK.search(name)) or (name.endswith("_PORT") and value.startswith(("tcp://", "udp://")))


class Customary(NamedTuple):
    """A URL that the environment offers under a name that other programs use too."""

    port: str
    variables: str
    url: str
    source: str


def customary_urls(environment: EnvironmentView) -> list[Customary]:
    """What the environment offers for ports under customary names, in order of preference.

    Those of ports or schemes that this version has no driver for are told to the user and otherwise left alone: a
    `DATABASE_URL` may well be somebody else's.
    """
    offered: list[Customary] = []
    for name, ports in _CUSTOMARY:
        found = environment.get(name, secret=True)
        if found is not None:
            url = f"kafka://{found.value}" if name == "KAFKA_BOOTSTRAP_SERVERS" else found.value
            offered += [Customary(port, name, url, found.source) for port in ports]
    for prefix, scheme, default_port, port in _HOST_AND_PORT:
        host, number = environment.get(f"{prefix}_HOST"), environment.get(f"{prefix}_PORT")
        if host is not None and not any(one.port == port for one in offered):
            address = number.value if number is not None and number.value.isdecimal() else default_port
            offered.append(Customary(port, f"{prefix}_HOST", f"{scheme}://{host.value}:{address}", host.source))
    return offered


_CUSTOMARY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("RABBITMQ_URL", ("queues",)),
    ("DATABASE_URL", ("jobs", "ledger", "memory")),
    ("NATS_URL", ("bus", "kv")),
    ("REDIS_URL", ("coordination",)),
    ("KAFKA_BOOTSTRAP_SERVERS", ("streams",)),
    ("MILVUS_URI", ("vectors",)),
    ("AUTH_SERVICE_URL", ("auth_service",)),
)
_HOST_AND_PORT: tuple[tuple[str, str, str, str], ...] = (
    ("REDIS", "redis", "6379", "coordination"),
    ("MILVUS", "milvus", "19530", "vectors"),
)


def _unquoted(text: str, path: Path, number: int) -> str:
    if text[:1] in ("'", '"'):
        end = text.find(text[0], 1)
        rest = text[end + 1 :].strip()
        if end < 0 or (rest and not rest.startswith("#")):
            raise InvalidArgument(f"env_file: {path}:{number}: the quotes of the value do not match")
        return text[1:end]
    return text.split(" #", 1)[0].rstrip()


def _read_secret(field: str, path: Path) -> str:
    try:
        if path.stat().st_size > _SECRET_BYTES_MAX:
            raise InvalidArgument(
                f"{field}: {str(path)!r} is larger than {_SECRET_BYTES_MAX} bytes; name a secret's file"
            )
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{field}: {str(path)!r} cannot be read: {error}") from error
