"""The settings of the embedded engine that are not part of a call."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from groundplane.core.errors import InvalidArgument


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How one process uses a database file. The first opener of a file in a process decides.

    `busy_timeout_s`: how long a write waits for the lock of the file before `unavailable` (`database_busy`).
    `write_queue_max`: writes that wait for a commit; one more is `resource_exhausted` (`queue_full`).
    `read_queue_max`: the same for reads.
    `batch_works_max`, `batch_hold_s`: what one commit takes at most, so that other processes get their turn.
    `readers`: threads with a connection each that run reads.
    `poll_s`: interval of the safety poll while somebody listens.
    `ballast_bytes`: disk space held back for writes that are `essential`; 0 for none. The default is what the log
    grows to before it is checkpointed, and a little more.
    `vfs`: name of the SQLite VFS; empty for the default.
    `sync`: makes the data of a descriptor durable (replaced in tests).
    """

    busy_timeout_s: float = 5.0
    write_queue_max: int = 10_000
    read_queue_max: int = 10_000
    batch_works_max: int = 1_000
    batch_hold_s: float = 0.02
    readers: int = 2
    poll_s: float = 0.25
    ballast_bytes: int = 4_325_376
    vfs: str = ""
    sync: Callable[[int], None] = os.fdatasync


def check_options(options: Options) -> Options:
    """Returns the options unchanged. `invalid_argument` names the first field that is out of range."""
    for field in ("busy_timeout_s", "batch_hold_s", "poll_s"):
        if not getattr(options, field) > 0:
            raise InvalidArgument(f"{field}: {getattr(options, field)!r} must be more than 0 seconds")
    for field in ("write_queue_max", "read_queue_max", "batch_works_max", "readers"):
        if getattr(options, field) < 1:
            raise InvalidArgument(f"{field}: {getattr(options, field)!r} must be at least 1")
    if options.ballast_bytes < 0:
        raise InvalidArgument(f"ballast_bytes: {options.ballast_bytes!r} must be 0 (none) or more")
    return options
