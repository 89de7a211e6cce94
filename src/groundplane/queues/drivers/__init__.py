"""Drivers by URL scheme: where each lives, imported when it is asked for.

Third parties add theirs as entry points of the group `groundplane.queues`, named by the scheme: an object whose
`open(url, *, namespace, state, inline, upgrade)` is an asynchronous context manager of a `QueueDriver`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit

from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.queues.port import QueueDriver

DRIVERS: dict[str, str] = {
    "embedded": "groundplane.queues.drivers.embedded:EmbeddedQueues",
}
ENTRY_POINTS = "groundplane.queues"


def open_driver(url: str, **options: Any) -> AbstractAsyncContextManager[QueueDriver]:
    """What opens the driver of the URL's scheme. `invalid_argument` for a scheme that nobody has."""
    scheme = urlsplit(url).scheme
    opened: AbstractAsyncContextManager[QueueDriver] = _load(scheme, url).open(url, **options)
    return opened


def _load(scheme: str, url: str) -> Any:
    if scheme in DRIVERS:
        module, _, attribute = DRIVERS[scheme].partition(":")
        return getattr(importlib.import_module(module), attribute)
    others = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if scheme in others:
        return others[scheme].load()
    known = sorted({*DRIVERS, *others})
    raise InvalidArgument(
        f"queues: the scheme {scheme!r} is none of {', '.join(known)}{did_you_mean(scheme, known)}",
        details={"scheme": scheme, "known": known},
    )
