"""A process on the bus of a state folder: `python bus_child.py STATE ROLE INSTANCE`. It says a JSON line for each thing
that happens, and lives until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from groundplane.bus import Bus, CommandContext
from groundplane.core.retry import RetryPolicy


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def main(state: str, role: str, instance: str) -> None:
    async with Bus.open(state=state, namespace="test", name="child", instance=instance) as bus:
        await {"serve": serve, "listen": listen, "handle": handle}[role](bus, instance)


async def serve(bus: Bus, instance: str) -> None:
    async def who() -> str:
        return instance

    async def hang() -> None:
        say(called="hang")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            say(cancelled="hang")
            raise

    async with bus.serve("people", {"who": who, "hang": hang}, instance=instance):
        await until_told(bus)


async def listen(bus: Bus, instance: str) -> None:
    async def seen(event: Any) -> None:
        say(event=event.payload, attempt=event.attempt)
        if event.payload == "hang":
            await asyncio.Event().wait()

    backoff = RetryPolicy(attempts=1, base_s=0.05, factor=1, jitter=False)
    async with bus.subscribe("orders.*", seen, group="g", backoff=backoff, prefetch=4, concurrency=2):
        await until_told(bus)


async def handle(bus: Bus, instance: str) -> None:
    async def work(value: int, ctx: CommandContext) -> int:
        say(command=value, attempt=ctx.attempt)
        await ctx.progress(50)
        if value < 0 and ctx.attempt == 1:
            await asyncio.Event().wait()
        return value * 2

    async with bus.handle("sums", {"double": work}):
        await until_told(bus)


async def until_told(bus: Bus) -> None:
    say(ready=True)
    await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
