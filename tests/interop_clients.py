"""Clients of NATS in other languages, as `tests/interop` has them: built once, run beside a test."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from groundplane.testing.servers.cache import build, cache_folder, locked
from groundplane.testing.servers.npm import npm_ci
from groundplane.testing.toolchains import Toolchain

SOURCES = Path(__file__).resolve().parent / "interop"


def built_by_go(go: Toolchain, folder: Path) -> list[str]:
    """The command line of the program in Go, built into `folder`; its modules are those of `go.sum`."""
    program = folder / "client"
    words = [str(go.path), "build", "-mod=readonly", "-trimpath", "-o", str(program), "."]
    done = subprocess.run(words, cwd=SOURCES / "go", capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [str(program)]


def run_by_node(node: Toolchain, folder: Path) -> list[str]:
    """The command line of the program for Node; its packages are those of `package-lock.json`, kept in the cache."""
    lock = SOURCES / "node"
    digest = hashlib.sha256((lock / "package-lock.json").read_bytes()).hexdigest()[:16]
    packages = cache_folder() / f"interop-node-{digest}"

    def report(words: str) -> None:
        print(f"packages of npm: {words}", file=sys.stderr)

    with locked(packages):
        if not packages.is_dir():
            build(packages, lambda half: npm_ci(lock, half, report), report)
    (folder / "node_modules").symlink_to(packages / "node_modules")
    program = folder / "client.mjs"
    program.write_bytes((lock / "client.mjs").read_bytes())
    return [str(node.path), str(program)]


class Client:
    """One that runs: what it told, until it serves."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told


@asynccontextmanager
async def running(command: list[str], url: str, namespace: str) -> AsyncIterator[Client]:
    """Run it until it serves; at the end of the block it is told to end, and must do so in order."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, url, namespace, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        told: dict[str, Any] = {}
        async with asyncio.timeout(60):
            while "serving" not in told:
                line = await process.stdout.readline()
                assert line, f"it ended after {told}: {(await process.stderr.read()).decode()}"
                said = json.loads(line)
                told[said["what"]] = said["value"]
        yield Client(told)
        process.stdin.close()
        async with asyncio.timeout(20):
            words = await process.stderr.read()
            assert await process.wait() == 0, words.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
