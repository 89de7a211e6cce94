"""Free loopback ports that stay ours while their server is down.

They are taken below the range from which the kernel gives out ports for outgoing connections, so that none of these
sits on the port of a server that is being restarted; a lock file keeps two keepers of one user from choosing the same.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

from groundplane.core.errors import ResourceExhausted, Unavailable

_LOWEST = 18_000
_TRIES = 500


class Ports:
    """The ports of one instance, held until `release`."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}

    def take(self, wanted: int | None = None) -> int:
        """A port that nobody listens on, or the wanted one. `unavailable` where the wanted one is taken."""
        if wanted is not None:
            if not self._try(wanted):
                raise Unavailable(f"port: {wanted!r} is taken on 127.0.0.1; name another, or none for a free one")
            return wanted
        highest = _ephemeral_from() - 1
        for _ in range(_TRIES):
            port = random.randint(min(_LOWEST, highest - 1000), highest)
            if self._try(port):
                return port
        raise ResourceExhausted(f"port: no free one found below {highest} in {_TRIES} tries")

    def release(self) -> None:
        """Give all back; idempotent."""
        while self._held:
            _, descriptor = self._held.popitem()
            os.close(descriptor)

    def _try(self, port: int) -> bool:
        if port in self._held:
            return False
        folder = Path(tempfile.gettempdir()) / f"groundplane-ports-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        if not free(port):
            os.close(descriptor)
            return False
        self._held[port] = descriptor
        return True


def free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _ephemeral_from() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32_768
