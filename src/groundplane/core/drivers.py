"""Drivers by URL scheme: where each lives, imported when it is asked for. Importing a port registers nothing.

A port has a table of its own drivers (scheme → `module:attribute`). Those of third parties are entry points of the
group
`groundplane.<port>`, named by their scheme.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.core.secrets import mask_url


def load_driver(port: str, url: str, table: Mapping[str, str]) -> Any:
    """What the URL's scheme names: one of `table`, or an entry point. `invalid_argument` for a scheme that nobody
    has.
    """
    scheme = url.partition("://")[0]
    if scheme in table:
        module, _, attribute = table[scheme].partition(":")
        return getattr(importlib.import_module(module), attribute)
    from importlib.metadata import entry_points  # slow and large: only where a table does not have it

    others = {point.name: point for point in entry_points(group=f"groundplane.{port}")}
    if scheme in others:
        return others[scheme].load()
    known = sorted({*table, *others})
    raise InvalidArgument(
        f"{port}: {mask_url(url)!r} has no known scheme; use one of {', '.join(known)}{did_you_mean(scheme, known)}",
        details={"scheme": scheme, "known": known},
    )
