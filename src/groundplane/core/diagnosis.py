"""What a look at a server found: what `groundplane doctor` asks drivers for."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is fit for its port. `server` is its product and version; `stored` says whether something of this
    plane is there already.

    `clock_ahead_ms` is the server's clock less this machine's, give or take `clock_error_ms`; None where it tells none.
    """

    server: str
    stored: bool = True
    clock_ahead_ms: int | None = None
    clock_error_ms: int = 0


class Diagnose(Protocol):
    """A driver's look at the server of a URL: it leaves nothing there that it made.

    `names` are those of queues that are to be there. Raises the named errors of opening, and those that the first use
    would meet: rights that are missing, a full disk, things that were made otherwise by others.
    """

    async def __call__(self, url: str, *, namespace: str, names: Sequence[str] = ()) -> Diagnosis:
        """See the class."""
        ...


def load_diagnose(scheme: str, table: Mapping[str, str]) -> Diagnose | None:
    """The look of a driver, by the scheme of its URL; None where it has none."""
    if scheme not in table:
        return None
    module, _, attribute = table[scheme].partition(":")
    found: Diagnose = getattr(importlib.import_module(module), attribute)
    return found


class Stopwatch:
    """Compares a server's clock with ours: begin before it is asked, then tell what it said."""

    def __init__(self) -> None:
        self._began = time.time()

    def ahead(self, server_ms: float, resolution_ms: int = 0) -> tuple[int, int]:
        """How many milliseconds the server's clock is ahead, and how far that may be wrong. With a `resolution_ms` its
        time was cut off to that.
        """
        ended = time.time()
        middle_ms = (self._began + ended) * 500
        error_ms = round((ended - self._began) * 500) + resolution_ms // 2 + 1
        return round(server_ms + resolution_ms / 2 - middle_ms), error_ms
