"""Services: who is there, how they are, and which of them to ask.

    async with Registry.open("nats://127.0.0.1:4222") as registry:
        async with registry.register("quotes", version="1.4.0"):
            async with Discovery.open(registry) as discovery:
                one = await discovery.select("quotes")

`port` is the contract of a source of instances: the registry over key-value is one, Kubernetes another.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundplane.services.cleaner import Cleaner
    from groundplane.services.definitions import Definitions
    from groundplane.services.directory import Directory
    from groundplane.services.discovery import Discovery, Found
    from groundplane.services.drivers import open_source
    from groundplane.services.lifecycle import LifeState, ServiceLifecycle
    from groundplane.services.port import Instance, InstanceChange, InstanceSource, Status
    from groundplane.services.records import Defined, Definition
    from groundplane.services.registration import Registration
    from groundplane.services.registry import Registry
    from groundplane.services.selection import Selector
    from groundplane.services.service import Service
    from groundplane.services.settings import DiscoverySettings, RegistrationSettings

__all__ = [
    "Cleaner",
    "Defined",
    "Definition",
    "Definitions",
    "Directory",
    "Discovery",
    "DiscoverySettings",
    "Found",
    "Instance",
    "InstanceChange",
    "InstanceSource",
    "LifeState",
    "Registration",
    "RegistrationSettings",
    "Registry",
    "Selector",
    "Service",
    "ServiceLifecycle",
    "Status",
    "open_source",
]

_WHERE = {
    **dict.fromkeys(("Instance", "InstanceChange", "InstanceSource", "Status"), "port"),
    **dict.fromkeys(("Defined", "Definition"), "records"),
    **dict.fromkeys(("Discovery", "Found"), "discovery"),
    **dict.fromkeys(("LifeState", "ServiceLifecycle"), "lifecycle"),
    **dict.fromkeys(("DiscoverySettings", "RegistrationSettings"), "settings"),
    "Cleaner": "cleaner",
    "Definitions": "definitions",
    "Directory": "directory",
    "Registration": "registration",
    "Registry": "registry",
    "Selector": "selection",
    "Service": "service",
    "open_source": "drivers",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
