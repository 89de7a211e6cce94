"""The testing kit: what Groundplane's own suites use, for the tests of its users.

    from groundplane.testing import Proxy, History, VirtualClock, eventually, unique

`servers` starts real servers, `plugin` gives them to pytest, `faults` breaks what lies between, `checkers` say whether
promises were kept.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundplane.testing.checkers import (
        BrokenPromise,
        EventLog,
        History,
        Memory,
        States,
        check_nothing_leaked,
        check_queues_empty,
    )
    from groundplane.testing.clock import VirtualClock
    from groundplane.testing.concurrency import NotInTime, eventually, together, unique, wait_until
    from groundplane.testing.faults import NoSmallDisk, Proxy, SmallDisk, small_disk
    from groundplane.testing.leaks import Snapshot
    from groundplane.testing.performance import Tracker

__all__ = [
    "BrokenPromise",
    "EventLog",
    "History",
    "Memory",
    "NoSmallDisk",
    "NotInTime",
    "Proxy",
    "SmallDisk",
    "Snapshot",
    "States",
    "Tracker",
    "VirtualClock",
    "check_nothing_leaked",
    "check_queues_empty",
    "eventually",
    "small_disk",
    "together",
    "unique",
    "wait_until",
]

_WHERE = {
    **dict.fromkeys(
        ("BrokenPromise", "EventLog", "History", "Memory", "States", "check_nothing_leaked", "check_queues_empty"),
        "checkers",
    ),
    **dict.fromkeys(("NotInTime", "eventually", "together", "unique", "wait_until"), "concurrency"),
    **dict.fromkeys(("NoSmallDisk", "Proxy", "SmallDisk", "small_disk"), "faults"),
    "Snapshot": "leaks",
    "Tracker": "performance",
    "VirtualClock": "clock",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
