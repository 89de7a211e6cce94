"""Finding what comes with the sources and not with an installed package: examples and benchmarks."""

from __future__ import annotations

from pathlib import Path

from groundplane.core.errors import NotFound


def find(path: str, what: str) -> Path:
    """The folder or file of the checkout, seen from this package or from the present folder. Raises `not_found`."""
    for root in (Path(__file__).resolve().parents[3], Path.cwd()):
        if (root / path).exists():
            return root / path
    raise NotFound(f"{what}: {path!r} comes with the sources; clone them and run this in the checkout")
