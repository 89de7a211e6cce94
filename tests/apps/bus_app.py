"""The app of the tests about actors that use the bus, and handlers of the bus that start jobs. It writes what it sees
into files of its folder.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from groundplane import App, Context, Fault, NotFound
from groundplane.bus import CallContext, CommandContext, EventContext, ReceivedEvent

app = App("shop")


def note(file: str, line: str) -> None:
    with Path(file).open("a") as lines:
        lines.write(f"{line}\n")


@app.rpc("shop.order")
async def order(item: str, ctx: CallContext) -> str:
    """Begins the work in the background, once however often the same work asks."""
    return await ctx.start_job("fulfil", {"item": item})


@app.rpc("stock.take")
async def take(item: str, ctx: CallContext) -> dict[str, Any]:
    if item == "unicorn":
        raise NotFound(f"item: {item!r} is not in stock", details={"item": item})
    await ctx.publish("stock.taken", {"item": item})
    return {"item": item, "key": ctx.idempotency_key, "remaining_s": ctx.remaining_s}


@app.rpc("stock.count")
async def count(item: str) -> int:
    """Is not done before somebody gives up."""
    note("counting.txt", "began")
    try:
        await asyncio.Event().wait()
    finally:
        note("counting.txt", "given up")
    return 0


@app.on("stock.*")
async def moved(event: ReceivedEvent) -> None:
    note("moved.txt", f"{event.type} {event.payload['item']} {event.id}")


@app.on("returns.*")
async def returned(event: ReceivedEvent, ctx: EventContext) -> None:
    note("returns.txt", await ctx.start_job("fulfil", {"item": event.payload["item"]}))
    if event.attempt < 2:
        raise RuntimeError("not yet")


@app.command("shop.restock")
async def restock(item: str, ctx: CommandContext) -> str:
    """Fails once where it is a chair, after it has started its job."""
    job = await ctx.start_job("fulfil", {"item": item})
    if item == "chair" and ctx.attempt < 2:
        raise RuntimeError("not yet")
    return job


@app.actor
async def fulfil(item: str, ctx: Context, name: str = "stock.take", timeout_s: float = 5.0) -> Any:
    try:
        return await ctx.call(name, {"item": item}, timeout_s=timeout_s)
    except Fault as error:
        return [error.code, error.reason, error.details]


@app.actor(retry=2)
def deliver(item: str, ctx: Context) -> dict[str, Any]:
    """Tells the bus of it, and dies with its process at its first attempt."""
    ids = [ctx.publish("stock.delivered", {"item": item}) for _ in range(2)]
    ids.append(ctx.publish("stock.attempted", {"item": f"{item}-{ctx.attempt}"}))
    command = ctx.send("shop.restock", {"item": item}, priority="high")
    job = ctx.call("shop.order", {"item": item})
    if ctx.attempt < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"events": ids, "command": command, "job": job}


for actor in (fulfil, deliver):
    app.tool(actor.__name__, route=[actor], description="For tests.", timeout=60)
