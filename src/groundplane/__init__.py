"""Groundplane: durable queues, an actor mesh, jobs, and a gateway for any MCP or HTTP client.

    from groundplane import App

    app = App("acme")

    @app.actor
    def double(value: int) -> int:
        return value * 2

    app.tool("double", route=[double], description="Doubles a number.")

`groundplane dev app:app` runs it. Every public name is here and is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from groundplane._version import __version__

if TYPE_CHECKING:
    from groundplane.app import App
    from groundplane.core.envelope import Envelope
    from groundplane.core.errors import (
        AlreadyExists,
        Closed,
        Conflict,
        DeadlineExceeded,
        FailedPrecondition,
        GroundplaneError,
        Internal,
        InvalidArgument,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        Unavailable,
        Unsupported,
    )
    from groundplane.core.retry import RetryPolicy
    from groundplane.core.settings import Settings
    from groundplane.gateway.client import Client
    from groundplane.mesh.runtime import Context, Declined, FanOut, Fault, Reject, Retry, Stop
    from groundplane.plane import Plane

_ERRORS = (
    "AlreadyExists",
    "Closed",
    "Conflict",
    "DeadlineExceeded",
    "FailedPrecondition",
    "GroundplaneError",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Unavailable",
    "Unsupported",
)
_MODULES = {
    "App": "groundplane.app",
    "Client": "groundplane.gateway",
    "Context": "groundplane.mesh.runtime",
    "Declined": "groundplane.mesh.runtime",
    "Envelope": "groundplane.core.envelope",
    "FanOut": "groundplane.mesh.runtime",
    "Fault": "groundplane.mesh.runtime",
    "Plane": "groundplane.plane",
    "Reject": "groundplane.mesh.runtime",
    "Retry": "groundplane.mesh.runtime",
    "RetryPolicy": "groundplane.core.retry",
    "Settings": "groundplane.core.settings",
    "Stop": "groundplane.mesh.runtime",
    **dict.fromkeys(_ERRORS, "groundplane.core.errors"),
}

__all__ = [
    "AlreadyExists",
    "App",
    "Client",
    "Closed",
    "Conflict",
    "Context",
    "DeadlineExceeded",
    "Declined",
    "Envelope",
    "FailedPrecondition",
    "FanOut",
    "Fault",
    "GroundplaneError",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "Plane",
    "Reject",
    "ResourceExhausted",
    "Retry",
    "RetryPolicy",
    "Settings",
    "Stop",
    "Unavailable",
    "Unsupported",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
