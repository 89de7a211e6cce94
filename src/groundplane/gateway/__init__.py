"""The gateway: REST, SSE and MCP over one job store. Needs the extra `gateway`; its client alone, `client`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundplane.gateway.catalogue import Catalogue
    from groundplane.gateway.client import Client
    from groundplane.gateway.server import Gateway
    from groundplane.gateway.settings import GatewaySettings
    from groundplane.gateway.tools import ToolTable

_HOME = {
    "Catalogue": "catalogue",
    "Client": "client",
    "Gateway": "server",
    "GatewaySettings": "settings",
    "ToolTable": "tools",
}
_PACKAGES = {"httpx2", "jsonschema", "mcp", "starlette", "uvicorn", "yaml", "mcp_types", "sse_starlette", "referencing"}

__all__ = ["Catalogue", "Client", "Gateway", "GatewaySettings", "ToolTable"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _PACKAGES:
            raise
        from groundplane.core.errors import FailedPrecondition

        extra = "client" if name == "Client" else "gateway"
        raise FailedPrecondition(
            f"{name}: needs the package {error.name!r}; install groundplane[{extra}]",
            reason="missing_extra",
            details={"package": error.name, "extra": extra},
        ) from error
