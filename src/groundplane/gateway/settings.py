"""The gateway's settings, validated in one place."""

from __future__ import annotations

import ipaddress
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.core.settings import Settings
from groundplane.security.access import check_scopes

WAIT_S_MAX = 60.0
Limit: TypeAlias = int | float | Literal["none"] | None
"""A number; "none": no limit; None: the default, which is a limit where callers are authenticated."""
POSITIVE = (
    "grace_s", "keepalive_s", "stall_s", "stream_s", "head_s", "body_s", "idle_s", "retry_ms", "body_bytes_max",
    "header_bytes_max", "target_bytes_max", "connections_max", "rate", "burst", "live_jobs", "streams",
)  # fmt: skip


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the gateway listens and what it allows. Port 0 takes a free one; `admin_port` None: no admin server.

    `admin_host` is the address of that server, which only reads (probes, metrics, depths) and may be bound beyond the
    loopback; None: the gateway's own.

    `drain_delay_s` is how long after the signal to stop requests are still served, readiness being red already, so that
    proxies learn of it. `stream_s` is how long the stream of an older MCP call is held before its client is sent away
    to resume it.

    `allowed_hosts` are names beside the loopback's that a `Host` header may carry (a reverse proxy's). `keepalive_s` is
    the longest silence of a stream, `stall_s` how long an answer waits for a client that reads nothing.

    `rate` (per second), `burst`, `live_jobs` and `streams` are of one caller: "none" is no limit, None the default,
    which is a limit where callers are authenticated (see `limits`). `connections_max` is of all callers; the file
    descriptors that the process may have can make it fewer.

    How long a client may take: `head_s` for the head of a request, `body_s` and a second more for every 16 KiB for its
    body, `idle_s` between requests.

    `auth` says who may call: `none` (everyone who reaches the loopback), API `keys`, tokens of an `oauth` issuer, or
    both. Tokens need `issuer` and `public_url`, where callers reach the gateway; `audiences` are what tokens are to be
    for. `scope_map` are texts `word=scope`: what a word in a token's scope stands for.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    admin_host: str | None = None
    admin_port: int | None = None
    grace_s: float = 30.0
    drain_delay_s: float = 0.0
    body_bytes_max: int = 16 * 1024 * 1024
    header_bytes_max: int = 16 * 1024
    target_bytes_max: int = 8 * 1024
    keepalive_s: float = 15.0
    retry_ms: int = 1000
    stall_s: float = 60.0
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
    connections_max: int = 4096
    rate: Limit = None
    burst: int | None = None
    live_jobs: Limit = None
    streams: Limit = None
    stream_s: float = 600.0
    allowed_hosts: tuple[str, ...] = ()
    auth: Literal["none", "keys", "oauth", "keys+oauth"] = "none"
    public_url: str | None = None
    issuer: str | None = None
    audience: str | None = None
    jwks_url: str | None = None
    scope_map: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in (("port", 0, 65535), ("admin_port", 0, 65535)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidArgument(f"{name}: {value!r} is not a port; use {low} to {high}")
        for name in POSITIVE:
            value = getattr(self, name)
            if value not in (None, "none") and not value > 0:
                raise InvalidArgument(f"{name}: {value!r} is not positive")
        if not 0 <= self.drain_delay_s < self.grace_s:
            raise InvalidArgument(f"drain_delay_s: {self.drain_delay_s!r} is not 0 or more and less than the grace")
        self._check_authentication()
        if self.auth == "none" and not is_loopback(self.host):
            raise FailedPrecondition(
                f"host: {self.host!r} is reachable from other machines, and callers are not authenticated; make a key "
                "with `groundplane keys create` and set auth to 'keys', or bind 127.0.0.1, ::1 or localhost",
                reason="auth_required",
                details={"host": self.host},
            )

    @classmethod
    def of(cls, settings: Settings) -> GatewaySettings:
        """Those of a plane: what both know by one name."""
        found = {name: getattr(settings, name) for name in cls.__struct_fields__ if hasattr(settings, name)}
        return cls(**found, connections_max=settings.connections)

    @property
    def takes_keys(self) -> bool:
        """Whether API keys are taken."""
        return self.auth in ("keys", "keys+oauth")

    @property
    def takes_tokens(self) -> bool:
        """Whether tokens of an issuer are taken."""
        return self.auth in ("oauth", "keys+oauth")

    @property
    def hosts(self) -> frozenset[str]:
        """The names beside the loopback's that a `Host` header may carry, in lower case: the address that is bound is
        one, unless it stands for all of them.
        """
        public = urlsplit(self.public_url).hostname if self.public_url else None
        bound = None if _is_every_address(self.host) else self.host
        return frozenset(host.lower() for host in (*self.allowed_hosts, public, bound) if host)

    @property
    def audiences(self) -> tuple[str, ...]:
        """What the audience of a token must name one of."""
        base = (self.public_url or "").rstrip("/")
        return (self.audience,) if self.audience else (base, f"{base}/", f"{base}/mcp")

    def scopes_of_tokens(self) -> dict[str, tuple[str, ...]]:
        """Which scopes of ours a word of a token's scope stands for."""
        found: dict[str, tuple[str, ...]] = {}
        for text in self.scope_map:
            word, _, scope = text.partition("=")
            found[word.strip()] = check_scopes("scope_map", [*found.get(word.strip(), ()), scope.strip()])
        return found

    def _check_authentication(self) -> None:
        self.scopes_of_tokens()
        if not self.takes_tokens:
            return
        for name in ("issuer", "public_url"):
            if not getattr(self, name):
                raise InvalidArgument(f"{name}: is missing; auth {self.auth!r} needs it")
        if urlsplit(self.public_url or "").path.strip("/"):
            raise InvalidArgument(f"public_url: {self.public_url!r} has a path; the gateway is the root of its host")
        for name in ("issuer", "jwks_url"):
            parts = urlsplit(getattr(self, name) or "https://")
            if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
                raise InvalidArgument(f"{name}: {getattr(self, name)!r} is not https; its answers could be forged")


def local_url(host: str, port: int) -> str:
    """The URL under which this machine reaches what binds `host`: the loopback's where that is every address."""
    if _is_every_address(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_every_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that binds `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
