"""From a name to the server that it means, imported when it is asked for."""

from __future__ import annotations

import importlib

from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.testing.servers.contract import Server, Source
from groundplane.testing.servers.names import LIGHT, MODULES

__all__ = ["LIGHT", "MODULES", "chosen", "server"]


def server(name: str) -> Server:
    """The server of a name without its version. `invalid_argument` names the nearest one that exists."""
    if name not in MODULES:
        hint = did_you_mean(name, MODULES) or f"; there is {', '.join(MODULES)}"
        raise InvalidArgument(f"server: {name!r} is not one that the kit knows{hint}")
    found = importlib.import_module(f"groundplane.testing.servers.{MODULES[name]}").SERVER
    assert isinstance(found, Server)
    return found


def chosen(spec: str) -> tuple[Server, list[Source]]:
    """`postgres@15` → the server, and its sources of that version, best first; all of them without a version."""
    name, _, version = spec.partition("@")
    one = server(name)
    sources = [s for s in one.sources() if not version or _matches(s.version, version)]
    if not sources:
        known = ", ".join(sorted({s.version for s in one.sources()}))
        raise InvalidArgument(f"server: {spec!r}: there is no source of version {version!r}; there is {known}")
    return one, sources


def _matches(offered: str, asked: str) -> bool:
    return offered == asked or offered.startswith(asked + ".")
