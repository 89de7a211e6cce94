"""Services: who is there, how they are, and which of them to ask.

`port` is the contract of a source of instances. Names are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundplane.services.port import Instance, InstanceChange, InstanceSource, Status

__all__ = ["Instance", "InstanceChange", "InstanceSource", "Status"]

_WHERE = dict.fromkeys(("Instance", "InstanceChange", "InstanceSource", "Status"), "port")


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
