"""Single active: of many instances one acts, and what a former one still sends is refused.

    async with Leadership.open(kv, "scheduler") as leadership:
        async with leadership.acting() as fence:       # waits for its turn, is cancelled with it
            await kv.put("plan", plan, fence=fence)    # refused once somebody else has led and written

`policies` says how long leases last, `election` decides, and says why there are never two; `ask_leader` is for callers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundplane.services.leadership.asking import ask_leader
    from groundplane.services.leadership.declared import SingleActive
    from groundplane.services.leadership.election import ElectionEvent, Leader
    from groundplane.services.leadership.leadership import Leadership
    from groundplane.services.leadership.observing import Lead, Leaders
    from groundplane.services.leadership.policies import POLICIES, Policy
    from groundplane.services.leadership.registry_status import registered

__all__ = [
    "POLICIES",
    "ElectionEvent",
    "Lead",
    "Leader",
    "Leaders",
    "Leadership",
    "Policy",
    "SingleActive",
    "ask_leader",
    "registered",
]

_WHERE = {
    "Leadership": "leadership",
    "ElectionEvent": "election",
    "Leader": "election",
    "Lead": "observing",
    "Leaders": "observing",
    "POLICIES": "policies",
    "Policy": "policies",
    "SingleActive": "declared",
    "ask_leader": "asking",
    "registered": "registry_status",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
