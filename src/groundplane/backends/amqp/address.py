"""Where a broker is and how to enter it, read from a URL.

    amqp://user:password@host1:5672,host2:5672/vhost?heartbeat=2&connect_timeout=3
    amqps://user:password@host/?cafile=/etc/ca.pem&certfile=/etc/me.pem&keyfile=/etc/me.key

User, password and virtual host are percent-encoded; an empty or missing path is the virtual host `/`, as `%2F` is.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.core.secrets import MASK, Secret, Url, mask_url

PORTS = {"amqp": 5672, "amqps": 5671}
FRAME_SIZE_MIN = 4096  # AMQP 0-9-1, section 4.2.3
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\s:\[\]@/]+)(?::(?P<port>\d{1,5}))?")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """The hosts of one broker or cluster, the login, and the limits in time and size of a connection to it.

    `heartbeat_s`: the peer is dead after twice that of silence. `connect_timeout_s`: for reaching a host, TLS and
    login together, all hosts included. `rpc_timeout_s`: for one request. `blocked_timeout_s`: how long a publisher
    waits for a broker whose alarm is on. `options`: what the URL said for the caller's own names.
    """

    hosts: tuple[tuple[str, int], ...]
    tls: bool = False
    user: str = "guest"
    password: Secret = Secret("guest")
    vhost: str = "/"
    heartbeat_s: int = 2
    connect_timeout_s: float = 3.0
    rpc_timeout_s: float = 10.0
    blocked_timeout_s: float = 5.0
    frame_max: int = 131_072
    body_max: int = 128 * 1024 * 1024
    verify: bool = True
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    options: dict[str, str] = {}

    @classmethod
    def parse(cls, url: str | Url, *, field: str = "queues", extra: Collection[str] = ()) -> Address:
        """The address that `url` writes. `extra` names query parameters of the caller, returned in `options`.

        `invalid_argument` that begins with `field`, shows the URL masked and says what is wrong, with the nearest
        known name for an unknown parameter.
        """
        text = url.reveal() if isinstance(url, Url) else url
        return _Reader(field, text, frozenset(extra)).address()

    def masked(self) -> str:
        """The address as a URL without its password: what may be shown."""
        hosts = ",".join(f"{_bracketed(host)}:{port}" for host, port in self.hosts)
        scheme, path = "amqps" if self.tls else "amqp", "" if self.vhost == "/" else quote(self.vhost, safe="")
        return f"{scheme}://{quote(self.user, safe='')}:{MASK}@{hosts}/{path}"

    def __repr__(self) -> str:
        return f"Address({self.masked()!r})"

    def ssl_context(self) -> ssl.SSLContext | None:
        """What TLS is agreed on with; None without TLS. Reads files. `tls_failed` for one that cannot be used."""
        if not self.tls:
            return None
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
        if not mark or scheme not in PORTS:
            raise self._wrong("is no address of a broker; write amqp://user:password@host:5672/vhost or amqps://…")
        rest, _, query = rest.partition("?")
        authority, slash, path = rest.partition("/")
        login, at, hosts = authority.rpartition("@")
        if "/" in path:
            raise self._wrong("has a second '/' in its path; write a '/' inside the virtual host's name as %2F")
        values: dict[str, Any] = {"hosts": self._hosts(hosts, PORTS[scheme]), "tls": scheme == "amqps"}
        if at:
            user, colon, password = login.partition(":")
            values["user"] = self._decoded("user", user)
            if colon:
                values["password"] = Secret(self._decoded("password", password))
        if slash and path:
            values["vhost"] = self._decoded("virtual host", path)
        values.update(self._parameters(query))
        self._check(values)
        return Address(**values)

    def _hosts(self, text: str, port: int) -> tuple[tuple[str, int], ...]:
        found = []
        for one in text.split(","):
            match = _HOST.fullmatch(one)
            number = int(match["port"] or port) if match else 0
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
        if len(value.encode()) > 255:
            raise self._wrong(f"has a {what} of more than 255 bytes; AMQP carries no more")
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

    def _check(self, values: dict[str, Any]) -> None:
        given = [name for name in ("cafile", "certfile", "keyfile") if values.get(name)]
        if not values["tls"] and (given or "verify" in values):
            raise self._wrong(f"has {', '.join(given) or 'verify'} without TLS; write amqps://")
        if values.get("keyfile") and not values.get("certfile"):
            raise self._wrong("has keyfile without certfile; name both")

    def _wrong(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"{self._field}: {mask_url(self._text)!r} {what}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        return float(_number(float, text, least, most, "seconds"))

    return read


def _whole(least: int, most: int, unit: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        return int(_number(int, text, least, most, unit))

    return read


def _number(kind: Any, text: str, least: Any, most: Any, unit: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise ValueError(f"write {'a whole number' if kind is int else 'a number'} of {unit} from {least} to {most}")
    return value


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("write on or off")
    return text == "on"


def _path(text: str) -> str:
    if not text:
        raise ValueError("name a file")
    return text


_PARAMETERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "heartbeat": ("heartbeat_s", _whole(1, 60, "seconds")),
    "connect_timeout": ("connect_timeout_s", _seconds(0.1, 60.0)),
    "rpc_timeout": ("rpc_timeout_s", _seconds(0.1, 300.0)),
    "blocked_timeout": ("blocked_timeout_s", _seconds(0.0, 300.0)),
    "frame_max": ("frame_max", _whole(FRAME_SIZE_MIN, 2**27, "bytes")),
    "body_max": ("body_max", _whole(FRAME_SIZE_MIN, 2**29, "bytes")),
    "verify": ("verify", _switch),
    "cafile": ("cafile", _path),
    "certfile": ("certfile", _path),
    "keyfile": ("keyfile", _path),
}
PARAMETERS = frozenset(_PARAMETERS)
"""The query parameters that an address takes itself."""
