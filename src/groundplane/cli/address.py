"""Where the gateway is to listen, looked at before anything is started."""

from __future__ import annotations

import socket

from groundplane.core.errors import FailedPrecondition
from groundplane.core.settings import Settings


def check_address(settings: Settings) -> None:
    """Raise `failed_precondition` where the gateway would not come up: beyond loopback (reason `auth_required`), or on
    a port that is taken.
    """
    from groundplane.gateway.settings import GatewaySettings

    GatewaySettings.of(settings)
    if settings.port == 0:
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise FailedPrecondition(
                f"port: {settings.port} on {settings.host} cannot be bound: {error.strerror}; stop what listens there, "
                "or choose another --port (0 takes a free one)",
                details={"host": settings.host, "port": settings.port},
            ) from error
