"""Tool chains that tests need but the kit does not bring: Node, Go, a JDK with Maven. They are named as servers are.

    def test_builds(go_toolchain: Toolchain) -> None: ...

A fixture for each (`node_toolchain`, `go_toolchain`, `maven_toolchain`) skips where it is missing, with the words that
bring it, and fails where GROUNDPLANE_REQUIRE_SERVERS names it (`node`, `go`, `maven`, or `all`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from groundplane.core.errors import InvalidArgument
from groundplane.testing.servers.contract import ServerMissing
from groundplane.testing.servers.sources import version_of


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A tool chain that is here."""

    name: str
    version: str
    """Of its first program, as that says it."""
    programs: Mapping[str, Path]

    @property
    def path(self) -> Path:
        """Its first program."""
        return next(iter(self.programs.values()))


@dataclass(frozen=True)
class _Known:
    programs: tuple[str, ...]
    """All are needed; the first one tells the version."""
    minimum: tuple[int, ...]
    read: Callable[[str], str]
    get: str


_KNOWN = {
    "node": _Known(
        ("node", "npm"),
        (20,),
        lambda program: version_of([program, "--version"]),
        "https://nodejs.org/en/download, or apt-get install nodejs npm where that is new enough",
    ),
    "go": _Known(
        ("go",),
        (1, 22),
        lambda program: version_of([program, "version"], r"go(\d+(?:\.\d+)+)"),
        "https://go.dev/dl, or apt-get install golang-go; it fetches the newer ones that a module asks for",
    ),
    "maven": _Known(
        ("java", "javac", "mvn"),
        (17,),
        lambda program: version_of([program, "-version"], r'version "([\d.]+)'),
        "apt-get install openjdk-17-jdk-headless maven",
    ),
}
NAMES = tuple(_KNOWN)


def toolchain(name: str) -> Toolchain:
    """A tool chain by its name, from PATH and `/usr/local/go/bin`. `ServerMissing` says what is missing or too old, and
    how to get it.
    """
    if name not in _KNOWN:
        raise InvalidArgument(f"toolchain: {name!r} is not one that the kit knows; there is {', '.join(NAMES)}")
    known = _KNOWN[name]
    path = f"{os.environ.get('PATH', '')}:/usr/local/go/bin"
    found = {program: shutil.which(program, path=path) for program in known.programs}
    missing = [program for program, where in found.items() if where is None]
    if missing:
        raise ServerMissing(f"{name}: {' and '.join(missing)} not on PATH; get it: {known.get}")
    programs = {program: Path(where) for program, where in found.items() if where is not None}
    version = known.read(str(next(iter(programs.values()))))
    if _numbers(version) < known.minimum:
        wanted = ".".join(map(str, known.minimum))
        raise ServerMissing(f"{name}: version {version!r} is older than {wanted}; get it: {known.get}")
    return Toolchain(name=name, version=version, programs=programs)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
