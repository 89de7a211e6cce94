"""Files that others publish inside Go modules: schemas and definitions, fetched once at a fixed version."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path, PurePosixPath

from groundplane.core.errors import InvalidArgument
from groundplane.testing.servers.contract import ServerMissing
from groundplane.testing.servers.installing import cache_folder
from groundplane.testing.servers.sources import InstallFailed, go

_DOWNLOAD_TIMEOUT_S = 300.0


def fetched(module: str, version: str, inner: str) -> Path:
    """A file or folder of a module, in the kit's cache: downloaded by Go at the first call, no Go needed after it.

    `ServerMissing` where it is not there and neither is Go; `InstallFailed` where the download fails (Go checks what it
    downloads against its public list of sums) or the module has no such file.
    """
    parts = PurePosixPath(inner).parts
    if not parts or ".." in parts or inner.startswith("/"):
        raise InvalidArgument(f"inner: {inner!r} is not a path inside a module")
    kept = cache_folder() / "modules" / f"{module.replace('/', '-')}@{version}"
    target = kept.joinpath(*parts)
    if not target.exists():
        _keep(_downloaded(module, version), parts, target)
    return target


def _downloaded(module: str, version: str) -> Path:
    program = go()
    if program is None:
        raise ServerMissing(f"go: {module}@{version} is downloaded by Go, which is not here: apt-get install golang-go")
    words = [program, "mod", "download", "-json", f"{module}@{version}"]
    try:
        done = subprocess.run(
            words, cwd=tempfile.gettempdir(), capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallFailed(f"{' '.join(words)}: {error}") from error
    if done.returncode != 0:
        raise InstallFailed(f"{' '.join(words)}: ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return Path(json.loads(done.stdout)["Dir"])


def _keep(folder: Path, parts: tuple[str, ...], target: Path) -> None:
    """Copy it beside and rename, so that a half copy is never found; Go's own files cannot be written."""
    source = folder.joinpath(*parts)
    if not source.exists():
        raise InstallFailed(f"inner: {'/'.join(parts)!r} is not in {folder.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{target.name}.{os.getpid()}")
    if source.is_dir():
        shutil.copytree(source, half, copy_function=shutil.copyfile)
        half.chmod(0o755)
    else:
        shutil.copyfile(source, half)
    try:
        half.rename(target)
    except OSError:  # somebody else was quicker
        shutil.rmtree(half)
