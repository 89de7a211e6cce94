"""Blobs: objects by key, whole and checked.

    async with Blobs.open("embedded://", state=Path(".groundplane")) as blobs:
        info = await blobs.put("reports/2026.json", b"{}", create=True)
        data = await blobs.get("reports/2026.json")

`Blobs` is the façade a user holds; `port` is the contract of a driver, `conformance` the suite it must pass.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundplane.blobs.port import BlobInfo, BlobPage, BlobVersion, Capability
    from groundplane.blobs.store import Blobs

__all__ = ["BlobInfo", "BlobPage", "BlobVersion", "Blobs", "Capability"]

_WHERE = {"Blobs": "store", "BlobInfo": "port", "BlobPage": "port", "BlobVersion": "port", "Capability": "port"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
