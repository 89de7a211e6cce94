"""What a URL says about a database: where it is, which schema, how many connections."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec
import psycopg
from psycopg import conninfo

from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.core.secrets import mask_url

SCHEMES = ("postgresql", "postgres")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_OWN = ("schema", "pool_min", "pool_max", "call_timeout", "prepare_threshold")
_PASSED_ON = (
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname", "gssencmode", "host",
    "hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname",
    "load_balance_hosts", "options", "passfile", "password", "port", "require_auth", "service", "sslcert",
    "sslcertmode", "sslcompression", "sslcrl", "sslcrldir", "sslkey", "ssl_max_protocol_version",
    "ssl_min_protocol_version", "sslmode", "sslnegotiation", "sslpassword", "sslrootcert", "sslsni",
    "target_session_attrs", "tcp_user_timeout", "user",
)  # fmt: skip
_CONNECT_TIMEOUT_S = 3


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A database. `conninfo` is libpq's and holds the password: it is shown to nobody; `shown` is for people.

    `prepare_threshold` is None where statements must not be prepared and a connection is not the same server session
    from one transaction to the next: behind PgBouncer in transaction mode.
    """

    conninfo: dict[str, Any]
    shown: str
    schema: str = "groundplane"
    pool_min: int = 1
    pool_max: int = 8
    call_timeout_s: float = 4.0
    prepare_threshold: int | None = 5

    @property
    def key(self) -> tuple[Any, ...]:
        """What is the same for two URLs that one pool can serve."""
        return (*sorted(self.conninfo.items()), *(getattr(self, name) for name in self.__struct_fields__[2:]))

    def __repr__(self) -> str:
        return f"<Settings {self.shown} schema {self.schema!r}>"


def parse_url(field: str, url: str) -> Settings:
    """The settings in `postgresql://user:password@host:port/database?option=value`, `invalid_argument` for others.

    Options are those of libpq (`sslmode`, `target_session_attrs`, …; several hosts as libpq takes them) and `schema`,
    `pool_min`, `pool_max`, `call_timeout` (seconds), `prepare_threshold` (a number, or `none` behind PgBouncer).
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidArgument(f"{field}: {mask_url(url)!r} is no URL; mend its host") from None
    if parts.scheme not in SCHEMES:
        raise InvalidArgument(f"{field}: {mask_url(url)!r} must begin with postgresql://")
    if parts.fragment:
        raise InvalidArgument(f"{field}: {mask_url(url)!r} has a part after '#'; encode it as %23")
    own, passed_on = _options(field, parts.query)
    bare = url.partition("?")[0]
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in passed_on.items())
    try:
        info = conninfo.conninfo_to_dict(f"{bare}?{query}" if query else bare)
    except psycopg.ProgrammingError:
        raise InvalidArgument(
            f"{field}: {mask_url(url)!r} cannot be read by libpq; mend host, port or options"
        ) from None
    info.setdefault("connect_timeout", _CONNECT_TIMEOUT_S)
    info.setdefault("application_name", "groundplane")
    return _settings(field, info, mask_url(bare), own)


def _options(field: str, query: str) -> tuple[dict[str, str], dict[str, str]]:
    own: dict[str, str] = {}
    passed_on: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _OWN:
            own[name] = value
        elif name in _PASSED_ON:
            passed_on[name] = value
        else:
            known = (*_OWN, *_PASSED_ON)
            raise InvalidArgument(
                f"{field}: option {name!r} is not known{did_you_mean(name, known)}", details={"option": name}
            )
    return own, passed_on


def _settings(field: str, info: dict[str, Any], shown: str, own: dict[str, str]) -> Settings:
    schema = own.get("schema", "groundplane")
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise InvalidArgument(f"{field}: schema {schema!r} must be a lower-case identifier of at most 40 characters")
    least = _number(field, own, "pool_min", 1, 0, 100)
    most = _number(field, own, "pool_max", 8, 2, 500)
    if least > most:
        raise InvalidArgument(f"{field}: pool_min {least} is more than pool_max {most}")
    threshold: int | None = None
    if own.get("prepare_threshold", "").lower() != "none":
        threshold = _number(field, own, "prepare_threshold", 5, 0, 1000)
    timeout_s = _number(field, own, "call_timeout", 4, 1, 3600)
    try:
        int(str(info["connect_timeout"]))
    except ValueError:
        raise InvalidArgument(
            f"{field}: connect_timeout {info['connect_timeout']!r} is no whole number of seconds"
        ) from None
    return Settings(
        conninfo=info,
        shown=shown,
        schema=schema,
        pool_min=least,
        pool_max=most,
        call_timeout_s=float(timeout_s),
        prepare_threshold=threshold,
    )


def _number(field: str, own: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = own.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:9]) <= most:
        raise InvalidArgument(f"{field}: {name} {text!r} is not a whole number from {least} to {most}")
    return int(text)
