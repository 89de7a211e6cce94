"""The gateway's settings, validated in one place."""

from __future__ import annotations

import ipaddress

import msgspec

from groundplane.core.errors import FailedPrecondition, InvalidArgument

WAIT_S_MAX = 60.0


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the gateway listens and what it allows. Port 0 takes a free one; `admin_port` None: no admin server.

    `admin_host` is the address of that server, which only reads (probes, metrics, depths) and may be bound beyond the
    loopback; None: the gateway's own.

    `allowed_hosts` are names beside the loopback's that a `Host` header may carry (a reverse proxy's). `keepalive_s` is
    the longest silence of a stream, `stall_s` how long a stream waits for a client that reads nothing.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    admin_host: str | None = None
    admin_port: int | None = None
    grace_s: float = 30.0
    body_bytes_max: int = 16 * 1024 * 1024
    header_bytes_max: int = 16 * 1024
    keepalive_s: float = 15.0
    retry_ms: int = 1000
    stall_s: float = 60.0
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in (("port", 0, 65535), ("admin_port", 0, 65535)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidArgument(f"{name}: {value!r} is not a port; use {low} to {high}")
        for name in ("grace_s", "keepalive_s", "stall_s", "body_bytes_max", "header_bytes_max", "retry_ms"):
            if not getattr(self, name) > 0:
                raise InvalidArgument(f"{name}: {getattr(self, name)!r} is not positive")
        if not is_loopback(self.host):
            raise FailedPrecondition(
                f"host: {self.host!r} is reachable from other machines, and callers are not authenticated; "
                "bind 127.0.0.1, ::1 or localhost",
                reason="auth_required",
                details={"host": self.host},
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that binds `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
