"""`groundplane --version`: ours, and those of what it stands on."""

from __future__ import annotations

import importlib.metadata
import json as json_codec
import platform
import sys

from groundplane._version import __version__

_PACKAGES = ("apsw", "msgspec", "mcp", "starlette", "uvicorn")


def versions() -> dict[str, str]:
    """Versions by name. SQLite's is the one that apsw brings, which is the one that is used."""
    found = {"groundplane": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    if found["apsw"] != "not installed":
        found["sqlite"] = ".".join(found["apsw"].split(".")[:3])  # apsw's version begins with its SQLite's
    return found


def show(*, json: bool) -> int:
    """Print them."""
    found = versions()
    if json:
        sys.stdout.write(json_codec.dumps(found) + "\n")
    else:
        own = found.pop("groundplane")
        rest = ", ".join(f"{name} {version}" for name, version in found.items())
        sys.stdout.write(f"groundplane {own} ({rest})\n")
    return 0
