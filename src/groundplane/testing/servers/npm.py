"""Programs from npm: packages that a lock file pins by their hashes, into the cache; Node itself is on PATH."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from groundplane.testing.servers.contract import Installation, Report, ServerMissing, Source
from groundplane.testing.servers.sources import execute
from groundplane.testing.toolchains import toolchain


def npm_ci(lock: Path, folder: Path, report: Report) -> None:
    """Into `folder` what `package.json` and `package-lock.json` of the folder `lock` pin; npm checks every hash. Raises
    `InstallFailed` with npm's words.
    """
    for name in ("package.json", "package-lock.json"):
        shutil.copy(lock / name, folder)
    execute(["npm", "ci", "--no-audit", "--no-fund"], report, cwd=folder)


class Npm(Source):
    """The `package` that the folder `lock` pins, with all that it needs. Its program `modules` is the folder
    `node_modules`; Node, without which there is none, is `toolchain("node")`.
    """

    origin = "npm"

    def __init__(self, package: str, *, lock: Path, size_mb: int, seconds: int) -> None:
        self.package, self.size_mb, self.seconds = package, size_mb, seconds
        self._lock = lock
        self.version = _dependencies(lock)[package]

    @property
    def command(self) -> str:
        return f"npm ci, which brings {self.package}@{self.version} as {self._lock.name}/package-lock.json pins it"

    def find(self, folder: Path) -> Installation | None:
        modules = folder / "node_modules"
        said = modules / self.package / "package.json"
        if not said.exists() or not self._is_of(folder) or self.obstacle() is not None:
            return None
        version = str(json.loads(said.read_text(encoding="utf-8"))["version"])
        return Installation(origin=self.origin, version=version, programs={"modules": modules}, folder=folder)

    def obstacle(self) -> str | None:
        try:
            toolchain("node")
        except ServerMissing as missing:
            return missing.message
        return None

    def install(self, folder: Path, report: Report) -> None:
        npm_ci(self._lock, folder, report)

    def _is_of(self, folder: Path) -> bool:
        """Whether it was made from the lock file as it is now."""
        name = "package-lock.json"
        return (folder / name).read_bytes() == (self._lock / name).read_bytes()


def _dependencies(lock: Path) -> Mapping[str, str]:
    found: Mapping[str, str] = json.loads((lock / "package.json").read_text(encoding="utf-8"))["dependencies"]
    return found
