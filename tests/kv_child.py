"""A process that works on the keys of a state folder; what it says on standard output is what it knows to be done."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from groundplane.core.errors import Conflict
from groundplane.kv import KV, ChangeKind


def say(**what: Any) -> None:
    """One line, at once."""
    print(json.dumps(what), flush=True)


async def add(kv: KV, times: int) -> None:
    """Raise the number in `sum`, `times` times."""
    done = 0
    while done < times:
        entry = await kv.get("sum")
        assert entry is not None
        try:
            await kv.update("sum", str(int(entry.value) + 1).encode(), revision=entry.revision)
        except Conflict:
            continue
        done += 1
    say(added=done)


async def write(kv: KV, _: int) -> None:
    """Write keys until killed, and say which are written."""
    number = 0
    while True:
        revision = await kv.put(f"k{number}", str(number).encode())
        say(number=number, revision=revision)
        number += 1


async def brief(kv: KV, _: int) -> None:
    """Write a value that expires, and wait to be killed."""
    say(revision=await kv.put("brief", b"1", ttl_s=3))
    await asyncio.Event().wait()


async def watch(kv: KV, count: int) -> None:
    """Say what is told, so many times."""
    async with kv.watch(prefix="w/") as changes:
        await changes.snapshot()
        say(ready=True)
        for _ in range(count):
            change = await anext(changes)
            value = change.value.decode() if change.kind is ChangeKind.PUT else None
            say(key=change.key, value=value, revision=change.revision)


async def main() -> None:
    """`python kv_child.py STATE MODE COUNT`."""
    state, mode, count = sys.argv[1:]
    async with KV.open(state=Path(state), ttl=True) as kv:
        await {"add": add, "write": write, "brief": brief, "watch": watch}[mode](kv, int(count))


if __name__ == "__main__":
    asyncio.run(main())
