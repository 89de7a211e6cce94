"""Where NATS is, how to enter it, and how patient a connection is, read from a URL.

    nats://user:password@host1:4222,host2:4222?connect_timeout=2&reconnect_wait_max=1
    nats://token@host
    tls://host?cafile=/etc/ca.pem&creds=/etc/app.creds

User, password and token are percent-encoded. With `nats://` TLS is used where the server asks for it, with `tls://`
always.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from groundplane.core.durations import parse_duration
from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.core.secrets import MASK, Secret, Url, mask_url

SCHEMES = {"nats": False, "tls": True}
PORT = 4222
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\s:\[\]@/?]+)(?::(?P<port>\d{1,5}))?")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TOKENS = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """The servers of one NATS system, the login, and the limits of a connection to it.

    `connect_timeout_s`: for one server, TLS and login included. `request_timeout_s`: for one request to JetStream.
    `ping_interval_s`: a server is dead after twice that of silence. Reconnects wait `reconnect_wait_s`, doubled each
    round up to `reconnect_wait_max_s`, each a random part of up to `reconnect_jitter` shorter, for ever or for
    `reconnect_rounds` rounds over all servers. `pending_bytes_max`: what may wait to be written. `options`: what the
    URL said for the caller's own names.
    """

    hosts: tuple[tuple[str, int], ...]
    tls: bool = False
    tls_first: bool = False
    user: str = ""
    password: Secret = Secret("")
    token: Secret = Secret("")
    creds: str = ""
    nkey: str = ""
    connect_timeout_s: float = 2.0
    request_timeout_s: float = 5.0
    ping_interval_s: float = 1.0
    reconnect_wait_s: float = 0.05
    reconnect_wait_max_s: float = 1.0
    reconnect_jitter: float = 0.5
    reconnect_rounds: int | None = None
    pending_bytes_max: int = 64 * 1024 * 1024
    domain: str = ""
    inbox: str = "_INBOX"
    verify: bool = True
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    options: dict[str, str] = {}

    @classmethod
    def parse(cls, url: str | Url, *, field: str = "nats", extra: Collection[str] = ()) -> Address:
        """The address that `url` writes. `extra` names query parameters of the caller, returned in `options`.

        `invalid_argument` that begins with `field`, shows the URL masked and says what is wrong, with the nearest
        known name for an unknown parameter.
        """
        text = url.reveal() if isinstance(url, Url) else url
        return _Reader(field, text, frozenset(extra)).address()

    def masked(self) -> str:
        """The address as a URL without its secrets: what may be shown."""
        hosts = ",".join(f"{_bracketed(host)}:{port}" for host, port in self.hosts)
        login = f"{quote(self.user, safe='')}:{MASK}@" if self.user else f"{MASK}@" if self.token.reveal() else ""
        return f"{'tls' if self.tls else 'nats'}://{login}{hosts}"

    def __repr__(self) -> str:
        return f"Address({self.masked()!r})"

    def ssl_context(self) -> ssl.SSLContext:
        """What TLS is agreed on with. Reads files. `tls_failed` for one that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.cafile or None)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile or None)
        except (OSError, ssl.SSLError) as error:
            files = [name for name in (self.cafile, self.certfile, self.keyfile) if name]
            raise FailedPrecondition(
                f"tls: one of {files!r} cannot be used ({error}); mend cafile, certfile or keyfile of the URL",
                reason="tls_failed",
            ) from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class _Reader:
    """One reading of one URL: keeps what its errors must show."""

    def __init__(self, field: str, text: str, extra: frozenset[str]) -> None:
        self._field = field
        self._text = text
        self._extra = extra

    def address(self) -> Address:
        scheme, mark, rest = self._text.partition("://")
        scheme = scheme.lower()
        if not mark or scheme not in SCHEMES:
            raise self._wrong("is no address of NATS; write nats://user:password@host:4222 or tls://…")
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        login, at, hosts = authority.rpartition("@")
        if path:
            raise self._wrong("has a path; NATS has none: names come from the plane")
        values: dict[str, Any] = {"hosts": self._hosts(hosts), "tls": SCHEMES[scheme]}
        if at:
            user, colon, password = login.partition(":")
            if colon:
                values["user"] = self._decoded("user", user)
                values["password"] = Secret(self._decoded("password", password))
            else:
                values["token"] = Secret(self._decoded("token", user))
        values.update(self._parameters(query))
        self._check(values, bool(at))
        return Address(**values)

    def _hosts(self, text: str) -> tuple[tuple[str, int], ...]:
        found = []
        for one in text.split(","):
            match = _HOST.fullmatch(one.rpartition("://")[2])
            number = int(match["port"] or PORT) if match else 0
            if match is None or not 1 <= number <= 65535:
                raise self._wrong("has a host that cannot be read; write host, host:port or [ipv6]:port, by commas")
            found.append((match["host"].strip("[]"), number))
        return tuple(found)

    def _decoded(self, what: str, text: str) -> str:
        try:
            if _ESCAPE.search(text):
                raise ValueError("a '%' without two hexadecimal digits")
            value = unquote(text, errors="strict")
        except ValueError as error:
            reason = "bytes that are no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise self._wrong(f"has {reason} in its {what}; percent-encode it as UTF-8") from None
        if not value:
            raise self._wrong(f"has an empty {what}; write user:password@ or token@, or leave both out")
        return value

    def _parameters(self, query: str) -> dict[str, Any]:
        found: dict[str, Any] = {"options": {}}
        seen: set[str] = set()
        for name, text in parse_qsl(query, keep_blank_values=True):
            if name in seen:
                raise self._wrong(f"has the parameter {name!r} twice; write it once")
            seen.add(name)
            if name in _PARAMETERS:
                target, read = _PARAMETERS[name]
                try:
                    found[target] = read(text)
                except ValueError as error:
                    raise self._wrong(f"has {name}={text!r}; {error}") from None
            elif name in self._extra:
                found["options"][name] = text
            else:
                known = sorted({*_PARAMETERS, *self._extra})
                hint = did_you_mean(name, known) or f"; known are {', '.join(known)}"
                raise self._wrong(f"has an unknown parameter {name!r}{hint}")
        return found

    def _check(self, values: dict[str, Any], login: bool) -> None:
        if values.get("tls_first") and not values["tls"]:
            raise self._wrong("has tls_first without TLS; write tls://")
        if values.get("keyfile") and not values.get("certfile"):
            raise self._wrong("has keyfile without certfile; name both")
        ways = [name for name in ("creds", "nkey") if values.get(name)] + (["a login before the '@'"] if login else [])
        if len(ways) > 1:
            raise self._wrong(f"has {' and '.join(ways)}; choose one")
        least = values.get("reconnect_wait_s", 0.05)
        if least > values.get("reconnect_wait_max_s", 1.0):
            raise self._wrong(f"has reconnect_wait={least:g} above reconnect_wait_max; raise reconnect_wait_max")

    def _wrong(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"{self._field}: {mask_url(self._text)!r} {what}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = parse_duration("", text)
        except InvalidArgument:
            value = -1.0
        if not least <= value <= most:
            raise ValueError(f"write seconds from {least:g} to {most:g}")
        return value

    return read


def _whole(least: int, most: int, unit: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"write a whole number of {unit} from {least} to {most}")
        return int(text)

    return read


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ValueError("write a number from 0 (no jitter) to 1")
    return value


def _rounds(text: str) -> int | None:
    return None if text == "none" else _whole(1, 1_000_000, "rounds (or none, for ever)")(text)


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("write on or off")
    return text == "on"


def _path(text: str) -> str:
    if not text:
        raise ValueError("name a file")
    return text


def _tokens(text: str) -> str:
    if not _TOKENS.fullmatch(text):
        raise ValueError("write letters, digits, - and _, joined by dots")
    return text


_PARAMETERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "connect_timeout": ("connect_timeout_s", _seconds(0.1, 60.0)),
    "request_timeout": ("request_timeout_s", _seconds(0.1, 300.0)),
    "ping_interval": ("ping_interval_s", _seconds(0.1, 120.0)),
    "reconnect_wait": ("reconnect_wait_s", _seconds(0.001, 60.0)),
    "reconnect_wait_max": ("reconnect_wait_max_s", _seconds(0.001, 300.0)),
    "reconnect_jitter": ("reconnect_jitter", _fraction),
    "reconnect_rounds": ("reconnect_rounds", _rounds),
    "pending_bytes_max": ("pending_bytes_max", _whole(64 * 1024, 2**30, "bytes")),
    "domain": ("domain", _tokens),
    "inbox": ("inbox", _tokens),
    "creds": ("creds", _path),
    "nkey": ("nkey", _path),
    "tls_first": ("tls_first", _switch),
    "verify": ("verify", _switch),
    "cafile": ("cafile", _path),
    "certfile": ("certfile", _path),
    "keyfile": ("keyfile", _path),
}
PARAMETERS = frozenset(_PARAMETERS)
"""The query parameters that an address takes itself."""
