"""Starting `queue_child.py`, talking to it, and killing it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("queue_child.py")


class Child:
    """A running role. `read` gives what it said next."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def read(self, within_s: float = 30.0) -> Any:
        """The next value that it said, or None at the end of its output."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), within_s)
        return json.loads(line) if line.endswith(b"\n") else None

    async def read_all(self, within_s: float = 120.0) -> list[Any]:
        """Everything that it still says until it ends."""
        said = []
        async with asyncio.timeout(within_s):
            while (value := await self.read(within_s)) is not None:
                said.append(value)
        return said

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def child(role: str, place: Path | str, namespace: str, *rest: object) -> AsyncIterator[Child]:
    """A process in the role; killed when the block ends, if it still runs."""
    command = [sys.executable, str(_CHILD), role, str(place), namespace, *map(str, rest)]
    pipe = asyncio.subprocess.PIPE
    started = Child(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 22))
    try:
        yield started
    finally:
        await started.kill()
        assert started.process.stdin is not None
        started.process.stdin.close()
        transport = getattr(started.process, "_transport")  # noqa: B009 - asyncio has no public way to close its pipes
        transport.close()
