"""Key-value: small state that processes share, with revisions, conditions, TTL and watches.

    async with KV.open("embedded://", bucket="settings") as kv:
        revision = await kv.put("theme", b"dark")
        await kv.update("theme", b"light", revision=revision)
        async with kv.watch(prefix="the") as watch:
            async for change in watch:
                print(change.kind, change.key, change.revision)

`KV` is the façade a user holds; `port` is the contract of a driver, `conformance` the suite it must pass.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundplane.core.fencing import Fence
    from groundplane.kv.port import Capability, Change, ChangeKind, Entry, KeyPage, Limits, Status
    from groundplane.kv.store import KV, Statistics
    from groundplane.kv.watching import Watch

__all__ = [
    "KV",
    "Capability",
    "Change",
    "ChangeKind",
    "Entry",
    "Fence",
    "KeyPage",
    "Limits",
    "Statistics",
    "Status",
    "Watch",
]

_WHERE = {
    "KV": "groundplane.kv.store",
    "Statistics": "groundplane.kv.store",
    "Watch": "groundplane.kv.watching",
    "Fence": "groundplane.core.fencing",
    **dict.fromkeys(
        ("Capability", "Change", "ChangeKind", "Entry", "KeyPage", "Limits", "Status"), "groundplane.kv.port"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
